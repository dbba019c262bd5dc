"""Loggers for code that a signal depends on: what the log raises does not reach their caller.

Handlers, filters and formatters belong to the application. ``logging`` itself drops only what is
raised in ``Handler.emit()`` of its own classes: a filter that fails raises in the caller, and so
does a stream that a signal handler finds in the middle of a write ("reentrant call"). A stop or a
reload would be lost with it. Never writes a record by itself, and never changes one.

Rules: logging (Python library reference), "Filter Objects" and ``logging.raiseExceptions``.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from osloxide._typing import override

OF_PROCESS_LAUNCHER = "osloxide.launch.process_launcher"
"""Name of the logger of all files that a parent of workers is made of: a filter or a level that an
operator has set for it holds for the whole launcher, whichever file says it."""


class CarefulLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose methods raise nothing that is an :class:`Exception`.

    What ends a program passes: a signal handler of the application may call ``sys.exit()`` while
    the main thread logs.
    """

    @override
    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log, or drop the record where the log fails."""
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the caller's line, not this one
        with contextlib.suppress(Exception):
            super().log(level, msg, *args, **kwargs)


def logger(name: str) -> CarefulLogger:
    """The logger called *name*."""
    return CarefulLogger(logging.getLogger(name))
