"""``osloxide top``: what the workers of running services are doing, live.

Owns the loop between two looks, the keys, and the terminal's state, which is put back however the
command ends. Rows are :mod:`osloxide.cli.table`'s; drawing is rich's. The launchers are those that
were found at the start; it leaves when the last of them has ended.

Rules: termios(3), rich.live.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import termios
import time
import tty
from typing import TYPE_CHECKING, Any

from osloxide.cli import snapshot, table
from osloxide.cli.arrivals import Arrivals
from osloxide.cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from osloxide.cli.snapshot import Launcher

    Look = tuple[Launcher, table.Rates]

_LEAVING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_STATES = {
    "starting": "cyan", "running": "green", "draining": "yellow", "killing": "red",
    "waiting": "red", "gone": "dim",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``osloxide top``."""
    snapshot.add_argument(parser, "every launcher that may be read")
    parser.add_argument(
        "--interval",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="between two looks; REQ/S is counted over it (default: 1)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="print one table after one interval, as is done where stdout is no terminal",
    )


def main(options: argparse.Namespace) -> int:
    """Show the launchers until a key, a signal, or the end of the last of them."""
    views = snapshot.chosen(options.launcher)
    caught = [*_LEAVING, signal.SIGTSTP, signal.SIGWINCH]
    if options.once or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        with Arrivals(_LEAVING) as arrivals:
            return _print_once(_Watch(views, arrivals), arrivals, options.interval)
    screen = _Screen()
    with Arrivals(caught) as arrivals:
        watch = _Watch(views, arrivals)
        with screen:
            _follow(watch, arrivals, screen, options.interval)
    for line in watch.farewells:
        print(line)
    return 0


_METHODS = 12
"""Names of requests that the live table shows of one launcher, the busiest ones."""


class _Watch:
    """The launchers, their previous figures, and which of them have ended."""

    def __init__(self, views: Sequence[snapshot.View], arrivals: Arrivals) -> None:
        self._views = views
        self._living = {view.pid for view in views if arrivals.add_process(view.pid)}
        self._earlier = [view.read() for view in views]
        self.looks: list[Look] = [(one, table.Rates.between(one, one)) for one in self._earlier]

    def look(self) -> None:
        """Read again; rates are since the previous call."""
        later = [view.read() for view in self._views]
        pairs = zip(self._earlier, later, strict=True)
        self.looks = [(new, table.Rates.between(old, new)) for old, new in pairs]
        self._earlier = later

    def lose(self, pids: frozenset[int]) -> None:
        """These processes have ended."""
        self._living -= pids

    @property
    def is_over(self) -> bool:
        """Whether every launcher has ended."""
        return not self._living

    @property
    def farewells(self) -> list[str]:
        """One line for each launcher that has ended."""
        return [
            f"{launcher.name or 'launcher'} {launcher.pid} has ended"
            for launcher in self._earlier
            if launcher.pid not in self._living
        ]


def _print_once(watch: _Watch, arrivals: Arrivals, interval: float) -> int:
    end = time.monotonic() + interval
    while not watch.is_over and (left := end - time.monotonic()) > 0:
        arrived = arrivals.wait(left)
        if arrived.signals:
            return 0
        watch.lose(arrived.ended)
    watch.look()
    blocks = []
    for launcher, rates in watch.looks:
        lines = [table.heading(launcher), table.totals(launcher, rates)]
        lines += table.plain(launcher, table.columns(rates))
        lines += [*table.remarks(launcher), *table.methods(launcher)]
        blocks.append("\n".join(lines))
    print("\n\n".join(blocks))
    for line in watch.farewells:
        print(line)
    return 0


