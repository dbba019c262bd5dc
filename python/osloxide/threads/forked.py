"""The end of a process that code of the application has forked on a thread of this package.

Owns how such a child ends where that code leaves it, by a return or an exception: at once, after
its output was written. It would go on otherwise with what its parent goes on with, such as a loop
or a reply. greenlet's GreenletExit is a return wherever it is raised. The frames, threads and exit
functions that such a child has are its parent's. Never forks.

Rules: sys.exit, os._exit (Python library reference).
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from osloxide.threads import stopping

_forks = 0
"""How many forks lie between this process and the one that imported this module."""


def call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call *function* of the application; a child that it has forked and not ended ends here."""
    return call_until((), function, *args, **kwargs)


def call_until(
    ends: tuple[type[BaseException], ...],
    function: Callable[..., Any],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """As :func:`call`, for a function that also returns by raising one of *ends*."""
    before = _forks
    try:
        result = function(*args, **kwargs)
    except BaseException as failure:
        if _forks != before:
            leave_after(None if isinstance(failure, ends) else failure)
        raise
    if _forks != before:
        leave_after(None)
    return result


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
    elif failure is not None and not stopping.is_kill(failure):
        status = 1
        with contextlib.suppress(BaseException):
            traceback.print_exception(failure)
    leave(status)


def _count() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count)
