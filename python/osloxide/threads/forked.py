"""The end of a process that code of the application has forked on a thread of this package.

Owns how such a child ends where that code leaves it, by a return or an exception: at once, after
its log and its output were written. It would go on otherwise with what its parent goes on with,
such as a loop or a reply. greenlet's GreenletExit is a return wherever it is raised. The frames,
threads and exit functions that such a child has are its parent's. Owns as well what exit status an
exception stands for, and how any process of this package is left without its frames. Never forks.

Rules: sys.exit, os._exit (Python library reference).
"""

from __future__ import annotations

import contextlib
import logging
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
    # As call_until, in one step: this is on the way of each request.
    before = _forks
    try:
        result = function(*args, **kwargs)
    except BaseException as failure:
        if _forks != before:
            leave_after(failure)
        raise
    if _forks != before:
        leave_after(None)
    return result


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
    """End this process with *status*, of which the kernel keeps the last byte.

    Its log and its output are written; nothing above runs, no ``finally`` and no exit function.
    """
    try:
        with contextlib.suppress(BaseException):
            logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
    finally:
        os._exit(status & 0xFF)


def leave_after(failure: BaseException | None) -> NoReturn:
    """End this process as a program ends whose main function has returned or raised *failure*."""
    if failure is not None and stopping.is_kill(failure):
        failure = None
    if failure is not None and not isinstance(failure, SystemExit):
        with contextlib.suppress(BaseException):
            traceback.print_exception(failure)
    leave(exit_status(failure, 1, lambda text: print(text, file=sys.stderr)))


def exit_status(
    failure: BaseException | None, of_others: int, say: Callable[[object], object]
) -> int:
    """The exit status of a program whose main function has returned or raised *failure*.

    :param of_others: that of an exception other than SystemExit.
    :param say: called with what ``sys.exit()`` was given where that is no status.
    """
    if failure is None:
        return 0
    if not isinstance(failure, SystemExit):
        return of_others
    if failure.code is None or isinstance(failure.code, int):
        return failure.code or 0
    with contextlib.suppress(BaseException):
        say(failure.code)
    return 1


def _count() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count)
