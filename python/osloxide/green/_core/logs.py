"""Where ``eventlet.wsgi`` writes its lines.

Owns the loggers that stand for a file, and for nothing. Rules: eventlet.wsgi.
"""

from __future__ import annotations

import sys
from typing import Any

from osloxide._typing import override


class LoggerNull:
    """A log that keeps nothing."""

    def error(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Log an error."""

    def info(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Log a line."""

    def debug(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Log a detail."""

    def write(self, msg: str, *args: Any) -> None:
        """Log a line."""


class LoggerFileWrapper(LoggerNull):
    """A file as a log; details only with *debug*."""

    def __init__(self, log: Any, debug: bool) -> None:
        self.log = log
        self._debug = debug

    @override
    def error(self, msg: str, *args: Any, **kwargs: Any) -> None:
        self.write(msg, *args)

    @override
    def info(self, msg: str, *args: Any, **kwargs: Any) -> None:
        self.write(msg, *args)

    @override
    def debug(self, msg: str, *args: Any, **kwargs: Any) -> None:
        if self._debug:
            self.write(msg, *args)

    @override
    def write(self, msg: str, *args: Any) -> None:
        self.log.write((msg % args if args else msg) + "\n")


def get_logger(log: Any, debug: bool) -> Any:
    """*log* as a logger; standard error when it is None."""
    if callable(getattr(log, "info", None)) and callable(getattr(log, "debug", None)):
        return log
    return LoggerFileWrapper(log or sys.stderr, debug)
