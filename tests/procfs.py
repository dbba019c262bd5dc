"""What the kernel tells about running processes: proc(5), read one way by all tests.

Owns the parsing of ``/proc``. Never signals a process, never waits, never asks the program under
test. A process or a thread or a descriptor that ends during the look is left out of the answer: a
reader of ``/proc`` sees others come and go.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Stat:
    """The fields of /proc/PID/stat that matter to the tests."""

    pid: int
    state: str
    """One letter, as ps(1) shows it: R, S, D, T, Z, X."""
    parent: int
    group: int
    session: int
    ticks: int
    """User and system time of all its threads, in TICKS_PER_SECOND."""
    started: float
    """Seconds on CLOCK_BOOTTIME, cut to the kernel's ticks of 10 ms."""

    @property
    def is_alive(self) -> bool:
        """False for a zombie: it has ended, and its parent has not looked yet."""
        return self.state not in "ZX"


def stat(pid: int) -> Stat | None:
    """What the kernel says about *pid*, or None when there is no such process."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the command in parentheses, which may contain any character.
    fields = line.rpartition(")")[2].split()
    return Stat(
        pid,
        state=fields[0],
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        ticks=int(fields[11]) + int(fields[12]),
        started=int(fields[19]) / TICKS_PER_SECOND,
    )


def is_alive(pid: int) -> bool:
    """True while *pid* runs; a zombie has ended."""
    seen = stat(pid)
    return seen is not None and seen.is_alive


def live_processes() -> Iterator[Stat]:
    """Every process that has not ended."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (seen := stat(int(name))) is not None and seen.is_alive:
            yield seen


def children(pid: int) -> list[int]:
    """Live children of *pid*, those of one thread oldest first; none when *pid* has ended."""
    listed: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            listed += map(int, (task / "children").read_text().split())
    return [child for child in listed if is_alive(child)]


def session_members(session: int) -> list[int]:
    """Live processes of *session*, lowest pid first."""
    return sorted(seen.pid for seen in live_processes() if seen.session == session)


def group_members(group: int) -> list[int]:
    """Live processes of the process group *group*, lowest pid first."""
    return sorted(seen.pid for seen in live_processes() if seen.group == group)


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that the live ones among *pids* have used so far."""
    return sum(seen.ticks for pid in pids if (seen := stat(pid)) is not None) / TICKS_PER_SECOND


def wants_cpu(pid: int) -> bool:
    """Whether a thread of *pid* runs, or waits for a processor."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if (task / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "R":
                return True
    return False


def context_switches(pid: int) -> int:
    """Voluntary and involuntary context switches so far of the threads that *pid* has now.

    Those of threads that have ended are gone with them: over a time in which threads end, count
    with :class:`SwitchCount`.
    """
    return sum(count for _, count in _tasks(pid))


class SwitchCount:
    """Context switches of processes from now on, threads that end included.

    The kernel tells them of live threads alone. So :meth:`look` is called often while the time
    passes; what a thread does between the last look at it and its end is missed.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._first: dict[tuple[int, int], int] = {}
        self._ended = 0
        for pid in self._pids:
            for task, count in _tasks(pid):
                self._first[pid, task] = count
        self._last = dict(self._first)

    def look(self) -> bool:
        """Read what the threads have done so far; True, for use as a condition."""
        for pid in self._pids:
            for task, count in _tasks(pid):
                # A smaller count is that of another thread that got the number.
                key = (pid, task)
                if count < self._last.get(key, 0):
                    self._ended += self._since_first(key)
                    self._first[key] = 0
                self._last[key] = count
        return True

    def _since_first(self, key: tuple[int, int]) -> int:
        return self._last[key] - self._first.get(key, 0)

    @property
    def total(self) -> int:
        """Switches since the beginning, as far as the looks have seen them."""
        return self._ended + sum(map(self._since_first, self._last))


def _tasks(pid: int) -> Iterator[tuple[int, int]]:
    """Each thread of *pid*, with its context switches."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield int(task.name), _switches(task)


def main_thread_switches(pid: int) -> int:
    """Context switches of the main thread of *pid* so far."""
    return _switches(Path(f"/proc/{pid}"))


def _switches(task: Path) -> int:
    status = (task / "status").read_text()
    return sum(int(count) for count in re.findall(r"ctxt_switches:\s+(\d+)", status))


def threads(pid: int) -> int:
    """Threads of *pid*; 0 when there is no such process."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/task"))
    return 0


def resident_bytes(pid: int) -> int:
    """Resident memory of *pid*; 0 when there is no such process."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def proportional_bytes(pid: int) -> int:
    """Memory of *pid*, of shared pages its part (PSS); 0 when there is no such process."""
    with contextlib.suppress(OSError):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(rollup.partition("\nPss:")[2].split()[0]) * 1024
    return 0


def open_files(pid: int | str = "self") -> list[str]:
    """What each descriptor of *pid* names: a path, ``socket:[N]``, ``anon_inode:[pidfd]``."""
    targets = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                targets.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return targets


def open_fds(pid: int | str = "self") -> int:
    """Number of open descriptors of *pid*; 0 when there is no such process."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0