def _follow(watch: _Watch, arrivals: Arrivals, screen: _Screen, interval: float) -> None:
    keyboard = sys.stdin.fileno() if sys.stdin.isatty() else None
    if keyboard is not None:
        arrivals.add(keyboard)
    screen.draw(watch.looks)
    due = time.monotonic() + interval
    while not watch.is_over:
        arrived = arrivals.wait(due - time.monotonic())
        watch.lose(arrived.ended)
        if arrived.signals & _LEAVING:
            return
        if keyboard in arrived.readable and _wants_to_leave(keyboard):
            return
        if signal.SIGTSTP in arrived.signals:
            with screen.put_away():
                os.kill(os.getpid(), signal.SIGSTOP)
        if time.monotonic() >= due:
            watch.look()
            due = time.monotonic() + interval
        screen.draw(watch.looks)


def _wants_to_leave(keyboard: int) -> bool:
    try:
        keys = os.read(keyboard, 1024)
    except OSError:
        return True  # the terminal went away
    return not keys or b"q" in keys or b"Q" in keys


class _Screen:
    """The whole terminal, drawn by rich; what was on it before comes back afterwards."""

    def __init__(self) -> None:
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError as error:
            raise CommandError(
                f"a live table needs the package rich ({error}); install it with "
                "pip install 'osloxide[top]', or use 'osloxide top --once', which does without"
            ) from error
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._modes: list[Any] | None = None

    def __enter__(self) -> None:
        if sys.stdin.isatty():
            self._modes = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin, termios.TCSADRAIN)
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._modes is not None:
            # The terminal may be gone; then there is nothing to put back.
            with contextlib.suppress(termios.error):
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._modes)

    @contextlib.contextmanager
    def put_away(self) -> Iterator[None]:
        """Give the terminal back for a while."""
        self.__exit__()
        yield
        self.__enter__()

    def draw(self, looks: Sequence[Look]) -> None:
        """Show these figures now."""
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = []
        # Each launcher takes three lines besides its workers, and a blank one follows it.
        room = max(0, self._console.height - 1 - 4 * len(looks))
        hidden = 0
        for launcher, rates in looks:
            shown = launcher.workers[:room]
            room -= len(shown)
            hidden += len(launcher.workers) - len(shown)
            cut: Any = {"no_wrap": True, "overflow": "ellipsis"}
            parts.append(Text(table.heading(launcher), style="bold", **cut))
            parts.append(Text(table.totals(launcher, rates), **cut))
            full = table.columns(rates)
            fits = table.width(launcher, full) <= self._console.width
            parts.append(_grid(shown, full if fits else table.narrow(rates), fits))
            remarks = table.remarks(launcher)[:room]
            room -= len(remarks)
            parts += [Text(line, style="yellow", **cut) for line in remarks]
            # What room the workers leave; the headings take one line.
            named = table.methods(launcher, max(0, min(room - 1, _METHODS))) if room > 1 else []
            room -= len(named)
            for index, line in enumerate(named):
                style = "reverse" if index == 0 else ""
                parts.append(Text(line, style=style, **cut))
            parts.append(Text(""))
        more = (
            f"; {table.count(hidden, 'more worker')} below the edge of this terminal"
            if hidden
            else ""
        )
        parts.append(Text(f"q leaves{more}", style="dim", no_wrap=True, overflow="ellipsis"))
        self._live.update(Group(*parts), refresh=True)


def _grid(workers: Sequence[snapshot.Worker], chosen: Sequence[table.Column], is_wide: bool) -> Any:
    from rich.table import Table
    from rich.text import Text

    grid = Table(
        box=None, pad_edge=False, padding=(0, 2 if is_wide else 1, 0, 0), header_style="reverse"
    )
    for column in chosen:
        justify: Any = "left" if column.is_word else "right"
        grid.add_column(column.heading, justify=justify, no_wrap=True)
    for worker in workers:
        style = _STATES.get(worker.state, "")
        grid.add_row(
            *(Text(column.cell(worker), style=style if column.is_word else "") for column in chosen)
        )
    return grid


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.05 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no interval; give seconds from 0.05 to 86400, for example 1"
        )
    return seconds
