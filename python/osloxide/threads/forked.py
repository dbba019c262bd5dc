"""The end of a process that has been forked by a thread which did not expect to end one.

Owns how such a child ends: at once, after its output was written. The frames, threads and exit
functions that it has are its parent's. Never forks.

Rules: sys.exit, os._exit (Python library reference).
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End this process with *status*, of which the kernel keeps the last byte."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    os._exit(status & 0xFF)


def leave_after(failure: BaseException | None) -> NoReturn:
    """End this process as a program ends whose main function has returned or raised *failure*."""
    status = 0
    if isinstance(failure, SystemExit):
        status = failure.code if isinstance(failure.code, int) else int(failure.code is not None)
        if failure.code is not None and not isinstance(failure.code, int):
            with contextlib.suppress(BaseException):
                print(failure.code, file=sys.stderr)
    elif failure is not None:
        status = 1
        with contextlib.suppress(BaseException):
            traceback.print_exception(failure)
    leave(status)
