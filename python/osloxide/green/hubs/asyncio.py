"""``eventlet.hubs.asyncio``: a name to compare with; the hub is never this one."""

from __future__ import annotations

__all__ = ["Hub", "is_available"]


def is_available() -> bool:
    """False: there is one hub."""
    return False


class Hub:
    """eventlet's hub over asyncio, which is not served."""

    def __init__(self) -> None:
        raise NotImplementedError(
            "osloxide serves eventlet from native threads and has no asyncio hub; leave "
            "EVENTLET_HUB=asyncio out: coroutines run with eventlet.asyncio.spawn_for_awaitable() "
            "all the same"
        )
