"""A launcher as rows of text: what ``status`` and ``top`` show, and in which words.

Owns the columns, the heading, the totals, and how durations and sizes are written. Prints nothing,
and knows neither a terminal nor when the figures were read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from osloxide.cli.snapshot import BrokerFigures, Launcher, Worker


@dataclass(frozen=True)
class Rates:
    """Requests a second between two looks at one launcher.

    :param total: of the whole launcher, workers that ended in between included.
    """

    total: float
    _each: dict[tuple[int, int | None], float]
    _cpu: dict[tuple[int, int | None], float] = field(default_factory=dict)

    @classmethod
    def between(cls, earlier: Launcher, later: Launcher) -> Rates:
        """What was served from *earlier* to *later*, for each second."""
        # Two looks in one tick of the clock: nothing can be said, and nothing must be divided by 0.
        seconds = later.read_at - earlier.read_at
        if seconds <= 0:
            return cls(0.0, {})
        before = {(worker.slot, worker.pid): worker.served for worker in earlier.workers}
        each = {
            # A worker that was not there before was forked in between, and began at 0.
            key: max(0, worker.served - before.get(key, 0)) / seconds
            for worker in later.workers
            if (key := (worker.slot, worker.pid))[1] is not None
        }
        used = {(worker.slot, worker.pid): worker.cpu_seconds for worker in earlier.workers}
        cpu = {
            key: max(0.0, worker.cpu_seconds - (used.get(key) or 0.0)) / seconds
            for worker in later.workers
            if (key := (worker.slot, worker.pid)) in each and worker.cpu_seconds is not None
        }
        return cls(max(0, _served(later) - _served(earlier)) / seconds, each, cpu)

    def of(self, worker: Worker) -> float | None:
        """None for a slot without a process."""
        return self._each.get((worker.slot, worker.pid))

    def cpu_of(self, worker: Worker) -> float | None:
        """CPUs that it has kept busy; None for a slot without a process."""
        return self._cpu.get((worker.slot, worker.pid))


@dataclass(frozen=True)
class Column:
    """One column; *is_word* puts it to the left, as words are, and not to the right, as numbers."""

    heading: str
    cell: Callable[[Worker], str]
    is_word: bool = False


def narrow(rates: Rates) -> tuple[Column, ...]:
    """The columns that fit into 80 characters."""
    return (
        Column("SLOT", lambda worker: str(worker.slot)),
        Column("PID", lambda worker: "-" if worker.pid is None else str(worker.pid)),
        Column("STATE", lambda worker: worker.state, is_word=True),
        Column("CONN", lambda worker: str(worker.connections)),
        Column("BUSY", lambda worker: str(worker.in_flight)),
        Column("WAIT", lambda worker: str(worker.figures.queued)),
        Column("OLDEST", lambda worker: duration(worker.oldest)),
        Column("REQ/S", lambda worker: rate(rates.of(worker))),
        Column("5XX", lambda worker: short(worker.figures.answers.get("5xx", 0))),
        Column("CPU%", lambda worker: percent(rates.cpu_of(worker))),
        Column("RSS", lambda worker: "-" if worker.rss_bytes is None else size(worker.rss_bytes)),
    )


def columns(rates: Rates | None = None) -> tuple[Column, ...]:
    """The columns of a table of workers; with *rates*, more for requests a second and CPU."""
    served = [Column("SERVED", lambda worker: str(worker.served))]
    cpu = Column("CPU", lambda worker: duration(worker.cpu_seconds))
    if rates is not None:
        served.append(Column("REQ/S", lambda worker: rate(rates.of(worker))))
        cpu = Column("CPU%", lambda worker: percent(rates.cpu_of(worker)))
    return (
        Column("SERVICE", lambda worker: worker.service, is_word=True),
        Column("SLOT", lambda worker: str(worker.slot)),
        Column("PID", lambda worker: "-" if worker.pid is None else str(worker.pid)),
        Column("STATE", lambda worker: worker.state, is_word=True),
        Column("UP", lambda worker: duration(worker.uptime)),
        Column("CONN", lambda worker: str(worker.connections)),
        Column("QUEUED", lambda worker: str(worker.figures.queued)),
        Column("IN FLIGHT", lambda worker: str(worker.in_flight)),
        Column("OLDEST", lambda worker: duration(worker.oldest)),
        *served,
        Column("4XX", lambda worker: short(worker.figures.answers.get("4xx", 0))),
        Column("5XX", lambda worker: short(worker.figures.answers.get("5xx", 0))),
        Column("UNSENT", lambda worker: size(worker.figures.unsent_bytes)),
        Column("THREADS", lambda worker: str(worker.threads)),
        cpu,
        Column("RESPAWNS", lambda worker: str(worker.respawns)),
        Column("RSS", lambda worker: "-" if worker.rss_bytes is None else size(worker.rss_bytes)),
    )


def heading(launcher: Launcher) -> str:
    """Who it is, in one line."""
    text = f"{launcher.name or 'launcher'} {launcher.pid}"
    if launcher.command:
        text += f": {launcher.command}"
    if not launcher.is_alive:
        text += " (gone; its workers are leaving)"
    elif launcher.rss_bytes is not None:
        text += f" ({size(launcher.rss_bytes)})"
    return text


def totals(launcher: Launcher, rates: Rates) -> str:
    """What all its workers do together, in one line."""
    workers = launcher.workers
    living = [worker for worker in workers if worker.pid is not None]
    running = sum(worker.state == "running" for worker in workers)
    return ", ".join(
        (
            f"up {duration(launcher.uptime)}",
            f"{count(len(living), 'worker')} ({running} running)",
            count(sum(worker.connections for worker in workers), "connection"),
            f"{sum(worker.in_flight for worker in workers)} in flight",
            f"{_served(launcher)} served ({rate(rates.total)}/s)",
            count(sum(_by_slot(launcher, lambda worker: worker.respawns).values()), "respawn"),
            count(sum(worker.threads for worker in workers), "thread"),
            size(sum(worker.rss_bytes or 0 for worker in living)),
        )
    )


def plain(launcher: Launcher, chosen: Sequence[Column]) -> list[str]:
    """Headings and one line for each worker, in columns as wide as their widest cell."""
    cells = [[column.heading for column in chosen]]
    cells += [[column.cell(worker) for column in chosen] for worker in launcher.workers]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column.is_word else cell.rjust(width)
            for column, cell, width in zip(chosen, row, widths, strict=True)
        ).rstrip()
        for row in cells
    ]


def methods(launcher: Launcher, most: int | None = None) -> list[str]:
    """A table of requests by name, the busiest names first; empty where none has a name.

    :param most: names that are shown; None shows all.
    """
    found = launcher.methods()
    if not found:
        return []
    headings = ["METHOD", "QUEUED", "RUNNING", "OLDEST", "DONE", "FAILED"]
    cells = [headings]
    cells += [
        [
            it.name,
            str(it.queued),
            str(it.running),
            duration(it.oldest),
            str(it.done),
            str(it.failed),
        ]
        for it in found[:most]
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in cells
    ]


def remarks(launcher: Launcher) -> list[str]:
    """What no column has room for.

    Connections that wait, stuck threads, replacements, brokers, and how workers ended.
    """
    found = [
        f"{queue.address}: {count(queue.waiting, 'connection')} not accepted yet"
        for queue in launcher.listening
        if queue.waiting
    ]
    for worker in launcher.workers:
        who = f"slot {worker.slot}"
        if worker.figures.stuck:
            found.append(
                f"{who}: {count(worker.figures.stuck, 'thread')} stuck in requests that were given "
                "up"
            )
        if worker.replaced_for is not None:
            found.append(f"{who}: is being replaced ({worker.replaced_for})")
        if worker.broker.sent or worker.broker.connections:
            found.append(f"{who}: {broker(worker.broker)}")
        if worker.last_end not in (None, "status 0"):
            found.append(f"{who}: the worker before ended with {worker.last_end}")
    return found


def broker(figures: BrokerFigures) -> str:
    """What a worker has to do with message brokers by itself, in one line."""
    return ", ".join(
        (
            f"{count(figures.connections, 'connection')} to brokers",
            count(figures.channels, "channel"),
            count(figures.queues, "queue"),
            f"{count(figures.sent, 'message')} sent",
            f"{figures.unconfirmed} unconfirmed",
            f"{figures.resent} sent again",
            count(figures.reconnects, "reconnect"),
        )
    )


def width(launcher: Launcher, chosen: Sequence[Column]) -> int:
    """Characters of the widest line of :func:`plain`."""
    return max(map(len, plain(launcher, chosen)))


def percent(cpus: float | None) -> str:
    """CPUs kept busy, in percent of one."""
    return "-" if cpus is None else f"{cpus * 100:.0f}"


def short(number: int) -> str:
    """At most five characters: ``1234``, ``99k``, ``12M``."""
    for unit, factor in (("", 1), ("k", 1000), ("M", 10**6), ("G", 10**9)):
        if number < 10000 * factor or unit == "G":
            return f"{number // factor}{unit}"
    raise AssertionError  # not reached: the last unit takes all


def duration(seconds: float | None) -> str:
    """At most six characters: ``0.4s``, ``42s``, ``7m05s``, ``3h12m``, ``12d04h``."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    for unit, length, lesser, part in (("m", 60, "s", 1), ("h", 3600, "m", 60)):
        if whole < length * (60 if unit == "m" else 24):
            return f"{whole // length}{unit}{whole % length // part:02}{lesser}"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def rate(amount: float | None) -> str:
    """One digit after the point below 100, none from there on."""
    if amount is None:
        return "-"
    return f"{amount:.1f}" if amount < 99.95 else f"{amount:.0f}"


def size(amount: int) -> str:
    """``48.3 MB``, ``1.25 GB``."""
    return f"{amount / 1024**2:.1f} MB" if amount < 1024**3 else f"{amount / 1024**3:.2f} GB"


def count(number: int, what: str) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _served(launcher: Launcher) -> int:
    """Requests finished by all workers that the launcher ever had."""
    return sum(_by_slot(launcher, lambda worker: worker.slot_served).values())


def _by_slot(launcher: Launcher, figure: Callable[[Worker], int]) -> dict[int, int]:
    """A figure that belongs to the slot: during a reload two workers of one slot both show it."""
    figures: dict[int, int] = {}
    for worker in launcher.workers:
        figures[worker.slot] = max(figure(worker), figures.get(worker.slot, 0))
    return figures
