"""The CPU that single threads of this process have used.

A thread that others keep from its CPU has done nothing meanwhile: patience with one that computes
is counted in this time and not on a clock. Rules: proc(5), ``schedstat``.
"""

from __future__ import annotations


def used_by(native_id: int) -> float | None:
    """Seconds of CPU that the thread *native_id* has used; None where the kernel does not tell."""
    try:
        with open(f"/proc/self/task/{native_id}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        return None
