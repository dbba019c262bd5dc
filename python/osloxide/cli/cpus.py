"""How many processors this process may use: what ``--workers auto`` means.

Owns the reading of affinity and of cgroup quotas. Sets nothing.

Rules: sched_getaffinity(2); cgroup v2 ``cpu.max``, v1 ``cpu.cfs_quota_us`` and
``cpu.cfs_period_us`` (Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/sched-bwc).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def count() -> int:
    """Processors of the affinity mask, or fewer where a cgroup allows less time; at least 1.

    A quota of 1.5 processors is 2: a worker that waits leaves its share to the others.
    """
    allowed = [len(os.sched_getaffinity(0)), *map(math.ceil, _quotas())]
    return max(1, min(allowed))


def _quotas() -> Iterator[float]:
    """What each cgroup that this process is in allows, in processors."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return  # no /proc, no cgroups
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root = CGROUPS
        elif "cpu" in controllers.split(","):
            root = CGROUPS / controllers
        else:
            continue
        # Limits of the groups above hold as well. A container sees its own group as the root.
        group = root / path.lstrip("/")
        for directory in (group, *group.parents):
            if not directory.is_relative_to(root):
                break
            if (quota := _quota(directory)) is not None:
                yield quota


def _quota(group: Path) -> float | None:
    try:
        words = (group / "cpu.max").read_text().split()
    except OSError:
        try:
            words = [(group / f"cpu.cfs_{it}_us").read_text() for it in ("quota", "period")]
        except OSError:
            return None
    try:
        quota, period = (int(word) for word in words)
    except ValueError:
        return None  # "max": no limit
    return quota / period if quota > 0 and period > 0 else None
