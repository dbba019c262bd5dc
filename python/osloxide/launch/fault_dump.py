"""The fault dump of a worker that is ended by force: where each of its threads was.

Owns a piece of memory that the parent and one worker share. In the worker Python's faulthandler
writes the tracebacks of all threads into it when a fatal signal arrives, without needing the
interpreter: SIGABRT, which the parent sends to a worker that hangs, SIGSEGV and their like. The
parent reads it when it has reaped the worker. Sends no signal and logs nothing.

Rules: faulthandler (Python library reference), memfd_create(2).
"""

from __future__ import annotations

import faulthandler
import os
import signal

SIGNALS = frozenset({signal.SIGABRT})
"""Those that a parent sends so that a worker shows where it is. A process may be started with them
blocked, and then shows nothing."""

LONGEST = 256 * 1024
"""Bytes that are read; faulthandler itself stops at 100 frames of each of 100 threads."""


class FaultDump:
    """The memory of one worker; made by its parent before the fork."""

    def __init__(self) -> None:
        try:
            self._memfd = os.memfd_create("osloxide-fault-dump")
        except OSError:
            self._memfd = -1  # the worker runs without one

    @classmethod
    def of(cls, descriptors: list[int]) -> FaultDump:
        """In a worker that was forked elsewhere: what its parent's :meth:`descriptors` named."""
        dump = cls.__new__(cls)
        dump._memfd = descriptors[0] if descriptors else -1
        return dump

    def descriptors(self) -> list[int]:
        """What to pass to the worker: the memory, or nothing where the system had none."""
        return [] if self._memfd == -1 else [self._memfd]

    def keep(self) -> None:
        """In the worker: have faulthandler write there, unless the application uses it already."""
        if self._memfd != -1 and not faulthandler.is_enabled():
            faulthandler.enable(self._memfd, all_threads=True)

    def read(self) -> str:
        """What was written so far; empty when nothing was."""
        if self._memfd == -1:
            return ""
        return os.pread(self._memfd, LONGEST, 0).decode(errors="replace").strip()

    def close(self) -> None:
        """Give the descriptor back. In a worker: of another one."""
        if self._memfd != -1:
            os.close(self._memfd)
            self._memfd = -1
