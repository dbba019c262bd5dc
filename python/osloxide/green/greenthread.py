"""``eventlet.greenthread``: functions that run beside each other, each on a native thread.

A greenthread begins when its maker waits. Its thread is its own from beginning to end, so nothing
thread-local of one greenthread is seen by another. Rules: eventlet.greenthread.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

from osloxide._typing import override
from osloxide.green import event, hubs, support, timeout
from osloxide.green._core import clock as _clock
from osloxide.green._core import greenlets as _greenlets
from osloxide.green._core import interruption as _interruption
from osloxide.green._core import lending as _lending
from osloxide.green._core import signal_handlers as _signal_handlers
from osloxide.green._core import turns as _turns
from osloxide.green._core import waits as _waits
from osloxide.green._core.greenlets import getcurrent, greenlet
from osloxide.green._core.turns import lock
from osloxide.green.hubs import timer
from osloxide.threads import forked as _forked
from osloxide.threads import main_thread as _main_thread

__all__ = [
    "GreenThread",
    "getcurrent",
    "kill",
    "sleep",
    "spawn",
    "spawn_after",
    "spawn_after_local",
    "spawn_n",
]


_PAUSE_COMES = 1.0
"""Seconds that :func:`kill` waits, with the handover ``free``, for one that does not wait again."""


def sleep(seconds: float = 0) -> None:
    """Let others go on for *seconds*; 0 lets those go first whose turn has come."""
    if _greenlets.is_hub(getcurrent()):
        if seconds <= 0:
            return
        raise RuntimeError("do not call blocking functions from the mainloop")
    if seconds <= 0:
        _waits.yield_turn()
        return
    with lock:
        me = _waits.suspend()
        wake = _waits.Wake(me)
        _clock.clock.add(seconds, wake)
    try:
        _waits.await_turn(me)
    finally:
        if not wake.called:
            with lock:
                _clock.clock.drop(wake)


def spawn(func: Callable[..., Any], *args: Any, **kwargs: Any) -> GreenThread:
    """Run *func* in a greenthread, whose ``wait()`` returns its result."""
    hub = hubs.get_hub()
    _waits.hold()
    g = GreenThread(hub.greenlet)
    hub.schedule_call_global(0, g.switch, func, args, kwargs)
    return g


def spawn_n(func: Callable[..., Any], *args: Any, **kwargs: Any) -> greenlet:
    """Run *func* in a greenthread of whose result nothing is kept; what it raises is printed."""
    _waits.hold()
    return _spawn_n(0, func, args, kwargs)[1]


def spawn_after(seconds: float, func: Callable[..., Any], *args: Any, **kwargs: Any) -> GreenThread:
    """Run *func* in a greenthread that begins in *seconds*; until then it costs no thread."""
    hub = hubs.get_hub()
    if seconds <= 0:
        _waits.hold()
    g = GreenThread(hub.greenlet)
    g.start_timer = hub.schedule_call_global(seconds, g.switch, func, args, kwargs)
    return g


def spawn_after_local(
    seconds: float, func: Callable[..., Any], *args: Any, **kwargs: Any
) -> GreenThread:
    """As :func:`spawn_after`, unless the calling greenthread has ended by then."""
    hub = hubs.get_hub()
    g = GreenThread(hub.greenlet)
    g.start_timer = hub.schedule_call_local(seconds, g.switch, func, args, kwargs)
    return g


def call_after_global(seconds: float, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The old name of :func:`spawn_after`; returns the timer."""
    warnings.warn(
        "call_after_global is renamed to spawn_after, which has the same signature and semantics "
        "(plus a bit extra).",
        DeprecationWarning,
        stacklevel=2,
    )
    return _spawn_n(seconds, func, args, kwargs)[0]


