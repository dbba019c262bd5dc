"""``eventlet.asyncio``: coroutines beside greenthreads.

The coroutine runs on the event loop of the process, whatever hub is selected; a greenthread waits
for it. Rules: eventlet.asyncio.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from osloxide.green import event, greenthread

__all__ = ["spawn_for_awaitable"]


def spawn_for_awaitable(coroutine: Awaitable[Any]) -> greenthread.GreenThread:
    """Run *coroutine*; ``wait()`` of the result returns what it returned. Killing it cancels it."""
    return greenthread.spawn(_run, coroutine)


def _run(awaitable: Awaitable[Any]) -> Any:
    from osloxide.threads import event_loop

    async def run() -> Any:
        return await awaitable

    done = event.Event()
    cancel = event_loop.event_loop().start(run(), done.send)
    try:
        outcome = done.wait()
    except BaseException:
        cancel()
        raise
    return outcome()
