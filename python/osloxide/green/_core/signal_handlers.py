"""``signal.signal()`` and ``signal.set_wakeup_fd()`` of greenthreads.

All greenthreads of eventlet are on the main thread, the only one on which CPython lets programs
set signal handlers; here they are threads of their own. Owns the way of these two calls there and
back: a signal of its own, whose handler runs on the main thread in almost any wait, also in those
that are none of eventlet's (``Thread.join()``, a plain lock). Handlers still run on the main thread
alone. Neither waits nor takes a lock on the main thread, which may be anywhere.
Rules: Python's documentation of :mod:`signal`.
"""

from __future__ import annotations

import _thread
import collections
import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from osloxide.green import patcher
from osloxide.green._core import turns as _turns
from osloxide.threads import inherited

CARRIER = signal.SIGRTMAX - 1
"""No program that was looked at uses it; its default would end the process."""

PATIENCE = 5.0
"""Seconds that the main thread gets to run a handler."""

_FIRST_PAUSE = 0.005
"""Seconds until the signal is sent again; doubled each time."""


class _Call:
    """One call, made on the main thread for another one."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
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


_calls: collections.deque[_Call] = collections.deque()


def _make_all(signo: int, frame: Any) -> None:
    """The handler, on the main thread."""
    del signo, frame
    while _calls:
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


def _forget() -> None:
    """In a forked child nobody waits for the calls of its parent."""
    inherited.keep(list(_calls))
    _calls.clear()


os.register_at_fork(after_in_child=_forget)


def _is_green() -> bool:
    """Whether the calling thread would be a greenthread of the main thread with eventlet."""
    return _turns.local.carrier is not None or patcher.requested.get("thread", False)


def _is_made(asked: _Call, main: int) -> bool:
    """Send *main* the signal until the call is made, or its time is over.

    A signal that comes in the instant before a thread begins to wait for a lock does not end that.
    """
    pause, deadline = _FIRST_PAUSE, time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        signal.pthread_kill(main, CARRIER)
        if asked.made.acquire(timeout=pause):
            return True
        pause *= 2
    return False


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


def serve() -> None:
    """Let greenthreads set signal handlers from now on; on the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(CARRIER) is not signal.SIG_DFL:
        return
    signal.signal(CARRIER, _make_all)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {CARRIER})
    signal.signal = _on_main_thread(signal.signal)
    signal.set_wakeup_fd = _on_main_thread(signal.set_wakeup_fd)