def call_after_local(
    seconds: float, function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """The old name of :func:`spawn_after_local`; returns the timer."""
    warnings.warn(
        "call_after_local is renamed to spawn_after_local, which has the same signature and "
        "semantics (plus a bit extra).",
        DeprecationWarning,
        stacklevel=2,
    )
    hub = hubs.get_hub()
    g = greenlet(function, parent=hub.greenlet)
    return hub.schedule_call_local(seconds, g.switch, *args, **kwargs)


call_after = call_after_local


def exc_after(seconds: float | None, *throw_args: Any) -> Any:
    """The old way to make a timeout; returns the timer."""
    warnings.warn(
        "Instead of exc_after, which is deprecated, use Timeout(seconds, exception)",
        DeprecationWarning,
        stacklevel=2,
    )
    if seconds is None:
        return timer.Timer(0, lambda: None)
    return hubs.get_hub().schedule_call_local(seconds, getcurrent().throw, *throw_args)


TimeoutError = support.wrap_deprecated("greenthread.TimeoutError", "Timeout")(timeout.Timeout)
with_timeout = support.wrap_deprecated("greenthread.with_timeout", "with_timeout")(
    timeout.with_timeout
)


def _spawn_n(
    seconds: float, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[timer.Timer, greenlet]:
    hub = hubs.get_hub()
    g = greenlet(func, parent=hub.greenlet)
    return hub.schedule_call_global(seconds, g.switch, *args, **kwargs), g


class GreenThread(greenlet):
    """A greenthread whose result can be waited for. :func:`spawn` makes them."""

    def __init__(self, parent: greenlet) -> None:
        super().__init__(self.main, parent)
        self._exit_event = event.Event()
        self._resolving_links = False
        self._exit_funcs: collections.deque[Any] | None = None

    def __await__(self) -> Any:
        """Refused: there is no asyncio hub.

        :raises RuntimeError: always.
        """
        raise RuntimeError(
            "This API only works with eventlet's asyncio hub, which osloxide does not have; call "
            "wait() in a thread (asyncio.to_thread), or run on the real eventlet with "
            "OSLOXIDE_EVENTLET=real"
        )

    def wait(self) -> Any:
        """Wait until it has ended.

        :returns: what its function returned.
        :raises BaseException: what it raised; GreenletExit when it was killed.
        """
        return self._exit_event.wait()

    def link(self, func: Callable[..., Any], *curried_args: Any, **curried_kwargs: Any) -> None:
        """Call *func* with this greenthread and the arguments, in it, once it has ended."""
        with lock:
            if self._exit_funcs is None:
                self._exit_funcs = collections.deque()
            self._exit_funcs.append((func, curried_args, curried_kwargs))
        if self._exit_event.ready():
            self._resolve_links()

    def unlink(self, func: Callable[..., Any], *curried_args: Any, **curried_kwargs: Any) -> bool:
        """Take a :meth:`link` back; False when there is no such."""
        with lock:
            try:
                functions: Any = self._exit_funcs or []
                functions.remove((func, curried_args, curried_kwargs))
            except ValueError:
                return False
            return True

    def main(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """What its thread runs."""
        try:
            # Not around main(): a child that *function* has forked calls no link of its parent.
            result = _forked.call(function, *args, **kwargs)
            _interruption.settle()
        except BaseException:
            self._exit_event.send_exception(*sys.exc_info())
            self._resolve_links()
            raise
        else:
            self._exit_event.send(result)
            self._resolve_links()

    def _never_begun(self, exception: BaseException) -> None:
        """It was killed first."""

        def refuse() -> None:
            raise exception

        # Those that wait have got it, and what links raise is lost.
        with contextlib.suppress(BaseException):
            self.main(refuse, (), {})

    @override
    def _end_in_child(self) -> None:
        """Who waits for it in the child gets GreenletExit; its links are its own and not called."""
        if not self._exit_event.ready():
            self._exit_event._waiters.clear()
            self._exit_event.send_exception(_interruption.GreenletExit())

    def _resolve_links(self) -> None:
        while True:
            with lock:
                if self._resolving_links or not self._exit_funcs:
                    return
                self._resolving_links = True
                function, args, kwargs = self._exit_funcs.popleft()
            try:
                function(self, *args, **kwargs)
            finally:
                self._resolving_links = False

    def kill(self, *throw_args: Any) -> Any:
        """See :func:`kill`."""
        return kill(self, *throw_args)

    def cancel(self, *throw_args: Any) -> Any:
        """See :func:`cancel`."""
        return cancel(self, *throw_args)


def cancel(g: greenlet, *throw_args: Any) -> None:
    """:func:`kill` it, if it has not begun."""
    if not g:
        kill(g, *throw_args)


def kill(g: greenlet, *throw_args: Any) -> None:
    """Raise an exception in *g* where it waits, GreenletExit unless *throw_args* say another.

    One that has not begun never does. The caller goes on when *g* has ended or waits again; one
    that computes, or is inside foreign C code, is not waited for: it gets the exception within
    about 20 ms, or once that returns.
    """
    if g.dead:
        return
    current = getcurrent()
    exception = _interruption.normalize(*throw_args)
    if g is current:
        raise exception
    if not _greenlets.is_hub(current):
        _waits.hold()
    with lock:
        unborn = not g and not g.dead
        paused = None
        if unborn:
            _interruption.withdraw(g)
        else:
            if not _greenlets.is_hub(current):
                paused = _waits.next_pause(g)
            _interruption.interrupt(g, exception, front=True)
    if unborn:
        _interruption.bury(g, exception)
    if not _greenlets.is_hub(current):
        if paused is not None:
            paused.acquire(timeout=_PAUSE_COMES)
        _waits.yield_turn()


_main_thread.serve(_lending.lend)
_signal_handlers.serve()
if _turns.HANDOVER == "strict":  # it imports ssl and more, which others need not have
    from osloxide.green import patcher as _patcher
    from osloxide.green._core import blocking_calls as _blocking_calls

    _patcher.when_asked.append(_blocking_calls.serve)
