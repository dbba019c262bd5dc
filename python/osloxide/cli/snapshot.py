"""What running launchers are doing, read from outside.

Finds launchers by the scoreboard that their processes keep open, and adds what only /proc knows.
Reads only: a launcher does not notice that it is being looked at. ``status``, ``top`` and
``metrics`` differ in how they show it and in nothing else.

Rules: proc(5) (fd, status), osloxide's scoreboard (src/scoreboard).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osloxide import _native
from osloxide.cli import listen_queues
from osloxide.cli.errors import CommandError
from osloxide.launch import process_title
from osloxide.signals.signal_names import signal_name

if TYPE_CHECKING:
    import argparse

    from osloxide.cli.listen_queues import ListenQueue

NONE_FOUND = "no running launcher was found; name a PID, or run this as its user"

_MEMFD = "/memfd:osloxide-scoreboard"


@dataclass(frozen=True)
class Method:
    """Requests of one name (an RPC method), in one worker or in several.

    :param queued: requests that no thread has begun.
    :param running: requests in flight.
    :param done: requests finished by all workers that the slot ever had, failed ones included.
    :param failed: those that ended in an unexpected error.
    :param oldest: seconds that the oldest one in flight has been running, or None.
    """

    name: str
    queued: int
    running: int
    done: int
    failed: int
    oldest: float | None


@dataclass(frozen=True)
class Figures:
    """What was counted of HTTP requests: counters of the whole slot, which only grow, and gauges.

    :param answers: answers by class of their status, ``"2xx"``; ``"none"``: requests without one.
    :param exceptions: requests whose application raised.
    :param timed_out: requests that were given up because they took too long.
    :param sent_bytes: bytes of answers that the kernel has taken, heads included.
    :param waited: seconds that requests waited for the interpreter before the application began.
    :param seconds: of all requests together.
    :param times: requests by their time, each counted once, by the upper bound of its bucket in
        seconds; ``"+Inf"`` has none.
    :param unsent_bytes: complete answers that clients have not taken yet, in memory.
    :param queued: requests that wait for a thread.
    :param stuck: threads in requests that were given up.
    :param held_uploads: uploads that get no thread yet, and whose bodies are collected.
    """

    answers: dict[str, int] = field(default_factory=dict)
    exceptions: int = 0
    timed_out: int = 0
    sent_bytes: int = 0
    waited: float = 0.0
    seconds: float = 0.0
    times: dict[str, int] = field(default_factory=dict)
    unsent_bytes: int = 0
    queued: int = 0
    stuck: int = 0
    held_uploads: int = 0


@dataclass(frozen=True)
class BrokerFigures:
    """What was counted of a worker's native connections with message brokers (docs/rpc.md).

    :param connections: that are agreed on, of this process.
    :param channels: that are used on them.
    :param queues: that are consumed from.
    :param unconfirmed: messages that were sent and that the broker has not confirmed.
    :param sent: messages by all workers that the slot ever had, those sent again included.
    :param resent: those that were sent again: no confirm, or no queue that took them.
    :param reconnects: connections that took the place of one that was lost.
    """

    connections: int = 0
    channels: int = 0
    queues: int = 0
    unconfirmed: int = 0
    sent: int = 0
    resent: int = 0
    reconnects: int = 0


@dataclass(frozen=True)
class Worker:
    """One slot of a launcher.

    :param service: what its group is called: the class of the service, or the application
        of ``osloxide serve``, with the group's number
        where two groups are called the same, or the number alone.
    :param pid: None while the slot has no process.
    :param served: requests finished since the fork.
    :param slot_served: requests finished by all workers that the slot ever had; never goes down.
    :param uptime: seconds since the fork; None without a process.
    :param oldest: seconds that the oldest request in flight has been running, or None.
    :param rss_bytes: resident memory; None without a process.
    :param last_exit: wait status of the slot's previous worker, or None.
    :param last_end: the same in words: ``status 3``, ``SIGKILL``; None without one.
    :param cpu_seconds: of the process, in user and kernel mode; None without a process.
    :param replaced_for: why it asks to be replaced: requests, lifetime, memory, stuck, or None.
    :param methods: the same requests by name, where they have one.
    """

    slot: int
    group: int
    service: str
    pid: int | None
    state: str
    generation: int
    uptime: float | None
    connections: int
    in_flight: int
    served: int
    slot_served: int
    oldest: float | None
    threads: int
    respawns: int
    rss_bytes: int | None
    last_exit: int | None
    methods: tuple[Method, ...] = ()
    last_end: str | None = None
    cpu_seconds: float | None = None
    replaced_for: str | None = None
    figures: Figures = field(default_factory=Figures)
    broker: BrokerFigures = field(default_factory=BrokerFigures)


@dataclass(frozen=True)
class Launcher:
    """A supervisor, or a process that serves alone, with its workers.

    :param read_at: ``CLOCK_MONOTONIC`` seconds of the look.
    :param uptime: seconds since its scoreboard was made.
    :param rss_bytes: resident memory of the supervisor itself; None once it is gone.
    :param listening: the sockets on which it listens, or its workers do, ordered by address.
    """

    pid: int
    name: str
    command: str
    read_at: float
    uptime: float
    is_alive: bool
    rss_bytes: int | None
    workers: list[Worker]
    listening: tuple[ListenQueue, ...] = ()

    def methods(self) -> list[Method]:
        """The named requests of all workers, the busiest names first."""
        rows: dict[str, dict[int, Method]] = {}
        for worker in self.workers:
            for method in worker.methods:
                slots = rows.setdefault(method.name, {})
                slots[worker.slot] = _joined(slots.get(worker.slot), method)
        found = [_sum(name, list(slots.values())) for name, slots in rows.items()]
        return sorted(found, key=lambda it: (-it.running, -it.queued, -it.done, it.name))


def _joined(one: Method | None, other: Method) -> Method:
    """Two workers of one slot, during a reload: what was done is the slot's, and both show it."""
    if one is None:
        return other
    done, failed = max(one.done, other.done), max(one.failed, other.failed)
    return replace(_sum(one.name, [one, other]), done=done, failed=failed)


