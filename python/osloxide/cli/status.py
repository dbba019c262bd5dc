"""``osloxide status``: what the workers of running services are doing, once.

Prints a table for each launcher, or one JSON document for programs.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from osloxide.cli import ready, snapshot, table
from osloxide.cli.errors import CommandError

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``osloxide status``."""
    parser.add_argument(
        "pid",
        metavar="PID|NAME",
        nargs="?",
        help="a supervisor or a worker, or what launchers are called (default: every launcher that "
        "may be read)",
    )
    parser.add_argument(
        "--ready",
        metavar="NAME",
        help="a probe: print nothing, and end with 0 if the launchers of this name, or the one of "
        "this pid, have a ready worker in every slot, else with 1; no other argument may be given",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def main(options: argparse.Namespace) -> int:
    """Print the snapshot; 1 when there is nothing to show."""
    if options.ready is not None:
        return ready.run([options.ready])
    if options.pid is None:
        views = snapshot.views()
    elif options.pid.isdigit():
        views = [snapshot.View(int(options.pid))]
    else:
        views = [view for view in snapshot.views() if view.name == options.pid]
        if not views:
            raise CommandError(f"no launcher that may be read is called {options.pid}")
    launchers = [view.read() for view in views]
    if options.json:
        print(json.dumps([dataclasses.asdict(launcher) for launcher in launchers], indent=2))
    elif launchers:
        print("\n\n".join(render(launcher) for launcher in launchers))
    if not launchers:
        raise CommandError(snapshot.NONE_FOUND)
    return 0


def render(launcher: snapshot.Launcher) -> str:
    """A heading and a table, without a newline at its end."""
    lines = [table.heading(launcher), *table.plain(launcher, table.columns())]
    return "\n".join([*lines, *table.methods(launcher)])
