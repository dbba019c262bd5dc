"""The CPU that single threads of this process have used, and have waited for.

A thread that others keep from its CPU has done nothing meanwhile: patience with one that computes
is counted in this time and not on a clock. Rules: proc(5), ``schedstat``.
"""

from __future__ import annotations

from typing import NamedTuple


class Times(NamedTuple):
    """What one thread has had since it began, in seconds."""

    used: float
    """Of CPU."""
    kept_from: float
    """In which it could have computed, and the machine had no CPU for it."""


def used_by(native_id: int) -> float | None:
    """Seconds of CPU that the thread *native_id* has used; None where the kernel does not tell."""
    times = of(native_id)
    return None if times is None else times.used


def of(native_id: int) -> Times | None:
    """The times of the thread *native_id*; None where the kernel does not tell."""
    try:
        with open(f"/proc/self/task/{native_id}/schedstat", encoding="ascii") as file:
            used, kept_from, _slices = file.read().split()
        return Times(int(used) / 1e9, int(kept_from) / 1e9)
    except (OSError, ValueError):
        return None