def _sum(name: str, methods: list[Method]) -> Method:
    return Method(
        name=name,
        queued=sum(it.queued for it in methods),
        running=sum(it.running for it in methods),
        done=sum(it.done for it in methods),
        failed=sum(it.failed for it in methods),
        oldest=max((it.oldest for it in methods if it.oldest is not None), default=None),
    )


class View:
    """A launcher that is looked at again and again, through one mapping of its scoreboard.

    The figures can still be read when the launcher has ended; then they stay as they were.

    :param pid: of its supervisor, or of a worker.
    :raises CommandError: there is no such process, it may not be read, or it has no scoreboard.
    """

    def __init__(self, pid: int) -> None:
        try:
            self._board = _native.Scoreboard.attach(pid)
        except (ProcessLookupError, FileNotFoundError) as error:
            what = "has no osloxide launcher" if Path(f"/proc/{pid}").exists() else "does not exist"
            raise CommandError(
                f"process {pid} {what}; run 'osloxide status' without a number to list launchers"
            ) from error
        except PermissionError as error:
            raise CommandError(
                f"process {pid} belongs to another user; run this as that user or as root"
            ) from error
        except (OSError, ValueError, RuntimeError) as error:
            raise CommandError(str(error)) from error
        if not _sees_our_pids(Path(f"/proc/{pid}")):
            raise CommandError(
                f"process {pid} is in another PID namespace (a container); run osloxide there"
            )
        self.pid = self._board.pid
        self.name = _printable(self._board.name)
        self._command = _command(self.pid)

    def read(self) -> Launcher:
        """Look once."""
        rows = self._board.read()
        now = time.monotonic()
        return Launcher(
            pid=self.pid,
            name=self.name,
            command=self._command,
            read_at=now,
            uptime=_age(self._board.started_at, now) or 0.0,
            is_alive=Path(f"/proc/{self.pid}").exists(),
            rss_bytes=_rss_bytes(self.pid),
            workers=[_worker(row, now, name) for row, name in zip(rows, _names(rows), strict=True)],
            listening=listen_queues.of(self.pid, [row["pid"] for row in rows if row["pid"]]),
        )


