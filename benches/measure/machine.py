"""What the machine and a process tree used, from /proc. Reads only; starts and decides nothing."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")


def cores(workers: int = 1) -> tuple[list[int], list[int]]:
    """The cores for a server with *workers* processes and those for the client.

    Where there are not enough, several workers share all cores with the client: what a request
    costs can still be told, the rates less so.

    :raises RuntimeError: there is only one core to run on.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise RuntimeError(
            f"only core {allowed} may be used; server and client need one each, so nothing that "
            "is measured here would mean anything"
        )
    if workers == 1:
        return allowed[:1], allowed[1:2]
    if len(allowed) > workers:
        return allowed[:workers], allowed[workers : workers + 1]
    return allowed, allowed


def members(group: int) -> list[int]:
    """Live processes of process group *group*."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        fields = stat(int(entry))
        if fields and int(fields[2]) == group and fields[0] != "Z":
            found.append(int(entry))
    return found


def stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on (field 3); empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@dataclass(frozen=True)
class Cpu:
    """Seconds of CPU."""

    user: float
    system: float

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.user - other.user, self.system - other.system)

    @property
    def total(self) -> float:
        return self.user + self.system


def cpu(pids: Sequence[int]) -> Cpu:
    """What *pids* and their reaped children used so far."""
    user = system = 0
    for pid in pids:
        fields = stat(pid)
        if fields:
            user += int(fields[11]) + int(fields[13])
            system += int(fields[12]) + int(fields[14])
    return Cpu(user / TICKS, system / TICKS)


def ready(pids: Sequence[int]) -> float:
    """Seconds that the threads of *pids* ran or were ready to run so far, all added up.

    Grows by one a second for each thread that waits for nothing but a CPU, however many other
    processes compete for it. Threads that have ended are left out. Rules: schedstat in the kernel's
    Documentation/scheduler/sched-stats.rst.
    """
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    fields = Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()
                    total += int(fields[0]) + int(fields[1])
    return total / 1e9


def own_children() -> float:
    """CPU seconds of the reaped children of this process, and of itself."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def busy() -> float:
    """CPU seconds that the whole machine used so far, stolen time included."""
    fields = [int(value) for value in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / TICKS


def pss(pids: list[int]) -> int:
    """Proportional set size in KiB."""
    return _of_smaps(pids, "Pss:")


def private(pids: list[int]) -> int:
    """KiB that no other process has."""
    return _of_smaps(pids, "Private_Clean:", "Private_Dirty:")


def _of_smaps(pids: list[int], *names: str) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(names):
                    total += int(line.split()[1])
    return total


def switches(pid: int) -> int:
    """Context switches of all threads of *pid*: each is a wake-up or the end of one."""
    total = 0
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for line in Path(f"/proc/{pid}/task/{task}/status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    total += int(line.split()[1])
    return total


def description() -> dict[str, Any]:
    """What a reader needs to know about where the figures come from."""
    model = "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    return {
        "commit": commit,
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
