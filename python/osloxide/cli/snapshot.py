"""What running launchers are doing, read from outside.

Finds launchers by the scoreboard that their processes keep open, and adds what only /proc knows.
Reads only: a launcher does not notice that it is being looked at. ``status`` prints one snapshot.

Rules: proc(5) (fd, status), osloxide's scoreboard (src/scoreboard.rs).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osloxide._native import Scoreboard
from osloxide.cli.errors import CommandError

_MEMFD = "/memfd:osloxide-scoreboard"


@dataclass(frozen=True)
class Worker:
    """One slot of a launcher.

    :param pid: None while the slot has no process.
    :param uptime: seconds since the fork; None without a process.
    :param oldest: seconds that the oldest request in flight has been running, or None.
    :param rss_bytes: resident memory; None without a process.
    :param last_exit: wait status of the slot's previous worker, or None.
    """

    slot: int
    group: int
    pid: int | None
    state: str
    generation: int
    uptime: float | None
    connections: int
    in_flight: int
    served: int
    oldest: float | None
    threads: int
    respawns: int
    rss_bytes: int | None
    last_exit: int | None


@dataclass(frozen=True)
class Launcher:
    """A supervisor, or a process that serves alone, with its workers."""

    pid: int
    name: str
    command: str
    is_alive: bool
    rss_bytes: int | None
    workers: list[Worker]


def take(pid: int) -> Launcher:
    """The launcher that process *pid* belongs to, as its supervisor or as a worker.

    :raises CommandError: there is no such process, it may not be read, or it has no scoreboard.
    """
    try:
        board = Scoreboard.attach(pid)
        rows = board.read()
    except (ProcessLookupError, FileNotFoundError) as error:
        what = "has no osloxide launcher" if Path(f"/proc/{pid}").exists() else "does not exist"
        raise CommandError(
            f"process {pid} {what}; run 'osloxide status' without a number to list launchers"
        ) from error
    except PermissionError as error:
        raise CommandError(
            f"process {pid} belongs to another user; run this as that user or as root"
        ) from error
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error
    now = time.monotonic()
    return Launcher(
        pid=board.pid,
        name=board.name,
        command=_command(board.pid),
        is_alive=Path(f"/proc/{board.pid}").exists(),
        rss_bytes=_rss_bytes(board.pid),
        workers=[_worker(row, now) for row in rows],
    )


def find() -> list[int]:
    """Supervisors of all launchers whose processes this user may look at, in order of their pid."""
    supervisors = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _has_scoreboard(entry):
            try:
                supervisors.add(Scoreboard.attach(int(entry.name)).pid)
            except (OSError, ValueError):
                continue  # it ended just now, or is of another version
    return sorted(supervisors)


def _has_scoreboard(process: Path) -> bool:
    try:
        descriptors = list(os.scandir(process / "fd"))
    except OSError:
        return False  # it ended, or belongs to somebody else
    for descriptor in descriptors:
        try:
            if os.readlink(descriptor.path).startswith(_MEMFD):
                return True
        except OSError:
            continue
    return False


def _worker(row: dict[str, Any], now: float) -> Worker:
    pid = row["pid"] or None
    return Worker(
        slot=row["slot"],
        group=row["group"],
        pid=pid,
        state=row["state"],
        generation=row["generation"],
        uptime=_age(row["started_at"], now) if pid else None,
        connections=row["connections"],
        in_flight=row["in_flight"],
        served=row["served"],
        oldest=_age(row["oldest_since"], now),
        threads=row["threads"],
        respawns=row["respawns"],
        rss_bytes=_rss_bytes(pid) if pid else None,
        last_exit=row["last_exit"],
    )


def _age(since: float | None, now: float) -> float | None:
    return None if since is None else max(0.0, now - since)


def _rss_bytes(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return None  # a zombie


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    # Arguments may hold newlines (python -c); the heading is one line.
    return " ".join(b" ".join(words).decode("utf-8", "replace").split())
