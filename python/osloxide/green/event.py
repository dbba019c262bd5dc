"""``eventlet.event``: a value that greenthreads wait for, sent once.

Rules: eventlet.event. Native threads may send and wait too.
"""

from __future__ import annotations

from typing import Any

from osloxide._typing import override
from osloxide.green._core import clock as _clock
from osloxide.green._core import interruption as _interruption
from osloxide.green._core import turns as _turns
from osloxide.green._core import waits as _waits
from osloxide.green._core.interruption import interrupt
from osloxide.green._core.turns import TurnTaker, lock, resume

__all__ = ["Event"]


class _NotUsed:
    @override
    def __repr__(self) -> str:
        return "NOT_USED"


NOT_USED = _NotUsed()


class _Send:
    """Wakes one waiter in its turn."""

    __slots__ = ("event", "exc", "result", "waiter")

    def __init__(self, event: Event, result: Any, exc: Any, waiter: TurnTaker) -> None:
        self.event, self.result, self.exc, self.waiter = event, result, exc, waiter

    def take_turn(self) -> None:
        self.event._do_send(self.result, self.exc, self.waiter)


class Event:
    """Any number of greenthreads wait for what one sends."""

    _result: Any = None
    _exc: Any = None

    def __init__(self) -> None:
        # Ordered, unlike a set: whoever waits longest goes on first.
        self._waiters: dict[TurnTaker, None] = {}
        self.reset()

    @override
    def __str__(self) -> str:
        return (
            f"<{type(self).__name__} at {id(self):#x} result={self._result!r} _exc={self._exc!r} "
            f"_waiters[{len(self._waiters)}]>"
        )

    def reset(self) -> None:
        """Make it fresh again, after it was sent."""
        assert self._result is not NOT_USED, "Trying to re-reset() a fresh event."
        self._result = NOT_USED
        self._exc = None

    def ready(self) -> bool:
        """Whether it was sent."""
        return self._result is not NOT_USED

    def has_exception(self) -> bool:
        """Whether an exception was sent."""
        return self._exc is not None

    def has_result(self) -> bool:
        """Whether a value was sent."""
        return self._result is not NOT_USED and self._exc is None

    def poll(self, notready: Any = None) -> Any:
        """What was sent, or *notready*."""
        return self.wait() if self.ready() else notready

    def poll_exception(self, notready: Any = None) -> Any:
        """Raise the exception that was sent, if one was."""
        return self.wait() if self.has_exception() else notready

    def poll_result(self, notready: Any = None) -> Any:
        """The value that was sent, or *notready*."""
        return self.wait() if self.has_result() else notready

    def wait(self, timeout: float | None = None) -> Any:
        """Wait until it is sent.

        :param timeout: seconds after which None is returned; None waits for ever.
        :raises BaseException: the exception that was sent.
        """
        wake = me = None
        with lock:
            if self._result is NOT_USED:
                me = _waits.suspend()
                self._waiters[me] = None
                if timeout is not None:
                    wake = _waits.Wake(me, None)
                    _clock.clock.add(timeout, wake)
        if me is not None:
            try:
                return _waits.await_turn(me)
            finally:
                with lock:
                    self._waiters.pop(me, None)
                    if wake is not None and not wake.called:
                        _clock.clock.drop(wake)
        if self._exc is not None:
            raise _interruption.normalize(*self._exc)
        return self._result

    def send(self, result: Any = None, exc: Any = None) -> None:
        """Let those that wait return *result*, in their turns; the caller goes on.

        :param exc: an exception, or the arguments of ``throw()``: raised instead.
        """
        with lock:
            assert self._result is NOT_USED, "Trying to re-send() an already-triggered event."
            self._result = result
            if exc is not None and not isinstance(exc, tuple):
                exc = (exc,)
            self._exc = exc
            for waiter in tuple(self._waiters):
                _turns.enqueue(_Send(self, result, exc, waiter))

    def _do_send(self, result: Any, exc: Any, waiter: TurnTaker) -> None:
        if waiter in self._waiters:
            if exc is None:
                resume(waiter, result)
            else:
                interrupt(waiter, _interruption.normalize(*exc))

    def send_exception(self, *args: Any) -> None:
        """Send an exception; the arguments are those of ``throw()``."""
        self.send(None, args)
