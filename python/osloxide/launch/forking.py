"""What has to hold around ``os.fork()`` in a parent of workers.

Owns the check that no native thread runs, the warning about other threads, and the pause of
logging: a thread that is in the middle of a record holds the lock of its stream,
which CPython resets in the child for the standard streams only (a log file stays locked there for
ever). The locks of ``logging`` itself are reset by its own at-fork hooks. Forks nothing.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from osloxide import exceptions
from osloxide.launch import orphans

LOG = logging.getLogger(__name__)

_NATIVE_THREAD_PREFIX = "osloxide"
_gc_is_frozen = False

PATIENCE = 1.0
"""Seconds that a fork waits for handlers in all; one that is stuck longer keeps its risk."""


@contextlib.contextmanager
def logging_paused() -> Iterator[None]:
    """Hold the locks of all handlers, so that none is in the middle of a record.

    In the child nothing is given back: ``logging`` has made new locks there by then.
    """
    parent, deadline, held = os.getpid(), time.monotonic() + PATIENCE, []
    handlers = (reference() for reference in list(logging._handlerList))  # type: ignore[attr-defined]
    for handler in handlers:
        lock = getattr(handler, "lock", None)
        if lock is not None and lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            held.append(lock)
    try:
        yield
    finally:
        if os.getpid() == parent:
            for lock in reversed(held):
                lock.release()


def prepare() -> None:
    """Check that a fork is sound, and keep the collector from copying every page in the child."""
    global _gc_is_frozen
    native = _native_threads()
    if native:
        raise exceptions.ForkAfterThreadsError(
            f"cannot fork a worker: native threads run in this process already "
            f"({', '.join(native)}); launch services before starting servers or executors"
        )
    if _gc_is_frozen:
        return
    if os.getpid() == 1:
        orphans.remember()
    gc.freeze()
    _gc_is_frozen = True
    others = [
        thread.name for thread in threading.enumerate() if thread is not threading.current_thread()
    ]
    if others:
        LOG.warning(
            "Forking workers while %d other threads run (%s): a lock that one of them holds now "
            "stays locked in the worker for ever; start threads in the service's start()",
            len(others),
            ", ".join(sorted(others)),
        )


def _native_threads() -> list[str]:
    """Names of this process' threads that the native core started."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        # The main thread is called as the program is: "osloxide", for one.
        if task.name != str(os.getpid()):
            with contextlib.suppress(OSError):
                names.append((task / "comm").read_text().strip())
    return sorted(name for name in names if name.startswith(_NATIVE_THREAD_PREFIX))