def add_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare the positional ``PID|NAME`` by which a command is told whom to look at.

    :param default: what the command looks at without it, for its help.
    """
    parser.add_argument(
        "launcher",
        metavar="PID|NAME",
        nargs="?",
        help=f"a supervisor or a worker, or what launchers are called (default: {default})",
    )


def chosen(launcher: str | None) -> list[View]:
    """The launchers that the argument names: every one that may be read when it is None.

    :raises CommandError: it names none.
    """
    if launcher is not None and launcher.isdigit():
        return [View(int(launcher))]
    readable = views()
    found = [view for view in readable if launcher in (None, view.name)]
    if found:
        return found
    if launcher is None:
        raise CommandError(NONE_FOUND)
    if not readable:
        raise CommandError(f"{launcher}: {NONE_FOUND}")
    names = ", ".join(sorted({view.name for view in readable}))
    raise CommandError(f"no launcher that may be read is called {launcher}; there are: {names}")


def views() -> list[View]:
    """Every launcher whose processes this user may look at, in order of their pid."""
    found = []
    for pid in find():
        try:
            found.append(View(pid))
        except CommandError:
            continue  # it ended between the two looks
    return found


def find() -> list[int]:
    """Supervisors of all launchers whose processes this user may look at, in order of their pid."""
    supervisors = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _has_scoreboard(entry) and _sees_our_pids(entry):
            try:
                supervisors.add(_native.Scoreboard.attach(int(entry.name)).pid)
            except (OSError, ValueError, RuntimeError):
                continue  # it ended just now, or is of another version
    return sorted(supervisors)


def _has_scoreboard(process: Path) -> bool:
    try:
        descriptors = list(os.scandir(process / "fd"))
    except OSError:
        return False  # it ended, or belongs to another user
    for descriptor in descriptors:
        try:
            if os.readlink(descriptor.path).startswith(_MEMFD):
                return True
        except OSError:
            continue
    return False


def _sees_our_pids(process: Path) -> bool:
    """Whether its scoreboard has pids that mean the same here (pid_namespaces(7))."""
    try:
        ours = os.readlink("/proc/self/ns/pid")
    except OSError:
        return True  # the kernel has no PID namespaces (proc_pid_ns(5)): all pids are of one
    try:
        return os.readlink(process / "ns" / "pid") == ours
    except OSError:
        return not process.exists()  # its scoreboard, mapped before it ended, stays readable


def _names(rows: list[dict[str, Any]]) -> list[str]:
    """What the group of each row is called."""
    named = {row["group"]: _printable(row["group_name"]) for row in rows}
    taken = list(named.values())

    def name(group: int) -> str:
        if not named[group]:
            return str(group)
        return named[group] if taken.count(named[group]) == 1 else f"{named[group]}/{group}"

    return [name(row["group"]) for row in rows]


def _worker(row: dict[str, Any], now: float, service: str) -> Worker:
    pid = row["pid"] or None
    return Worker(
        slot=row["slot"],
        group=row["group"],
        service=service,
        pid=pid,
        state=row["state"],
        generation=row["generation"],
        uptime=_age(row["started_at"], now) if pid else None,
        connections=row["connections"],
        in_flight=row["in_flight"],
        served=row["served"],
        slot_served=row["slot_served"],
        oldest=_age(row["oldest_since"], now),
        threads=row["threads"],
        respawns=row["respawns"],
        rss_bytes=_rss_bytes(pid) if pid else None,
        last_exit=row["last_exit"],
        methods=tuple(_method(method, now) for method in row["methods"]),
        last_end=None if row["last_exit"] is None else ending(row["last_exit"]),
        cpu_seconds=_cpu_seconds(pid) if pid else None,
        replaced_for=row["worn"],
        figures=_figures(row["figures"]),
        broker=BrokerFigures(**row["broker"]),
    )


def _figures(row: dict[str, Any]) -> Figures:
    bounds = [f"{bound:g}" for bound in row["time_bounds"]]
    return Figures(
        answers={
            "none" if number == 0 else f"{number}xx": count
            for number, count in enumerate(row["classes"])
        },
        exceptions=row["exceptions"],
        timed_out=row["timed_out"],
        sent_bytes=row["sent"],
        waited=row["waited"],
        seconds=row["seconds"],
        times=dict(zip([*bounds, "+Inf"], row["times"], strict=True)),
        unsent_bytes=row["unsent"],
        queued=row["queued"],
        stuck=row["stuck"],
        held_uploads=row["held_uploads"],
    )


def ending(status: int) -> str:
    """A wait status in a word or two: ``status 3``, ``SIGKILL``."""
    if not os.WIFSIGNALED(status):
        return f"status {os.waitstatus_to_exitcode(status)}"
    return signal_name(os.WTERMSIG(status))


def _method(row: dict[str, Any], now: float) -> Method:
    return Method(
        name=_printable(row["name"]),
        queued=row["queued"],
        running=row["running"],
        done=row["done"],
        failed=row["failed"],
        oldest=_age(row["oldest_since"], now),
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


def _cpu_seconds(pid: int) -> float | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name may hold blanks and brackets; user and system time are the 14th and 15th field.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    # Arguments may hold newlines (python -c); the heading is one line.
    text = _printable(" ".join(b" ".join(words).decode("utf-8", "replace").split()))
    return process_title.command_in(text)


def _printable(text: str) -> str:
    """*text* without control characters: what others run must not steer our terminal."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
