"""Carriers: native threads that run greenlets, one after the other.

Owns the threads and the few of them that wait for the next greenlet. Making a native thread costs
several times what waking one does. Knows nothing of turns; what it runs is a function. A function
finds nothing that an earlier one has left on its thread: no ``threading.local`` data, no context
variables, no trace function.

Rules: threading.local and contextvars (Library Reference) for what a new thread begins with.
"""

from __future__ import annotations

import _thread
import contextvars
import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from osloxide import _native
from osloxide.threads import pausing

KEPT = 64
"""How many threads wait for work at most; more than that end when their function does."""

LINGER = 5.0
"""Seconds that a thread waits for work before it ends."""

_idle: list[_Carrier] = []
"""The last to come is the first to go: its stack is still in the processor's cache."""


def run(function: Callable[[], None]) -> None:
    """Call *function*, which must not raise, on a thread of its own until it returns.

    Called with the lock of the turns. The function begins at some time after this returns.

    :raises RuntimeError: the system has no thread for it now.
    """
    try:
        carrier = _idle.pop()
    except IndexError:
        _thread.start_new_thread(_Carrier(function).live, ())
        return
    carrier.function = function
    carrier.bell.release()


class _Carrier:
    """One native thread."""

    __slots__ = ("bell", "function")

    def __init__(self, function: Callable[[], None]) -> None:
        self.function: Callable[[], None] | None = function
        self.bell: Any = _thread.allocate_lock()
        self.bell.acquire()

    def live(self) -> None:
        """The whole life of the thread."""
        while self.function is not None:
            function, self.function = self.function, None
            contextvars.Context().run(function)
            del function
            if not self._wait():
                return

    def _wait(self) -> bool:
        """Wait for the next function; False when the thread is to end."""
        if len(_idle) >= KEPT:
            return False
        if sys.gettrace() is not None:
            sys.settrace(None)
        if sys.getprofile() is not None:
            sys.setprofile(None)
        if not _native.forget_thread_data():
            return False
        _idle.append(self)
        if self.bell.acquire(timeout=LINGER):
            return True
        try:
            _idle.remove(self)
        except ValueError:
            self.bell.acquire()  # taken just now
            return True
        return False


def _forget() -> None:
    """A forked child has the calling thread alone."""
    _idle.clear()


os.register_at_fork(after_in_child=_forget)

_WAITS_HERE = __name__.rpartition(".")[0]
"""The package in which greenlets wait for their turn, and carriers for the next greenlet."""


def _are_parked() -> bool:
    """Whether every carrier waits in this package, and none in a system call of the service's."""
    current = _thread.get_ident()
    return all(
        ident == current or not _is_between_waits(frame)
        for ident, frame in sys._current_frames().items()
    )


def _is_between_waits(top: FrameType) -> bool:
    if str(top.f_globals.get("__name__")).startswith(f"{_WAITS_HERE}."):
        return False
    bottom = top
    while bottom.f_back is not None:
        bottom = bottom.f_back
    return bottom.f_code is _Carrier.live.__code__


pausing.serve(_are_parked)
