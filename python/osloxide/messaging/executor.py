"""The executor under oslo.messaging: ``concurrent.futures`` on elastic native threads.

Owns :class:`Executor` and its :class:`Future`. Queue and threads are native (``src/executor``,
``src/pool``). Knows nothing of messages: what is acknowledged when is the transport's business
(:mod:`osloxide.messaging.rabbit`), and :mod:`osloxide.messaging.hook` puts it under servers.
Rules: PEP 3148; docs/rpc.md says what differs from futurist, which oslo.messaging uses otherwise.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from osloxide import _native
from osloxide._typing import override
from osloxide.threads import at_end, identity

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_WORKERS = 64
"""oslo.messaging's default of ``executor_thread_pool_size``."""

_INTERNALS: dict[str, Callable[[], Any]] = {
    "_condition": threading.Condition,
    "_waiters": list,
    "_done_callbacks": list,
}


class Future(concurrent.futures.Future[T]):
    """A ``concurrent.futures.Future`` whose lock is made when it is first needed.

    Most futures of an RPC server are dropped unseen. Making their condition would cost as much as
    everything else that a job needs, so the executor finishes a future that no caller has looked
    into by writing its fields; every method of the base class works as ever.
    """

    # What the base class sets for each instance; plain values may live here.
    _state = "PENDING"
    _result: Any = None
    _exception: BaseException | None = None

    def __init__(self) -> None:
        """Make a pending future. Only executors and tests do."""
        # Not the base class's: it would make the condition.

    @override
    def result(self, timeout: float | None = None) -> T:
        """What the job returned; raises what it raised.

        :param timeout: seconds to wait for it; ``None`` waits for ever.
        :raises TimeoutError: it has not ended in time.
        :raises concurrent.futures.CancelledError: it was cancelled.
        """
        # Written last, and never changed again: nothing has to be locked to read what is there.
        if self._state == "FINISHED" and self._exception is None:
            return cast("T", self._result)
        return super().result(timeout)

    def __getattr__(self, name: str) -> Any:
        """Make one of the base class's internals, once, whichever thread asks first."""
        make = _INTERNALS.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.__dict__.setdefault(name, make())


def _fields(future: concurrent.futures.Future[Any]) -> set[str]:
    return set(vars(future))


def _future_maker() -> Callable[[], concurrent.futures.Future[Any]]:
    """What makes a :class:`Future`, without a frame of Python code.

    An ordinary future when this Python's futures are made of other parts than :class:`Future`
    knows, or where the interpreter has no lock (PEP 703): a :class:`Future` is finished between a
    look and a write that only the lock keeps together.
    """
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return concurrent.futures.Future
    known = {*_INTERNALS, "_state", "_result", "_exception"}
    plain: concurrent.futures.Future[Any] = concurrent.futures.Future()
    if _fields(plain) != known:
        return concurrent.futures.Future
    return functools.partial(object.__new__, Future)


