"""Native threads as Python's own: :class:`PoolThread` is what ``threading`` knows of each.

Owns the entry of a thread that Rust started into threading's list, its way out, and what becomes of
one that forks. Starts and stops nothing. Without it such a thread would be a ``_DummyThread``:
nameless to debuggers, refused by ``join()`` and alive for ever.
Rules: the contract of ``threading.Thread``; Lib/threading.py for what its list holds.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from osloxide._typing import override


class PoolThread(threading.Thread):
    """A thread of an executor. Python code meets it as ``threading.current_thread()``.

    :param name: what it is called in logs and debuggers.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._left = threading.Event()
        self._process = os.getpid()

    @override
    def start(self) -> None:
        """Refused: it runs already.

        :raises RuntimeError: always.
        """
        raise RuntimeError("threads can only be started once")

    @override
    def is_alive(self) -> bool:
        """Whether it still runs Python code, in this process."""
        return self._process == os.getpid() and not self._left.is_set()

    @override
    def join(self, timeout: float | None = None) -> None:
        """Wait until it has left.

        :param timeout: seconds; None waits for ever.
        :raises RuntimeError: called by the thread itself.
        """
        if self is threading.current_thread():
            raise RuntimeError("cannot join current thread")
        if self.is_alive():
            self._left.wait(timeout)

    def enter(self) -> None:
        """Take the calling thread's place in threading's list."""
        internals: Any = self
        internals._set_ident()
        internals._set_native_id()
        internals._started.set()
        ident = threading.get_ident()
        self._have_handle(ident)
        threading._active[ident] = self  # type: ignore[attr-defined]

    def _have_handle(self, ident: int) -> None:
        """Name the thread in the handle that ``threading`` has since CPython 3.13.

        In a child ``threading`` compares the two before it does anything else.
        """
        make_handle = getattr(threading, "_make_thread_handle", None)
        if make_handle is not None:
            is_named = hasattr(self, "_os_thread_handle")  # since CPython 3.14
            setattr(self, "_os_thread_handle" if is_named else "_handle", make_handle(ident))

    def leave(self) -> None:
        """Give the place up. The last thing that the thread does in Python."""
        threading._active.pop(self.ident, None)  # type: ignore[attr-defined]
        self._left.set()


def register_thread(name: str, kind: type[PoolThread] = PoolThread) -> threading.Thread:
    """Make the calling native thread one of Python's; ``leave()`` of the result ends that.

    Tracing and profiling functions for new threads are set as ``threading.Thread`` would.

    :param kind: the class of what ``threading`` then has of it.
    """
    import sys

    thread = kind(name)
    thread.enter()
    if (trace := threading.gettrace()) is not None:
        sys.settrace(trace)
    if (profile := threading.getprofile()) is not None:
        sys.setprofile(profile)
    return thread


def _become_main() -> None:
    """In a forked child the thread that has forked is the main one.

    At its end ``threading`` expects of a main thread what only its own threads have.
    """
    if isinstance(threading.main_thread(), PoolThread):
        internals: Any = threading
        internals._main_thread = internals._MainThread()


os.register_at_fork(after_in_child=_become_main)
