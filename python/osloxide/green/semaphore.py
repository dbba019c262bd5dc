"""``eventlet.semaphore``: counted resources.

Rules: eventlet.semaphore. Native threads may take part.
"""

from __future__ import annotations

import collections
import time
from types import TracebackType
from typing import Any

from osloxide._typing import override
from osloxide.green._core import clock as _clock
from osloxide.green._core import turns as _turns
from osloxide.green._core import waits as _waits
from osloxide.green._core.turns import TurnTaker, lock, resume

__all__ = ["BoundedSemaphore", "CappedSemaphore", "Semaphore"]


class _Offer:
    """Wakes the first waiter in its turn."""

    __slots__ = ("semaphore",)

    def __init__(self, semaphore: Semaphore) -> None:
        self.semaphore = semaphore

    def take_turn(self) -> None:
        self.semaphore._do_acquire()


def _without(held: tuple[Any, ...], lock: Any) -> tuple[Any, ...]:
    """*held* without the last *lock* of it."""
    for index in reversed(range(len(held))):
        if held[index] is lock:
            return held[:index] + held[index + 1 :]
    return held


class Semaphore:
    """A counter that greenthreads wait for to be above zero.

    :param value: what it begins with.
    """

    def __init__(self, value: int = 1) -> None:
        try:
            value = int(value)
        except ValueError as error:
            raise TypeError(
                f"Semaphore() expect value :: int, actual: {type(value)} {error}"
            ) from error
        if value < 0:
            raise ValueError(f"Semaphore() expect value >= 0, actual: {value!r}")
        self.counter = value
        self._waiters: collections.deque[TurnTaker] = collections.deque()

    @override
    def __repr__(self) -> str:
        name = type(self).__name__
        return f"<{name} at {id(self):#x} c={self.counter} _w[{len(self._waiters)}]>"

    @override
    def __str__(self) -> str:
        return f"<{type(self).__name__} c={self.counter} _w[{len(self._waiters)}]>"

    def locked(self) -> bool:
        """Whether :meth:`acquire` would wait."""
        return self.counter <= 0

    def bounded(self) -> bool:
        """False: :meth:`release` never waits."""
        return False

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Count down; wait until that can be done.

        :param blocking: False: do not wait.
        :param timeout: seconds to wait at most; None or -1: for ever.
        :returns: whether it was done.
        :raises ValueError: *timeout* is negative, or given without *blocking*.
        """
        if timeout == -1:
            timeout = None
        if timeout is not None and timeout < 0:
            raise ValueError("timeout value must be strictly positive")
        if not blocking:
            if timeout is not None:
                raise ValueError("can't specify timeout for non-blocking acquire")
            timeout = 0
        deadline = None if timeout is None else time.monotonic() + timeout
        wake: _waits.Wake | None = None
        me: TurnTaker | None = None
        got = False
        try:
            while True:
                with lock:
                    if self.counter > 0 and (me or not blocking or not self._waiters):
                        self.counter -= 1
                        got = True
                        return True
                    if not blocking or (wake is not None and wake.called):
                        return False
                    woken, me = me is not None, _waits.suspend()
                    if woken:
                        self._waiters.appendleft(me)
                    else:
                        self._waiters.append(me)
                    if deadline is not None:
                        wake = _waits.Wake(me)
                        _clock.clock.add(max(0.0, deadline - time.monotonic()), wake)
                _waits.await_turn(me)
        finally:
            with lock:
                if wake is not None and not wake.called:
                    _clock.clock.drop(wake)
                if me is not None and me in self._waiters:
                    self._waiters.remove(me)
                if me is not None and not got and self.counter > 0 and self._waiters:
                    # It was woken, and something else made it go: the next one's turn.
                    _turns.enqueue(_Offer(self))

    def __enter__(self) -> None:
        self.acquire()
        self._entered()

    def _entered(self) -> None:
        """The calling greenlet has it, until :meth:`_left`; for a child that it is not in."""
        _waits.current_carrier()._held += (self,)

    def _left(self) -> None:
        me = _waits.current_carrier()
        me._held = _without(me._held, self)

    def _free_in_child(self) -> None:
        """In a forked child: one that is not there has entered, and leaves."""
        self.counter += 1

    def release(self, blocking: bool = True) -> bool:
        """Count up; whoever waits longest goes on in its turn."""
        del blocking
        with lock:
            self.counter += 1
            if self._waiters:
                _turns.enqueue(_Offer(self))
        return True

    def _do_acquire(self) -> None:
        while self._waiters and self.counter > 0:
            waiter = self._waiters.popleft()
            if resume(waiter):
                return

    def __exit__(
        self,
        typ: type[BaseException] | None,
        val: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.release()
        self._left()

    @property
    def balance(self) -> int:
        """The counter, less those that wait."""
        return self.counter - len(self._waiters)


class BoundedSemaphore(Semaphore):
    """A semaphore that is never released more often than acquired."""

    def __init__(self, value: int = 1) -> None:
        super().__init__(value)
        self.original_counter = value

    @override
    def release(self, blocking: bool = True) -> bool:
        """Count up.

        :raises ValueError: it is at its first value already.
        """
        if self.counter >= self.original_counter:
            raise ValueError("Semaphore released too many times")
        return super().release(blocking)


class CappedSemaphore:
    """A semaphore whose release waits as well, while the counter is at *limit*.

    :param count: what it begins with.
    """

    def __init__(self, count: int, limit: int) -> None:
        if count < 0:
            raise ValueError(
                f"CappedSemaphore must be initialized with a positive number, got {count}"
            )
        if count > limit:
            raise ValueError("'count' cannot be more than 'limit'")
        self.lower_bound = Semaphore(count)
        self.upper_bound = Semaphore(limit - count)

    @override
    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} at {id(self):#x} b={self.balance} l={self.lower_bound} "
            f"u={self.upper_bound}>"
        )

    @override
    def __str__(self) -> str:
        return f"<{type(self).__name__} b={self.balance} l={self.lower_bound} u={self.upper_bound}>"

    def locked(self) -> bool:
        """Whether :meth:`acquire` would wait."""
        return self.lower_bound.locked()

    def bounded(self) -> bool:
        """Whether :meth:`release` would wait."""
        return self.upper_bound.locked()

    def acquire(self, blocking: bool = True) -> bool:
        """Count down; wait until that can be done, or return False if not *blocking*."""
        if not blocking and self.locked():
            return False
        self.upper_bound.release()
        try:
            return self.lower_bound.acquire()
        except BaseException:
            self.upper_bound.counter -= 1
            raise

    def __enter__(self) -> None:
        self.acquire()

    def release(self, blocking: bool = True) -> bool:
        """Count up; wait until that can be done, or return False if not *blocking*."""
        if not blocking and self.bounded():
            return False
        self.lower_bound.release()
        try:
            return self.upper_bound.acquire()
        except BaseException:
            self.lower_bound.counter -= 1
            raise

    def __exit__(
        self,
        typ: type[BaseException] | None,
        val: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.release()

    @property
    def balance(self) -> int:
        """That of the lower bound, less that of the upper."""
        return self.lower_bound.balance - self.upper_bound.balance
