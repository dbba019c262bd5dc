"""The event loop of a worker: where endpoints and services written as ``async def`` run.

Owns one asyncio loop and its thread, made in the process that first needs them (never before a
fork), the tasks on it, and their cancellation when a graceful stop runs out of time. Knows neither
messages nor executors: the caller that hands a coroutine over says what is to be called at its end.
Rules: PEP 492 and asyncio; docs/rpc.md says why it is plain asyncio.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from osloxide.threads import inherited, own

if TYPE_CHECKING:  # not before a coroutine runs: importing it costs every service 20 ms
    import asyncio

LOG = logging.getLogger(__name__)

Outcome = Callable[[], Any]
"""What a coroutine came to: returns its result, or raises what it raised."""


class CancelledAtStopError(Exception):
    """A coroutine was cancelled: the process stops and its grace period is nearly over.

    An ordinary exception, unlike ``asyncio.CancelledError``: a client that waits for the reply gets
    it as an answer.
    """


class Later:
    """A result that is not there yet: a coroutine, and what to make of its outcome.

    A job of :class:`osloxide.messaging.executor.Executor` that returns one lets go of its thread;
    *then* runs on a thread again, in the job's place.

    :param coroutine: runs on the event loop, in a copy of the current context variables.
    :param then: called with the :data:`Outcome`; what it returns or raises is the job's.
    """

    __slots__ = ("coroutine", "then")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], then: Callable[[Outcome], Any]) -> None:
        self.coroutine = coroutine
        self.then = then


class EventLoop:
    """One asyncio loop on one thread, for as long as the process lives."""

    def __init__(self) -> None:
        import asyncio

        self._asyncio = asyncio
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cancel_at: float | None = None
        self.thread = own.start("osloxide-asyncio", self._run)

    def _run(self) -> None:
        self._asyncio.set_event_loop(self._loop)
        while True:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                # asyncio stores the exception in its task and then raises it out of the loop, whose
                # other tasks it would leave where they are. The task's caller gets it all the same.
                LOG.warning(
                    "a coroutine raised %s; the event loop of process %d goes on",
                    type(error).__name__,
                    os.getpid(),
                )
            else:
                return

    def start(
        self, coroutine: Coroutine[Any, Any, Any], done: Callable[[Outcome], Any]
    ) -> Callable[[], None]:
        """Run *coroutine*; any thread may ask.

        :param done: called on the loop's thread with the outcome. Must not block.
        :returns: what cancels it, callable from any thread.
        """
        context = contextvars.copy_context()
        tasks: list[asyncio.Task[Any]] = []

        def begin() -> None:
            task = self._loop.create_task(coroutine, context=context)
            self._tasks.add(task)
            tasks.append(task)
            task.add_done_callback(ended)
            if self._cancel_at is not None and self._loop.time() >= self._cancel_at:
                task.cancel()

        def ended(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            done(self._outcome(task))

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        self._loop.call_soon_threadsafe(begin)
        return lambda: self._call(cancel)

    def _outcome(self, task: asyncio.Task[Any]) -> Outcome:
        if not task.cancelled():
            return task.result
        error = CancelledAtStopError(f"{task.get_coro()!r} was cancelled before it had ended")

        def refuse() -> Any:
            raise error

        return refuse

    def _call(self, function: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(function)

    def cancel_at(self, instant: float) -> None:
        """Cancel what still runs, and what begins later, at *instant* of time.monotonic()."""

        def cancel() -> None:
            if self._tasks:
                LOG.warning(
                    "the grace period ends: cancelling %d coroutines that still run",
                    len(self._tasks),
                )
            for task in self._tasks:
                task.cancel()

        def arm() -> None:
            # The clocks are one on Linux, yet asyncio promises only that its own is monotonic.
            left = max(0.0, instant - time.monotonic())
            self._cancel_at = self._loop.time() + left
            self._loop.call_later(left, cancel)

        self._call(arm)

    @property
    def running(self) -> int:
        """Coroutines that have not ended."""
        return len(self._tasks)


_lock = threading.Lock()
_loop: EventLoop | None = None
_cancel_at: float | None = None


def event_loop() -> EventLoop:
    """The loop of this process; made on first use."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = EventLoop()
            if _cancel_at is not None:
                _loop.cancel_at(_cancel_at)
        return _loop


def start(what: Coroutine[Any, Any, Any] | Later, resume: Callable[..., bool]) -> None:
    """Run *what* for an executor's job; called by the native executor.

    :param resume: called once with a function and arguments that finish the job.
    """
    if isinstance(what, Later):
        then = what.then
        event_loop().start(what.coroutine, lambda outcome: resume(then, outcome))
    else:
        event_loop().start(what, resume)


def complete(value: Any) -> Any:
    """*value*, or what it comes to when it is a coroutine: for callers with a thread of their own.

    Python signal handlers run during the wait; what they raise cancels the coroutine.

    :raises RuntimeError: called on the loop's own thread, which would wait for itself.
    """
    if not isinstance(value, Coroutine):
        return value
    loop = event_loop()
    if threading.current_thread() is loop.thread:
        value.close()
        raise RuntimeError("the event loop cannot wait for itself; await the coroutine instead")
    ended = threading.Event()
    outcomes: list[Outcome] = []

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        ended.set()

    cancel = loop.start(value, done)
    try:
        ended.wait()
    except BaseException:
        cancel()
        raise
    return outcomes[0]()


def cancel_before(deadline: float) -> None:
    """The process stops: cancel coroutines early enough to leave them time to clean up.

    :param deadline: time.monotonic() at which it is killed.
    """
    global _cancel_at
    grace = max(0.0, deadline - time.monotonic())
    with _lock:
        _cancel_at = deadline - min(2.0, grace / 10)
        if _loop is not None:
            _loop.cancel_at(_cancel_at)


def _forget() -> None:
    """A forked child has neither the thread nor the tasks."""
    global _lock, _loop, _cancel_at
    inherited.keep(_loop)
    _lock = threading.Lock()
    _loop = _cancel_at = None


os.register_at_fork(after_in_child=_forget)
