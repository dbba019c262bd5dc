"""Thread groups of the eventlet backend, on native threads.

``threads`` lists Thread handles, a full group makes add_thread() wait, Thread.wait() raises what
the thread raised, and a stop ends threads that wait in something of eventlet's.
Rules: oslo_service.backend._eventlet.threadgroup.
"""

from __future__ import annotations

import importlib
from typing import Any

from osloxide import threadgroup
from osloxide.backends.eventlet import loopingcall


class Thread(threadgroup.Thread):
    """A handle on one thread of a group."""

    RAISES = True
    KILLS = True


class ThreadGroup(threadgroup.ThreadGroup):
    """Threads and timers that are stopped and awaited together.

    :param thread_pool_size: how many threads the group may have at once.
    :param max_threads: the threading backend's name of *thread_pool_size*.
    :raises ValueError: it is less than 0.
    :raises TypeError: it is no number.
    """

    BLOCKS_WHEN_FULL = True
    LISTS_HANDLES = True
    THREAD = Thread
    FIXED_TIMER = loopingcall.FixedIntervalLoopingCall
    DYNAMIC_TIMER = loopingcall.DynamicLoopingCall

    def __init__(self, thread_pool_size: int = 10, *, max_threads: int | None = None) -> None:
        super().__init__(_size(thread_pool_size if max_threads is None else max_threads))
        self._pool: Any = None

    @property
    def pool(self) -> Any:
        """A ``GreenPool`` of the group's size, made when it is asked for.

        Services give it to a server of their own. The threads of the group are not in it.
        """
        if self._pool is None:
            # Whoever serves the name: nothing of osloxide needs eventlet.
            greenpool = importlib.import_module("eventlet.greenpool")
            self._pool = greenpool.GreenPool(self.thread_pool_size)
        return self._pool


def _size(threads: Any) -> int:
    """The size of a group, refused as ``GreenPool`` refuses it."""
    try:
        size = int(threads)
    except ValueError:
        raise TypeError(
            f"thread_pool_size is {threads!r}, a {type(threads).__name__}: pass the number of "
            "threads that the group may have at once"
        ) from None
    if size < 0:
        raise ValueError(
            f"thread_pool_size is {size}: pass the number of threads that the group may have at "
            "once, 0 or more"
        )
    return size
