"""Where a fork meets threads whose code counts on being left alone between two of its waits.

Owns one hook. What runs such threads (osloxide.green) says here whether all of them wait in
something of its own. Knows neither the waits nor who asks. Rules: docs/eventlet.md, "A fork".
"""

from __future__ import annotations

from collections.abc import Callable

_are_parked: Callable[[], bool] | None = None


def serve(are_parked: Callable[[], bool]) -> None:
    """Have *are_parked* asked from now on."""
    global _are_parked
    _are_parked = are_parked


def are_parked() -> bool:
    """Whether no such thread is between two waits, the calling one aside."""
    return _are_parked is None or _are_parked()
