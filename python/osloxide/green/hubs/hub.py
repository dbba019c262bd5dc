"""``eventlet.hubs.hub``: the interface of a hub.

Owns :class:`BaseHub`: timers and listeners of descriptors over the clock of this process. What is
called back runs with ``getcurrent() is hub.greenlet`` and must not wait.
Rules: eventlet.hubs.hub.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from osloxide._typing import override
from osloxide.green._core import clock as _clock
from osloxide.green._core import greenlets as _greenlets
from osloxide.green._core import interruption as _interruption
from osloxide.green._core import timers as _timer
from osloxide.green._core import turns as _turns
from osloxide.green._core import waits as _waits
from osloxide.green._core.greenlets import greenlet
from osloxide.green._core.interruption import interrupt
from osloxide.green._core.turns import lock
from osloxide.green._core.waits import park

__all__ = ["READ", "WRITE", "BaseHub", "FdListener"]

g_prevent_multiple_readers = True
"""Whether a second greenthread that waits for the same is an error."""

READ = "read"
WRITE = "write"


class IOClosed(OSError):
    """The descriptor was closed while it was waited for."""


class FdListener:
    """One that waits for a descriptor."""

    def __init__(
        self,
        evtype: str,
        fileno: int,
        cb: Callable[..., Any],
        tb: Callable[..., Any],
        mark_as_closed: Callable[[], object] | None,
    ) -> None:
        if mark_as_closed is None:
            mark_as_closed = _nothing
        self.evtype = evtype
        self.fileno = fileno
        self.cb = cb
        self.tb = tb
        self.mark_as_closed = mark_as_closed
        self.spent = self.fired = False
        self.hub: BaseHub | None = None
        self.greenlet = _greenlets.getcurrent()

    @override
    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.evtype!r}, {self.fileno!r}, {self.cb!r}, {self.tb!r})"

    def defang(self) -> None:
        """Call nothing any more."""
        self.cb = _ignore
        self.mark_as_closed()
        self.spent = True

    def on_ready(self, fileno: int) -> None:
        """Call back; by the clock, with the lock."""
        target = getattr(self.cb, "__self__", None)
        if isinstance(target, greenlet) and getattr(self.cb, "__func__", None) is greenlet.switch:
            self.fired = True
            if not _turns.resume(target, fileno):
                _waits.latch(target, fileno, self)
        else:
            _timer.Timer(0, self._call, fileno).expire()

    def _call(self, fileno: int) -> None:
        try:
            self.cb(fileno)
        finally:
            hub = self.hub
            with lock:
                if hub is not None and not self.spent and self in hub._registered:
                    bucket = hub._bucket(self.evtype)
                    if fileno not in bucket:
                        bucket[fileno] = self
                        _clock.clock.watch(fileno)


class DebugListener(FdListener):
    """One that remembers where it was made."""

    def __init__(self, *args: Any) -> None:
        self.where_called = "".join(traceback.format_stack(limit=12))
        super().__init__(*args)

    @override
    def __repr__(self) -> str:
        return f"{super().__repr__()}\n{self.where_called}"


def _nothing() -> None:
    """Do nothing."""


def _ignore(*_args: object) -> None:
    """Do nothing."""


def closed_callback(fileno: int) -> None:
    """What listeners of closed descriptors call."""


def alarm_handler(_signum: int, _frame: object) -> None:
    """Of the blocking detection."""
    raise RuntimeError("Blocking detector ALARMED at" + "".join(traceback.format_stack(limit=8)))


class BaseHub:
    """Timers and listeners."""

    SYSTEM_EXCEPTIONS = (KeyboardInterrupt, SystemExit)

    READ = READ
    WRITE = WRITE

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.clock = clock or time.monotonic
        self.greenlet = _greenlets.hub_greenlet
        self.stopping = False
        self.debug_exceptions = True
        self.debug_blocking = False
        self.debug_blocking_resolution: float = 1
        self.lclass: type[FdListener] = FdListener
        self.closed: list[FdListener] = []
        self.secondaries: dict[str, dict[int, list[FdListener]]] = {READ: {}, WRITE: {}}
        self._registered: set[FdListener] = set()

    # ---- descriptors ----------------------------------------------------------------------------

    def _bucket(self, evtype: str) -> dict[int, Any]:
        return _clock.clock.readers if evtype == READ else _clock.clock.writers

    @property
    def listeners(self) -> dict[str, dict[int, Any]]:
        """Those that wait, by what for and by descriptor."""
        return {READ: _clock.clock.readers, WRITE: _clock.clock.writers}

    def add(
        self,
        evtype: str,
        fileno: int,
        cb: Callable[..., Any],
        tb: Callable[..., Any],
        mark_as_closed: Callable[[], object] | None = None,
    ) -> FdListener:
        """Call *cb* with *fileno* when it is ready.

        :param tb: called with an exception when it is closed.
        :raises RuntimeError: another greenthread waits for the same already.
        """
        return self._register(self.lclass(evtype, fileno, cb, tb, mark_as_closed))

    def _register(self, listener: FdListener) -> FdListener:
        with lock:
            evtype, fileno, cb = listener.evtype, listener.fileno, listener.cb
            bucket = self._bucket(evtype)
            other = bucket.get(fileno)
            if other is not None:
                if g_prevent_multiple_readers:
                    raise RuntimeError(
                        f"Second simultaneous {evtype} on fileno {fileno} detected.  Unless you "
                        "really know what you're doing, make sure that only one greenthread can "
                        f"{evtype} any particular socket.  Consider using a pools.Pool. If you do "
                        "know what you're doing and want to disable this error, call "
                        "eventlet.debug.hub_prevent_multiple_readers(False) - "
                        f"MY THREAD={cb}; THAT THREAD={other}"
                    )
                self.secondaries[evtype].setdefault(fileno, []).append(listener)
                return listener
            bucket[fileno] = listener
            self._registered.add(listener)
            listener.hub = self
            try:
                _clock.clock.watch(fileno)
            except BaseException:
                bucket.pop(fileno, None)
                self._registered.discard(listener)
                raise
            return listener

    def remove(self, listener: FdListener) -> None:
        """Call *listener* no more."""
        with lock:
            listener.spent = True
            self._registered.discard(listener)
            evtype, fileno = listener.evtype, listener.fileno
            bucket, others = self._bucket(evtype), self.secondaries[evtype].get(fileno, [])
            if listener in others:
                others.remove(listener)
                if not others:
                    self.secondaries[evtype].pop(fileno, None)
                return
            current = bucket.get(fileno)
            if current is listener:
                del bucket[fileno]
            elif current is not None:
                return
            if others:
                following = others.pop(0)
                if not others:
                    self.secondaries[evtype].pop(fileno, None)
                bucket[fileno] = following
                self._registered.add(following)
            if current is listener or others or fileno in bucket:
                with contextlib.suppress(OSError, ValueError):
                    _clock.clock.watch(fileno)

    def _obsolete(self, fileno: int) -> list[FdListener]:
        found: list[FdListener] = []
        for evtype in (READ, WRITE):
            listener = self._bucket(evtype).pop(fileno, None)
            if listener is not None:
                found.append(listener)
            found += self.secondaries[evtype].pop(fileno, [])
        for listener in found:
            self._registered.discard(listener)
        _clock.clock.forget(fileno)
        return found

    def notify_close(self, fileno: int) -> None:
        """*fileno* was closed."""
        with lock:
            for listener in self._obsolete(fileno):
                listener.defang()
                self._throw(listener, IOClosed(errno.ENOTCONN, "Operation on closed file"))

    def mark_as_reopened(self, fileno: int) -> None:
        """*fileno* belongs to another file now."""
        self.notify_close(fileno)

    def remove_descriptor(self, fileno: int) -> None:
        """*fileno* is broken: its listeners are called."""
        with lock:
            for listener in self._obsolete(fileno):
                listener.on_ready(fileno)

    def close_one(self) -> None:
        """Nothing is left to close here: that is done at once."""

    @staticmethod
    def _throw(listener: FdListener, exception: BaseException) -> None:
        target = getattr(listener.tb, "__self__", None)
        if isinstance(target, greenlet):
            interrupt(target, exception)
        else:
            _timer.Timer(0, listener.tb, exception).expire()

    def get_readers(self) -> Any:
        """Listeners that wait to read."""
        return self.listeners[READ].values()

    def get_writers(self) -> Any:
        """Listeners that wait to write."""
        return self.listeners[WRITE].values()

    # ---- timers ---------------------------------------------------------------------------------

    @property
    def timers(self) -> list[tuple[float, Any]]:
        """Timers that wait, with their moments."""
        with lock:
            return [(due, entry) for due, _, entry in _clock.clock.heap if _is_timer(entry)]

    next_timers: tuple[()] = ()

    def get_timers_count(self) -> int:
        """Count what waits for its moment, cancelled timers included."""
        return len(_clock.clock.heap)

    @property
    def timers_canceled(self) -> int:
        """Count the timers that were cancelled and wait to be dropped."""
        return min(_clock.clock.dropped, len(_clock.clock.heap))

    def add_timer(self, timer: _timer.Timer) -> float:
        """Let *timer* wait; returns its moment."""
        return _timer.add(timer)

    def timer_canceled(self, _timer_: object) -> None:
        """A timer was cancelled: nothing is left to do."""

    def schedule_call_local(
        self, seconds: float, cb: Callable[..., Any], *args: Any, **kw: Any
    ) -> _timer.Timer:
        """Call *cb* in *seconds*, unless the calling greenthread has ended."""
        return _timer.call_local(seconds, cb, *args, **kw)

    def schedule_call_global(
        self, seconds: float, cb: Callable[..., Any], *args: Any, **kw: Any
    ) -> _timer.Timer:
        """Call *cb* in *seconds*."""
        return _timer.call_global(seconds, cb, *args, **kw)

    # ---- the loop -------------------------------------------------------------------------------

    def switch(self) -> Any:
        """Wait until something switches to the calling greenthread."""
        self.stopping = False
        return park()

    def ensure_greenlet(self) -> None:
        """The hub's greenlet always is."""

    @property
    def running(self) -> bool:
        """Whether there is anything that a greenthread may wait for."""
        return not self.stopping

    def abort(self, wait: bool = False) -> None:
        """End the loop, as far as that can be told: the main thread returns from ``switch()``.

        Timers and descriptors are served all the same.
        """
        del wait
        with lock:
            self.stopping = True
            main = _greenlets.main_greenlet()
            if main is not None and main.in_park:
                _turns.resume(main)

    def run(self, *_args: object) -> None:
        """Refused.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError(
            "osloxide serves eventlet from native threads: the hub's loop runs by itself; wait "
            "with eventlet.sleep() instead of running it"
        )

    def default_sleep(self) -> float:
        """Seconds that an idle hub sleeps."""
        return 60.0

    def sleep_until(self) -> float | None:
        """The moment of the nearest timer."""
        timers = self.timers
        return min(timers)[0] if timers else None

    # ---- debugging ------------------------------------------------------------------------------

    def set_debug_listeners(self, value: bool) -> None:
        """Let listeners remember where they were made."""
        self.lclass = DebugListener if value else FdListener

    def set_timer_exceptions(self, value: bool) -> None:
        """Print what callbacks and greenthreads raise, or do not."""
        self.debug_exceptions = value
        _interruption.report_exceptions = value

    def squelch_exception(self, _fileno: int, exc_info: Any) -> None:
        """Print an exception."""
        traceback.print_exception(*exc_info)
        sys.stderr.flush()

    def squelch_generic_exception(self, exc_info: Any) -> None:
        """Print an exception, if that is wanted."""
        if self.debug_exceptions:
            self.squelch_exception(-1, exc_info)

    def squelch_timer_exception(self, _timer: object, exc_info: Any) -> None:
        """Print an exception, if that is wanted."""
        self.squelch_generic_exception(exc_info)

    def block_detect_pre(self) -> None:
        """Arm the alarm of the blocking detection."""
        self._old_signal_handler = signal.signal(signal.SIGALRM, alarm_handler)
        signal.setitimer(signal.ITIMER_REAL, self.debug_blocking_resolution)

    def block_detect_post(self) -> None:
        """Disarm it."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._old_signal_handler)


def _is_timer(entry: object) -> bool:
    return isinstance(entry, _timer.Timer)
