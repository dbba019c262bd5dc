"""Thread groups of the threading backend.

``threads`` lists native threads, a full group refuses, and neither Thread.wait() nor
ThreadGroup.wait() raises what a thread raised (it was logged), be it SystemExit.
Rules: oslo_service.backend._threading.threadgroup.
"""

from __future__ import annotations

from osloxide import threadgroup
from osloxide.backends.threading import loopingcall


class Thread(threadgroup.Thread):
    """A handle on one thread of a group."""


class ThreadGroup(threadgroup.ThreadGroup):
    """Threads and timers that are stopped and awaited together.

    :param max_threads: how many threads the group may have at once.
    :param thread_pool_size: the eventlet backend's name of *max_threads*.
    """

    EXITS = False
    THREAD = Thread
    FIXED_TIMER = loopingcall.FixedIntervalLoopingCall
    DYNAMIC_TIMER = loopingcall.DynamicLoopingCall

    def __init__(self, max_threads: int = 1000, *, thread_pool_size: int | None = None) -> None:
        super().__init__(max_threads if thread_pool_size is None else thread_pool_size)


class StartGroup(ThreadGroup):
    """The threads on which a Launcher starts services: a failed start ends its wait()."""

    EXITS = True
