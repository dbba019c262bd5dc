"""What has to hold around ``os.fork()`` in a parent of workers.

Owns the pause of logging: a thread that is in the middle of a record holds the lock of its stream,
which CPython resets in the child for the standard streams only (a log file stays locked there for
ever). The locks of ``logging`` itself are reset by its own at-fork hooks. Forks nothing.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator

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
