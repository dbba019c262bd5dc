"""``osloxide status``: what the workers of running services are doing, once.

Prints a table for each launcher, or one JSON document for programs.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from osloxide.cli import ready, snapshot, table

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``osloxide status``."""
    snapshot.add_argument(parser, "every launcher that may be read")
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
        return ready.main([options.ready])
    launchers = [view.read() for view in snapshot.chosen(options.launcher)]
    if options.json:
        print(json.dumps([dataclasses.asdict(launcher) for launcher in launchers], indent=2))
    else:
        print("\n\n".join(render(launcher) for launcher in launchers))
    return 0


def render(launcher: snapshot.Launcher) -> str:
    """A heading and a table, without a newline at its end."""
    lines = [table.heading(launcher), *table.plain(launcher, table.columns())]
    return "\n".join([*lines, *table.remarks(launcher), *table.methods(launcher)])
