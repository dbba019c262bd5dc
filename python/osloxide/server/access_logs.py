"""The access logs that this process writes natively.

Owns the list of them, so that one signal opens them all again. Never writes a line: the native core
does, without the interpreter.
"""

from __future__ import annotations

import logging

from osloxide import _native

LOG = logging.getLogger(__name__)

_opened: dict[str, list[_native.AccessLog]] = {}


def open_log(path: str, log_format: str = "combined") -> _native.AccessLog:
    """Open an access log for appending.

    :param path: a file, or ``-`` for standard output.
    :param log_format: ``combined``, ``common`` or a % format, see docs/server.md.
    :raises ValueError: the format names an unknown key.
    :raises OSError: the file cannot be opened.
    """
    log = _native.AccessLog(path, log_format)
    _opened.setdefault(path, []).append(log)
    return log


def reopen() -> bool:
    """Open all of them again by their names, as after a rotation; what cannot be opened is kept.

    :returns: whether all of them were.
    """
    done = True
    for path, logs in _opened.items():
        for log in logs:
            try:
                log.reopen()
            except OSError as error:
                LOG.error("cannot open %s again: %s; its old file is kept", path, error.strerror)
                done = False
    return done
