"""``eventlet.lock``: a lock of greenthreads. Rules: eventlet.lock."""

from __future__ import annotations

from osloxide._typing import override
from osloxide.green.semaphore import Semaphore

__all__ = ["Lock"]


class Lock(Semaphore):
    """As ``threading.Lock``."""

    @override
    def release(self, blocking: bool = True) -> bool:
        """Unlock.

        :raises RuntimeError: it is not locked.
        """
        if self.counter > 0:
            raise RuntimeError("release unlocked lock")
        return super().release(blocking)

    def _at_fork_reinit(self) -> None:
        self.counter = 1
        self._waiters.clear()
