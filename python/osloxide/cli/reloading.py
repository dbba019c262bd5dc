"""``osloxide serve --reload``: a worker notices that code which it has loaded was changed.

Owns the list of files and how they are compared. Decides nothing about processes: it asks the
parent for a reload, once, and the parent replaces the workers one by one. The parent itself watches
nothing: it has loaded no application, and must stay without threads. Compares times and sizes once
a second; for development, where that costs nothing that matters and works on every file system.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import signal
import struct
import sys
import time
from typing import TYPE_CHECKING

from osloxide.threads import own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PERIOD = 1.0
"""Seconds between two looks."""

_TIME = struct.Struct("d")

Stamp = tuple[int, int]

_ABSENT: Stamp = (0, -1)


class Reloader:
    """Made before the fork, so that all workers know when a reload was last asked for.

    :param extra: further files to watch; one that is not there yet is changed when it appears.
    :param modules: whether to watch what was loaded.
    """

    def __init__(self, extra: Iterable[str] = (), *, modules: bool = True) -> None:
        self._modules = modules
        self._extra = tuple(os.path.abspath(path) for path in extra)
        self._memfd = os.memfd_create("osloxide-reload")
        os.ftruncate(self._memfd, _TIME.size)
        self._asked_at = mmap.mmap(self._memfd, _TIME.size)

    def watch(self) -> None:
        """Start watching, on a thread of this worker, what it has loaded and will load."""
        files = Files(self._paths)
        loaded_at = time.monotonic()

        def run() -> None:
            while (changed := files.changed()) is None:
                time.sleep(PERIOD)
            if self._is_first(loaded_at):
                logging.getLogger("osloxide.serve").info("%s changed; reloading", changed)
                os.kill(os.getppid(), signal.SIGHUP)

        own.start("reload", run)

    def _is_first(self, loaded_at: float) -> bool:
        """Whether no worker has asked since *loaded_at*; if so, this one has from now on.

        A worker that is older than the last reload is about to be replaced anyway.
        """
        fcntl.lockf(self._memfd, fcntl.LOCK_EX)  # a lock of the process, and its end frees it
        try:
            last: float = _TIME.unpack_from(self._asked_at)[0]
            if last >= loaded_at:
                return False
            _TIME.pack_into(self._asked_at, 0, time.monotonic())
            return True
        finally:
            fcntl.lockf(self._memfd, fcntl.LOCK_UN)

    def _paths(self) -> set[str]:
        modules = tuple(sys.modules.values()) if self._modules else ()
        files = (getattr(module, "__file__", None) for module in modules)
        return {file for file in files if isinstance(file, str)}.union(self._extra)


class Files:
    """What files looked like when they were first seen.

    :param paths: called at each look: modules are loaded at any time.
    """

    def __init__(self, paths: Callable[[], set[str]]) -> None:
        self._paths = paths
        self._seen: dict[str, Stamp] = {path: _stamp(path) or _ABSENT for path in paths()}

    def changed(self) -> str | None:
        """The path of a file that does not look as it did, if there is one."""
        for path in self._paths():
            stamp = _stamp(path)
            if stamp is None:
                continue  # editors remove a file before they write it again
            if self._seen.setdefault(path, stamp) != stamp:
                return path
        return None


def _stamp(path: str) -> Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
