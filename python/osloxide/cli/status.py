"""``osloxide status``: what the workers of running services are doing, once.

Prints a table for each launcher, or one JSON document for programs.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from osloxide.cli import snapshot
from osloxide.cli.errors import CommandError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_HEADINGS = (
    "SLOT", "PID", "STATE", "UP", "CONN", "IN FLIGHT", "OLDEST", "SERVED", "RESPAWNS", "RSS",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``osloxide status``."""
    parser.add_argument(
        "pid",
        metavar="PID",
        type=int,
        nargs="?",
        help="a supervisor or a worker (default: every launcher that may be read)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def main(options: argparse.Namespace) -> int:
    """Print the snapshot; 1 when there is nothing to show."""
    launchers = _all() if options.pid is None else [snapshot.take(options.pid)]
    if options.json:
        print(json.dumps([dataclasses.asdict(launcher) for launcher in launchers], indent=2))
    elif launchers:
        print("\n\n".join(render(launcher) for launcher in launchers))
    if not launchers:
        raise CommandError("no running launcher was found; name a PID, or run this as its user")
    return 0


def render(launcher: snapshot.Launcher) -> str:
    """A heading and a table, without a newline at its end."""
    heading = f"{launcher.name or 'launcher'} {launcher.pid}"
    if launcher.command:
        heading += f": {launcher.command}"
    if not launcher.is_alive:
        heading += " (gone; its workers are leaving)"
    elif launcher.rss_bytes is not None:
        heading += f" ({_size(launcher.rss_bytes)})"
    return "\n".join([heading, *_table([_row(worker) for worker in launcher.workers])])


def _all() -> list[snapshot.Launcher]:
    launchers = []
    for pid in snapshot.find():
        try:
            launchers.append(snapshot.take(pid))
        except CommandError:
            continue  # it ended between the two looks
    return launchers


def _row(worker: snapshot.Worker) -> tuple[str, ...]:
    return (
        str(worker.slot),
        "-" if worker.pid is None else str(worker.pid),
        worker.state,
        _duration(worker.uptime),
        str(worker.connections),
        str(worker.in_flight),
        _duration(worker.oldest),
        str(worker.served),
        str(worker.respawns),
        "-" if worker.rss_bytes is None else _size(worker.rss_bytes),
    )


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest cell; numbers to the right, words to the left."""
    cells = [_HEADINGS, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEADINGS))]
    words = _HEADINGS.index("STATE")
    return [
        "  ".join(
            cell.ljust(width) if column == words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _duration(seconds: float | None) -> str:
    """At most six characters: ``0.4s``, ``42s``, ``7m05s``, ``3h12m``, ``12d04h``."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    for unit, size, lesser, part in (("m", 60, "s", 1), ("h", 3600, "m", 60)):
        if whole < size * (60 if unit == "m" else 24):
            return f"{whole // size}{unit}{whole % size // part:02}{lesser}"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def _size(amount: int) -> str:
    return f"{amount / 1024**2:.1f} MB" if amount < 1024**3 else f"{amount / 1024**3:.2f} GB"
