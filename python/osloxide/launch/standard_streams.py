"""The descriptors 0, 1 and 2 of a process that serves: they exist, and cannot spoil its end.

Owns two promises. A program may be started with one of them closed: the next file that it opens, a
listening socket or a database, would get that number, and what anyone writes to standard error
would go there. And what a full disk or a broken pipe does not take at the end, the interpreter
would answer with exit status 120 after a clean stop. Logs nothing.

Rules: open(2) (the lowest free number), Py_FinalizeEx (Python/C API).
"""

from __future__ import annotations

import contextlib
import os
import sys

from osloxide.signals import shutdown
from osloxide.threads import at_end


def fill() -> None:
    """Open /dev/null for each that is closed; commands inherit it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which this one is
                os.set_inheritable(opened, True)


def drop_what_is_not_taken() -> None:
    """After a stop: what stdout and stderr hold and cannot write goes nowhere."""
    if not shutdown.is_stopping():
        return
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


at_end.call(at_end.Turn.SIGNALS, drop_what_is_not_taken)
