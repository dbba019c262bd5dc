"""Native threads behind the few names of eventlet that services use to do things side by side.

Owns a pool of threads that grows on demand, a queue, and timeouts that reach the threads that wait
on such a queue. Never imports eventlet. What a timeout cannot do here is interrupt code that runs:
only green threads can be woken from outside. Contract: ``eventlet.GreenPool``, ``eventlet.queue``,
``eventlet.timeout``, as far as the adapters need them.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent import futures
from typing import Any


class Spawned:
    """A call under way on a thread of its own: the ``GreenThread`` that spawn() returns."""

    def __init__(self, future: futures.Future[Any]) -> None:
        self._future = future

    def wait(self) -> Any:
        """Wait for the end.

        :returns: what the function returned.
        :raises BaseException: what it raised; ``CancelledError`` after :meth:`kill`.
        """
        return self._future.result()

    def kill(self, *_throw: object) -> None:
        """Forget the call; it does not begin if it has not. One that runs, runs to its end."""
        self._future.cancel()

    cancel = kill

    def link(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        """Call *function* with this object once the call has ended."""
        self._future.add_done_callback(lambda _: function(self, *arguments, **keywords))


class Pool:
    """Runs calls on native threads, which are made when none is idle.

    A forked child gets threads of its own. No thread is made before the first call, so that a
    parent which does not use the pool may fork.

    :param size: most calls at once; further ones wait.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._lock = threading.Lock()
        self._executor: futures.ThreadPoolExecutor | None = None
        _pools.add(self)

    def spawn(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Spawned:
        """Begin a call."""
        with self._lock:
            if self._executor is None:
                self._executor = futures.ThreadPoolExecutor(self._size, self._name)
            return Spawned(self._executor.submit(function, *arguments, **keywords))

    def spawn_n(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
        """Begin a call; ``threading.excepthook`` gets what it raises."""
        self.spawn(function, *arguments, **keywords)._future.add_done_callback(_report)

    def _forget_threads(self) -> None:
        self._lock = threading.Lock()
        self._executor = None


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in tuple(_pools):
        pool._forget_threads()


os.register_at_fork(after_in_child=_after_fork)


def _report(future: futures.Future[Any]) -> None:
    error = None if future.cancelled() else future.exception()
    if error is not None:
        threading.excepthook(
            threading.ExceptHookArgs(
                (type(error), error, error.__traceback__, threading.current_thread())
            )
        )


class Timeout:
    """Makes a :class:`Queue` that this thread waits on raise, once *seconds* have passed.

    :param seconds: ``None`` means for ever.
    :param exception: what to raise; this object unless given.
    """

    def __init__(self, seconds: float | None = None, exception: Any = None) -> None:
        self._seconds = seconds
        self._exception = exception
        self.deadline = float("inf")
        self._active: list[Timeout] | None = None

    def __enter__(self) -> Timeout:
        if self._seconds is not None:
            self.deadline = time.monotonic() + self._seconds
        # Kept: a generator may be left on another thread than it was entered on.
        self._active = _active()
        self._active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self._active is not None:
            self._active.remove(self)

    def expire(self) -> None:
        """Raise what was asked for."""
        raise TimeoutError if self._exception is None else self._exception


_local = threading.local()


def _active() -> list[Timeout]:
    timeouts: list[Timeout] | None = getattr(_local, "timeouts", None)
    if timeouts is None:
        timeouts = _local.timeouts = []
    return timeouts


class Queue:
    """A queue whose readers are woken by the timeouts of their thread."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, item: Any) -> None:
        """Add *item*."""
        self._items.put(item)

    def get(self) -> Any:
        """Wait for an item and take it out.

        :raises BaseException: that of the nearest :class:`Timeout`, when it has passed.
        """
        nearest = min(_active(), key=lambda timeout: timeout.deadline, default=None)
        if nearest is None or nearest.deadline == float("inf"):
            return self._items.get()
        try:
            return self._items.get(timeout=max(0.0, nearest.deadline - time.monotonic()))
        except queue.Empty:
            nearest.expire()
