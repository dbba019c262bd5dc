"""What ps(1) shows of a launcher and its workers.

Owns the text, and the rule that nothing is changed where setproctitle is not installed. The name
of the process (``comm``) stays the program's in any case, for ``pgrep -x``, ``pidof`` and
monitoring go by it, and the command line follows in brackets, for those who look for that
(``pgrep -f``).

Rules: cotyledon sets titles likewise, with setproctitle where that is installed.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

from osloxide.launch import scoreboard

LOG = logging.getLogger(__name__)

_TITLE = re.compile(r".*?osloxide: (?:supervisor|template|worker \d+) of .+? \[(.*)\]")

prefix = ""
"""What stands in front of every title."""


def of_supervisor() -> None:
    """Show this process as the parent of workers."""
    _show(f"osloxide: supervisor of {scoreboard.program_name()}")


def of_template() -> None:
    """Show this process as the one that workers are forked from."""
    _show(f"osloxide: template of {scoreboard.program_name()}")


def of_worker(slot: int) -> None:
    """Show this process as the worker of *slot*."""
    _show(f"osloxide: worker {slot} of {scoreboard.program_name()}")


def command_in(text: str) -> str:
    """The command line in the title *text*, or *text* where that is no title."""
    titled = _TITLE.fullmatch(text)
    return titled[1] if titled else text


def _show(role: str) -> None:
    try:
        import setproctitle  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return
    try:
        comm = Path("/proc/self/comm").read_text().rstrip("\n")
        setproctitle.setproctitle(f"{prefix}{role} [{' '.join(sys.orig_argv)}]")
        setproctitle.setthreadtitle(comm)  # the call above has changed that too
    except Exception:
        LOG.debug("The process title could not be set", exc_info=True)
