"""``signal.signal()`` and ``signal.set_wakeup_fd()`` of greenthreads, and when handlers run.

All greenthreads of eventlet are on the main thread, the only one on which CPython lets programs
set signal handlers; here they are threads of their own. Owns the way of these two calls there and
back: a signal of its own, whose handler runs on the main thread in almost any wait, also in those
that are none of eventlet's (``Thread.join()``, a plain lock). Handlers still run on the main thread
alone. Neither waits on the main thread, which may be anywhere, nor takes a lock there but that of
the turns.

Owns as well that no handler runs while the main thread hands the baton on: one that raises there
would cost another greenthread its turn. It runs as soon as that is over. ``signal.signal()`` and
``signal.getsignal()`` speak of the handlers as the program gave them.
Rules: Python's documentation of :mod:`signal`.
"""

from __future__ import annotations

import _thread
import collections
import contextlib
import functools
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from osloxide._typing import override
from osloxide.green import patcher
from osloxide.green._core import carriers
from osloxide.green._core import turns as _turns
from osloxide.threads import inherited

CARRIER = signal.SIGRTMAX - 1
"""No program that was looked at uses it; its default would end the process."""

PATIENCE = 5.0
"""Seconds that the main thread gets to run a handler."""

BEARABLE = 1.0
"""Seconds that a handler is put off at most: what computes for longer is not between two steps."""

_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.5
"""Seconds until the signal is sent again; doubled each time."""


class _Call:
    """One call, made on the main thread for another one."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
        self.bearable_until = time.monotonic() + BEARABLE
        self.failure: BaseException | None = None
        self.made = _thread.allocate_lock()
        self.made.acquire()

    def make(self) -> None:
        try:
            self._result = self._function()
        except Exception as failure:  # noqa: BLE001 - the caller's
            self.failure = failure

    def outcome(self) -> Any:
        if self.failure is not None:
            raise self.failure
        return self._result


class _Delivery(_Call):
    """The call of a handler that was put off; what it raises is the main thread's."""

    @override
    def make(self) -> None:
        self._function()


class _Handler:
    """A handler as CPython has it: it is put off while the main thread hands the baton on."""

    def __init__(self, handler: Callable[..., Any]) -> None:
        self.__wrapped__ = handler

    def __call__(self, signo: int, frame: Any) -> None:
        if not _turns.is_in_between():
            self.__wrapped__(signo, frame)
            return
        delivery = _Delivery(functools.partial(self.__wrapped__, signo, frame))
        _calls.append(delivery)
        try:
            # A child that is forked now has no such thread, as CPython forgets signals there.
            with _turns.lock:
                carriers.run(functools.partial(_deliver, delivery, _thread.get_ident()))
        except RuntimeError:
            _calls.remove(delivery)
            self.__wrapped__(signo, frame)


_calls: collections.deque[_Call] = collections.deque()


def _make_all(signo: int, frame: Any) -> None:
    """The handler, on the main thread."""
    del signo, frame
    while _calls and not _must_wait():
        taken: list[_Call] = []
        try:
            # One call of C code: the handler of another signal, which may raise KeyboardInterrupt,
            # runs before or after it. The deque is empty where the caller has just given up.
            with contextlib.suppress(IndexError):
                taken.extend(map(collections.deque.popleft, (_calls,)))
            for asked in taken:
                asked.make()
        except BaseException as interruption:
            for asked in taken:
                asked.failure = interruption
            raise
        finally:
            for asked in taken:
                asked.made.release()


def _must_wait() -> bool:
    """Whether the main thread is not to be interrupted now; the signal is sent again."""
    if not _turns.is_in_between():
        return False
    try:
        return time.monotonic() < _calls[0].bearable_until
    except IndexError:
        return True  # the caller has just given up


def _forget() -> None:
    """In a forked child nobody waits for the calls of its parent."""
    inherited.keep(list(_calls))
    _calls.clear()


os.register_at_fork(after_in_child=_forget)


def _is_green() -> bool:
    """Whether the calling thread would be a greenthread of the main thread with eventlet."""
    return _turns.local.carrier is not None or patcher.requested.get("thread", False)


def _is_made(asked: _Call, main: int, patience: float = PATIENCE) -> bool:
    """Send *main* the signal until the call is made, or its time is over.

    A signal that comes in the instant before a thread begins to wait for a lock does not end that.
    """
    pause, deadline = _FIRST_PAUSE, time.monotonic() + patience
    # Where the handler is gone the signal would end the process.
    while time.monotonic() < deadline and signal.getsignal(CARRIER) is _make_all:
        signal.pthread_kill(main, CARRIER)
        if asked.made.acquire(timeout=pause):
            return True
        pause = min(2 * pause, _LONGEST_PAUSE)
    return False


def _deliver(delivery: _Delivery, main: int) -> None:
    """Have *main* call the handler as soon as it can bear it."""
    if _turns.lock.acquire(timeout=BEARABLE):  # mostly *main* has it, and not for long
        _turns.lock.release()
    _is_made(delivery, main, math.inf)


def _on_main_thread(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        main = threading.main_thread().ident
        # Where the handler is gone the signal would end the process; CPython's own error says why.
        if (
            main in (None, _thread.get_ident())
            or not _is_green()
            or signal.getsignal(CARRIER) is not _make_all
        ):
            return function(*args, **kwargs)
        asked = _Call(functools.partial(function, *args, **kwargs))
        _calls.append(asked)
        if not _is_made(asked, main):
            try:
                _calls.remove(asked)
            except ValueError:
                asked.made.acquire()  # the main thread has just begun with it
            else:
                return function(*args, **kwargs)
        return asked.outcome()

    return call


def _plain(handler: Any) -> Any:
    """The handler that the program gave."""
    return handler.__wrapped__ if isinstance(handler, _Handler) else handler


def _put_off(handler: Any) -> Any:
    """What CPython gets for it; SIG_IGN and SIG_DFL, and what is refused, stay as they are."""
    return _Handler(handler) if callable(handler) else handler


def _putting_off(set_handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(set_handler)
    def set_put_off(signalnum: int, handler: Any) -> Any:
        return _plain(set_handler(signalnum, _put_off(handler)))

    return set_put_off


def _telling_plainly(get_handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(get_handler)
    def get_plain(signalnum: int) -> Any:
        return _plain(get_handler(signalnum))

    return get_plain


def serve() -> None:
    """Let greenthreads set handlers from now on, and handlers wait; on the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(CARRIER) is not signal.SIG_DFL:
        return
    signal.signal(CARRIER, _make_all)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {CARRIER})
    for signo in signal.valid_signals() - {CARRIER}:
        if callable(handler := signal.getsignal(signo)):
            signal.signal(signo, _put_off(handler))
    signal.getsignal = _telling_plainly(signal.getsignal)
    signal.signal = _on_main_thread(_putting_off(signal.signal))
    signal.set_wakeup_fd = _on_main_thread(signal.set_wakeup_fd)
