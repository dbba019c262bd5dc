"""One call of a function in the future: what ``eventlet.hubs.timer`` offers.

Owns the two kinds of timers: :class:`Timer`, and :class:`LocalTimer`, which dies with the greenlet
that made it. What they call begins in its turn; what only resumes or interrupts a greenlet costs
no thread. Rules: eventlet.hubs.timer.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any

from osloxide._typing import override
from osloxide.green._core import clock as _clock
from osloxide.green._core import greenlets as _greenlets
from osloxide.green._core import interruption as _interruption
from osloxide.green._core import turns as _turns
from osloxide.green._core import waits as _waits
from osloxide.green._core.greenlets import getcurrent, greenlet
from osloxide.green._core.interruption import interrupt
from osloxide.green._core.turns import enqueue, lock

__all__ = ["LocalTimer", "Timer"]

_g_debug = False
"""Whether timers remember where they were made."""


class Timer:
    """Calls *cb* once, *seconds* after :meth:`schedule`.

    :ivar called: it was called, or cancelled.
    """

    exception: BaseException
    _waits = False
    """Whether it is among the timers of the clock."""

    def __init__(self, seconds: float, cb: Callable[..., Any], *args: Any, **kw: Any) -> None:
        self.seconds = seconds
        self.tpl = cb, args, kw
        self.called = False
        self.scheduled_time = 0.0
        if _g_debug:
            self.traceback = "".join(traceback.format_stack(limit=12))

    @property
    def pending(self) -> bool:
        """Whether it will still be called."""
        return not self.called

    @override
    def __repr__(self) -> str:
        cb, args, kw = getattr(self, "tpl", (None, None, None))
        result = f"Timer({self.seconds}, {cb}, *{args}, **{kw})"
        if _g_debug and hasattr(self, "traceback"):
            result += "\n" + self.traceback
        return result

    def copy(self) -> Timer:
        """A new timer of the same kind."""
        cb, args, kw = self.tpl
        return self.__class__(self.seconds, cb, *args, **kw)

    def schedule(self) -> Timer:
        """Begin to wait."""
        self.called = False
        self.scheduled_time = add(self)
        return self

    def __call__(self, *_args: object) -> None:
        """Call the function, unless that was done or the timer was cancelled."""
        if not self.called:
            self.called = True
            cb, args, kw = self.tpl
            try:
                cb(*args, **kw)
            finally:
                self._drop()

    def cancel(self) -> None:
        """Do not call any more. Without effect once it was called."""
        if not self.called:
            with lock:
                if self.called:
                    return  # type: ignore[unreachable]
                self.called = True
                self._drop()
                if self._waits:
                    _clock.clock.note_dropped()

    def _drop(self) -> None:
        self.__dict__.pop("tpl", None)

    def __lt__(self, other: Timer) -> bool:
        return id(self) < id(other)

    # ---- what the clock and the turns call, with the lock ---------------------------------------

    def expire(self) -> None:
        """The time has come."""
        self._waits = False
        cb, args, _ = self.tpl
        target = getattr(cb, "__self__", None)
        if (
            isinstance(target, greenlet)
            and getattr(cb, "__func__", None) is greenlet.throw
            and target._state == _turns.RUNNING
            and target
        ):
            self.exception = _interruption.normalize(*args)
            interrupt(target, self.exception, self)
            return
        enqueue(self)

    def _is_stale(self) -> bool:
        return self.called

    def take_turn(self) -> None:
        """Its place in the queue has come."""
        if self._is_stale():
            self.called = True
            self._drop()
            return
        cb, args, kw = self.tpl
        target = getattr(cb, "__self__", None)
        function = getattr(cb, "__func__", None)
        if isinstance(target, greenlet) and function is greenlet.switch:
            self.called = True
            self._drop()
            if target._state == _turns.RUNNING:
                _waits.latch(target, _turns.switch_value(args, kw))
            else:
                _turns.start(target, args, kw)
        elif isinstance(target, greenlet) and function is greenlet.throw:
            self.exception = _interruption.normalize(*args)
            interrupt(target, self.exception, self)
        else:
            _start_callback(self)


class LocalTimer(Timer):
    """A timer of the calling greenlet: not called once that has ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.greenlet: greenlet | None = getcurrent()
        super().__init__(*args, **kwargs)

    @property
    @override
    def pending(self) -> bool:
        """Whether it will still be called."""
        return not (self.greenlet is None or self.greenlet.dead or self.called)

    @override
    def _is_stale(self) -> bool:
        return self.called or (self.greenlet is not None and self.greenlet.dead)

    @override
    def __call__(self, *args: object) -> None:
        """Call the function, unless its greenlet has ended."""
        if self._is_stale():
            self.called = True
            return
        super().__call__(*args)

    @override
    def cancel(self) -> None:
        """Do not call any more."""
        self.greenlet = None
        super().cancel()


def _start_callback(timer: Timer) -> None:
    _turns.start(_greenlets.Callback(timer, _greenlets.hub_greenlet), (), {})


def add(timer: Timer) -> float:
    """Let *timer* wait; returns its moment."""
    with lock:
        if timer.seconds <= 0:
            enqueue(timer)
        else:
            timer._waits = True
            _clock.clock.add(timer.seconds, timer)
    return time.monotonic() + timer.seconds


def call_global(seconds: float, cb: Callable[..., Any], *args: Any, **kw: Any) -> Timer:
    """Call *cb* in *seconds*."""
    timer = Timer(seconds, cb, *args, **kw)
    timer.scheduled_time = add(timer)
    return timer


def call_local(seconds: float, cb: Callable[..., Any], *args: Any, **kw: Any) -> Timer:
    """Call *cb* in *seconds*, unless the calling greenthread has ended."""
    timer = LocalTimer(seconds, cb, *args, **kw)
    timer.scheduled_time = add(timer)
    return timer
