"""``osloxide status --ready NAME``: a health probe, told by its exit status alone.

Owns what ready means: the launcher lives, and every slot of it has a worker that is ready or drains
while its successor starts. Looks at the scoreboard and asks the service nothing, so it holds for
APIs and RPC services alike. A probe is started every few seconds, and imports little.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from osloxide.cli.errors import CommandError

_MEMFD = "/memfd:osloxide-scoreboard"
_SERVES = ("running", "draining")


def run(arguments: Sequence[str]) -> int:
    """0 when every launcher called *NAME*, or the process of that pid, is ready; else 1.

    :raises CommandError: not exactly one name was given, or nothing is called so.
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise CommandError("give one name or pid: osloxide status --ready nova-api", 2)
    boards = _boards(arguments[0])
    if not boards:
        raise CommandError(f"no launcher that may be read is called {arguments[0]}")
    late = [pid for pid, rows in boards if not _is_ready(pid, rows)]
    if late:
        print(f"osloxide: not ready: {', '.join(map(str, late))}", file=sys.stderr)
    return 1 if late else 0


def _is_ready(pid: int, rows: list[tuple[int, str]]) -> bool:
    slots = {slot for slot, _ in rows}
    ready = {slot for slot, state in rows if state in _SERVES}
    return bool(slots) and slots == ready and os.path.exists(f"/proc/{pid}")


def _boards(wanted: str) -> list[tuple[int, list[tuple[int, str]]]]:
    """Pid of each launcher of that name, and slot and state of its workers."""
    from osloxide._native import Scoreboard

    found: dict[int, list[tuple[int, str]]] = {}
    for entry in [wanted] if wanted.isdigit() else os.listdir("/proc"):
        if not entry.isdigit() or not _has_board(entry):
            continue
        try:
            board = Scoreboard.attach(int(entry))
            if board.pid in found or (board.name != wanted and not wanted.isdigit()):
                continue
            found[board.pid] = [(row["slot"], row["state"]) for row in board.read()]
        except (OSError, ValueError, RuntimeError):
            continue  # it ended just now, or is of another version
    return sorted(found.items())


def _has_board(pid: str) -> bool:
    directory = f"/proc/{pid}/fd"
    try:
        names = os.listdir(directory)
    except OSError:
        return False  # it ended, or belongs to another user
    for name in names:
        try:
            if os.readlink(f"{directory}/{name}").startswith(_MEMFD):
                return True
        except OSError:
            continue
    return False
