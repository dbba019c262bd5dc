"""Warnings about an application that takes long to load, or never comes back from it.

Owns the thread that watches while ``osloxide serve`` loads an application in a worker. Ends
nothing: an import may wait for a database that comes up late, and ``--timeout`` replaces a worker
that has not started in time.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

LOG = logging.getLogger("osloxide.serve")

PATIENCE = 30.0
"""Seconds after which the first warning comes; each next one comes after twice the time."""


@contextlib.contextmanager
def watched(application: str, patience: float = PATIENCE) -> Iterator[None]:
    """Warn as long as this thread stays inside, and say where it is.

    :param application: what is being loaded, for the warning.
    :param patience: seconds until the first warning.
    """
    from osloxide.threads import own

    loader, begin, is_over = threading.get_ident(), time.monotonic(), threading.Event()

    def watch() -> None:
        pause = patience
        while not is_over.wait(pause):
            frame = sys._current_frames().get(loader)
            if frame is None or is_over.is_set():
                return
            LOG.warning(
                "%s is not loaded after %.0f s: %s; nothing is served by this process until it is",
                application,
                time.monotonic() - begin,
                _place(frame),
            )
            pause *= 2

    own.start("import watch", watch)
    try:
        yield
    finally:
        is_over.set()


def _place(frame: FrameType) -> str:
    """Where *frame* is, and which module's import it belongs to."""
    where = f"at {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
    outer: FrameType | None = frame
    while outer is not None:
        if outer.f_code.co_name == "<module>" and "importlib" not in outer.f_code.co_filename:
            name = outer.f_globals.get("__name__", "?")
            return f"the import of {name} is {where}"
        outer = outer.f_back
    return f"it is {where}"
