"""The scoreboard of a process that serves without a supervisor.

Owns that such a process appears in ``osloxide status`` as one that has a single worker: itself.
Workers of a supervisor are counted in the supervisor's scoreboard, which they inherit; nothing is
added to it. A service that cannot be shown is served all the same.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from osloxide import _native
from osloxide.launch import launcher_index, service_name

LOG = logging.getLogger(__name__)

_boards: list[_native.Scoreboard] = []
"""Kept until the process ends: others find the scoreboard by the descriptor."""


_name: str | None = None


def call_program(name: str) -> None:
    """Have this process, and the workers that it forks, shown as *name*."""
    global _name
    _name = name


def program_name() -> str:
    """What ``osloxide status`` calls this process."""
    return _name or Path(sys.argv[0] or "python").name


def make() -> _native.Scoreboard:
    """A scoreboard of this process, which probes find by the program's name.

    :raises OSError: memory or descriptors are exhausted.
    """
    board = _native.Scoreboard(program_name())
    launcher_index.enter(program_name(), board.fileno())
    return board


def begin(services: Iterable[Any]) -> None:
    """Count in this process from now on, unless it has a scoreboard or inherited one.

    :param services: what it serves, to be named.
    """
    try:
        _native.Scoreboard.attach(os.getpid())
    except ProcessLookupError:
        pass
    except (OSError, ValueError) as exc:
        LOG.debug("This process has a scoreboard that cannot be read: %s", exc)
        return
    else:
        return
    try:
        board = make()
        board.name_group(0, ",".join(service_name.of(service) for service in services))
        board.claim(0, 0)
    except OSError as exc:
        LOG.warning("This process is not shown by osloxide status: %s", exc)
        return
    _boards.append(board)