class Executor(concurrent.futures.Executor):
    """Runs callables on at most *max_workers* native threads.

    Threads come when jobs block and leave 15 s after a burst; none exists before the first job and
    an idle executor causes no wake-up. They are ordinary to Python: ``threading.current_thread()``,
    ``join()``, thread-local data, ``threading.settrace()`` and faulthandler work as usual.

    A job that returns a coroutine (a function written as ``async def``) goes on with it on the
    worker's event loop and lets go of its thread; the future gets what the coroutine returns or
    raises. Such jobs and those on threads are *max_workers* together.
    ``submit_as(name, fn, *args)`` is ``submit`` for a job that ``osloxide top`` and the metrics
    count under *name*, and as failed when it raises or returns False.

    :param max_workers: jobs that may run at once, at least 1; ``None`` means 64.
    :param thread_name_prefix: beginning of the names of threads.
    :param max_queued: jobs that may wait; 0 means no bound. :meth:`submit` waits for room, which
        keeps a listener from taking messages for which no thread is free.
    :raises ValueError: *max_workers* is below 1 or *max_queued* below 0.

    Made in one process, it works in no other: make it after the fork.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "osloxide-rpc",
        *,
        max_queued: int = 0,
    ) -> None:
        if max_workers is None:
            max_workers = DEFAULT_WORKERS
        if max_workers < 1:
            raise ValueError(f"max_workers is {max_workers}; give at least 1")
        if max_queued < 0:
            raise ValueError(f"max_queued is {max_queued}; give 0 for no bound, or more")
        self._max_workers = max_workers
        self._is_shut = False
        self.native = _native.Executor(
            _future_maker(), max_workers, max_queued=max_queued, thread_name=thread_name_prefix
        )
        if type(self).submit is concurrent.futures.Executor.submit:
            # Without a Python frame for each job; a subclass may still have its own.
            self.submit = self.native.submit  # type: ignore[method-assign]
        self.submit_as = self.native.submit_as
        _alive.add(self)
        weakref.finalize(self, _outlive, self.native).atexit = False

    if TYPE_CHECKING:

        @override
        def submit(
            self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
        ) -> concurrent.futures.Future[T]:
            """Run ``fn(*args, **kwargs)`` on a thread; the future gets what it returns or raises.

            :raises RuntimeError: the executor was shut down, belongs to another process, or the
                kernel gave it no thread at all.
            """

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs.

        :param wait: return only when every job has ended. Signals are handled during the wait.
        :param cancel_futures: cancel the jobs that no thread has begun. The attribute
            ``when_cancelled`` of their function, where it has one, is called with a list of their
            arguments.
        """
        self._is_shut = True
        told: dict[Callable[[list[tuple[Any, ...]]], object], list[tuple[Any, ...]]] = {}
        for future, function, arguments in self.native.close(cancel_futures):
            future.cancel()
            future.set_running_or_notify_cancel()
            when_cancelled = getattr(function, "when_cancelled", None)
            if when_cancelled is not None:
                told.setdefault(when_cancelled, []).append(arguments)
        for when_cancelled, calls in told.items():
            when_cancelled(calls)
        if wait:
            self.native.wait()

    def drain(self, timeout: float) -> bool:
        """Take no more jobs and wait until the queued ones have ended.

        :param timeout: seconds; 0 only asks.
        :returns: False when *timeout* passed first. The jobs go on.
        """
        self._is_shut = True
        self.native.close()
        return self.native.wait(timeout)

    def stats(self) -> dict[str, Any]:
        """Counters of this moment.

        :returns: ``threads``, ``busy``, ``queued``, ``held`` (coroutines), ``most_queued``,
            ``begun``, ``cancelled``, and in seconds ``oldest_wait`` (of the next job) and
            ``total_wait`` (of all that began).
        """
        return self.native.stats()

    # ---- futurist's names, which some services read ---------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether jobs are still taken."""
        return not self._is_shut

    @property
    def queue_size(self) -> int:
        """Jobs that no thread has begun."""
        return int(self.stats()["queued"])

    @property
    def num_workers(self) -> int:
        """Threads alive."""
        return int(self.stats()["threads"])

    def get_num_idle_workers(self) -> int:
        """Threads alive without a job."""
        stats = self.stats()
        return int(stats["threads"] - stats["busy"])


_alive: identity.WeakIdentitySet[Executor] = identity.WeakIdentitySet()


_orphaned: list[_native.Executor] = []
"""Cores of executors that were collected before their last job had ended."""


def _outlive(native: _native.Executor) -> None:
    """An executor was collected: its core is kept for as long as it has jobs to do.

    It is closed, so that its threads leave after the last job and not when the next executor is
    collected. A job whose result has just been taken still counts as busy.
    """
    with contextlib.suppress(RuntimeError):  # made by the process that this one was forked from
        _orphaned[:] = [other for other in (*_orphaned, native) if _has_jobs(other)]
        if native in _orphaned:
            native.close()


def _has_jobs(native: _native.Executor) -> bool:
    stats = native.stats()
    return bool(stats["busy"] or stats["queued"] or stats["held"])


def _finish_all() -> None:
    """Run what is queued before the interpreter goes, as concurrent.futures does."""
    while _orphaned:
        with contextlib.suppress(RuntimeError):
            native = _orphaned.pop()
            native.close()
            native.wait()
    for executor in list(_alive):
        try:
            executor.shutdown(wait=True)
        except RuntimeError:
            continue  # made by the process that this one was forked from


at_end.call(at_end.Turn.EXECUTORS, _finish_all)
