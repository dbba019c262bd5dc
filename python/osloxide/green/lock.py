"""``eventlet.lock``: a lock of greenthreads. Rules: eventlet.lock."""

from __future__ import annotations

from osloxide._typing import override
from osloxide.green._core import turns as _turns
from osloxide.green._core import waits as _waits
from osloxide.green.semaphore import Semaphore, _without

__all__ = ["Lock"]


class Lock(Semaphore):
    """As ``threading.Lock``."""

    _holder: _turns.TurnTaker | None = None

    @override
    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Lock; see :meth:`Semaphore.acquire`."""
        acquired = super().acquire(blocking, timeout)
        if acquired:
            me = _waits.current_carrier()
            with _turns.lock:
                self._holder = me
                me._held += (self,)
        return acquired

    @override
    def release(self, blocking: bool = True) -> bool:
        """Unlock.

        :raises RuntimeError: it is not locked.
        """
        if self.counter > 0:
            raise RuntimeError("release unlocked lock")
        with _turns.lock:
            holder, self._holder = self._holder, None
            if holder is not None:
                holder._held = _without(holder._held, self)
        return super().release(blocking)

    @override
    def _entered(self) -> None:
        """:meth:`acquire` has said so."""

    @override
    def _left(self) -> None:
        """:meth:`release` has said so."""

    @override
    def _free_in_child(self) -> None:
        self._at_fork_reinit()

    def _at_fork_reinit(self) -> None:
        self._holder = None
        self.counter = 1
        self._waiters.clear()
