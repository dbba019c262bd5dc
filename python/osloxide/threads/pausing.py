"""Where a fork meets threads whose code counts on being left alone for a while.

Owns the hooks that are asked before a fork. What runs such threads says here whether they have all
come to rest: the greenthreads of osloxide.green wait in something of its own, and looping calls are
between two calls. Knows neither of them, nor who asks. Rules: docs/eventlet.md, "A fork".
"""

from __future__ import annotations

from collections.abc import Callable

_hooks: list[Callable[[], bool]] = []


def serve(hook: Callable[[], bool]) -> None:
    """Have *hook* asked from now on."""
    _hooks.append(hook)


def are_at_rest() -> bool:
    """Whether no such thread is in the midst of something, the calling one aside."""
    return all(hook() for hook in _hooks)
