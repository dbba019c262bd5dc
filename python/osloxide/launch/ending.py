"""The end of a process whose services have stopped: bounded, whatever the application left behind.

Owns what happens between the last ``stop()`` and the end of the process: threads that are no
daemons and exit functions of the application run to their end, and a deadline cuts off those that
never do.
The deadline is native, so it needs neither the interpreter nor the log. Never stops a service.

Rules: docs/lifecycle.md, "The end of a process"; threading and atexit (Python library reference).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import weakref
from typing import Any, NoReturn

from osloxide import _native
from osloxide.signals import careful_log
from osloxide.threads import at_end, forked, own

LOG = careful_log.logger(__name__)

WITHOUT_GRACE = 60.0
"""Seconds that code after ``wait()``, and threads and exit functions of a worker, get when the
grace period is "for ever"."""

AT_EXIT = 5.0
"""Seconds that threads and exit functions of a process without workers get once its main thread has
ended."""

NATIVE_MARGIN = 0.25
"""Seconds after a deadline at which the native core ends a process that could not do it itself,
because something holds the interpreter or the log."""

_PATIENT = 1.0
"""Seconds of an end during which another SIGTERM changes nothing."""


class _End:
    """The end of this process, from the moment when nothing but the application holds it up."""

    def __init__(self, status: int, seconds: float) -> None:
        self.status = status
        self.began = time.monotonic()
        self.deadline = self.began + seconds
        self.changed = threading.Condition()
        self.is_taken_back = False
        is_bounded = self.arm()
        try:
            own.start("service end", self._watch)
        except RuntimeError:
            bounded = "bounded, but nothing will say why" if is_bounded else "not bounded"
            LOG.debug("The end of this process is %s", bounded, exc_info=True)

    def arm(self) -> bool:
        """Arm the native deadline.

        :returns: False where the system gives no thread for it: that of this room is left.
        """
        left = max(0.0, self.deadline - time.monotonic())
        try:
            _native.arm_deadline(left + NATIVE_MARGIN, self.status)
        except OSError:
            return False
        return True

    def shorten(self, seconds: float) -> None:
        self.deadline = min(self.deadline, time.monotonic() + seconds)
        self.arm()
        with self.changed:
            self.changed.notify_all()

    def _watch(self) -> None:
        with self.changed:
            while not self.is_taken_back and (left := self.deadline - time.monotonic()) > 0:
                self.changed.wait(min(left, threading.TIMEOUT_MAX))
            if self.is_taken_back:
                return
        self.cut_off()

    def cut_off(self) -> NoReturn:
        try:
            # The log may be what holds up the end.
            with contextlib.suppress(OSError):
                _native.arm_deadline(NATIVE_MARGIN, self.status)
            LOG.warning(
                "Process %d is still there %.1f s after its services have stopped: %s; "
                "exiting with status %d",
                os.getpid(),
                time.monotonic() - self.began,
                what_is_left(),
                self.status,
            )
        finally:
            leave(self.status)


_end: _End | None = None


def begin(status: int, seconds: float) -> None:
    """The services have stopped because a signal asked for it: the process has to end now.

    :param status: exit status of a process that is cut off.
    :param seconds: how long the rest of the main thread may take; once it has ended, what is left
        gets :data:`AT_EXIT` seconds. 0 means :data:`WITHOUT_GRACE`.
    """
    global _end
    take_back()
    _end = _End(status, seconds or WITHOUT_GRACE)


def take_back() -> None:
    """The process goes on with something else, a new launcher for one."""
    global _end
    end, _end = _end, None
    if end is not None:
        with end.changed:
            end.is_taken_back = True
            end.changed.notify_all()
        _native.disarm_deadline()


def has_begun() -> bool:
    """Whether the process has to end, and has not been taken back."""
    return _end is not None


def cut_short() -> None:
    """Another SIGTERM: end now what has been ending for a while. Does nothing before an end."""
    if _end is not None and time.monotonic() - _end.began >= _PATIENT:
        _end.cut_off()


def _main_thread_has_ended() -> None:
    if _end is not None:
        _end.shorten(AT_EXIT)


# Called before threads are joined; exit functions run after that.
_register = getattr(threading, "_register_atexit", atexit.register)
_register(_main_thread_has_ended)


def what_is_left() -> str:
    """What keeps a process alive whose services have stopped, for the log."""
    threads = [thread.name for thread in own.of_application() if not thread.daemon]
    pools = [
        thread.name
        for thread in own.of_application()
        if thread.daemon and thread.name.startswith("ThreadPoolExecutor")
    ]
    names = sorted({*threads, *pools})
    if names:
        return f"threads still run: {', '.join(names)}"
    return "the main thread has not come to its end, or an exit function has not returned"


def enter_worker() -> None:
    """In a forked worker: forget what is to happen at the end of its parent."""
    global _end
    _end = None
    # Exit functions of the parent are the parent's: they remove its files and stop its children.
    atexit._clear()
    finalizers: Any = weakref.finalize
    for finalizer in list(finalizers._registry):
        finalizer.atexit = False
    finalizers._registered_with_atexit = False
    children = getattr(sys.modules.get("multiprocessing.process"), "_children", None)
    if children is not None:
        children.clear()


def run_exit_functions() -> None:
    """In a worker: do what the interpreter does at its end, short of ending itself.

    Threads that are no daemons are awaited, then exit functions run, then daemonic children end.
    """
    shutdown = getattr(threading, "_shutdown", None)
    if shutdown is not None:
        with _logged("threads"):
            shutdown()
    with _logged("exit functions"):
        atexit._run_exitfuncs()
    at_end.end_all()  # the parent registered it, and the worker has forgotten that
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        with _logged("children"):
            util._exit_function()


@contextlib.contextmanager
def _logged(what: str) -> Any:
    try:
        yield
    except BaseException:
        LOG.exception("An error at the end of this worker: %s", what)


def leave(status: int) -> NoReturn:
    """End this process now, after its log and its output were written.

    Nothing above runs: no ``finally``, no exit function. Daemonic children are ended.
    """
    try:
        at_end.tell_cut_off()
        for child in tuple(getattr(sys.modules.get("multiprocessing.process"), "_children", ())):
            with contextlib.suppress(BaseException):
                if child.daemon:
                    child.kill()
    finally:
        forked.leave(status)
