"""Thread groups: the threads and timers that belong to one service.

Owns the list of a group's threads and looping calls, and waking the threads that wait for them.
Native threads cannot be killed: stop() without *graceful* forgets them, wait() then no longer waits
for them, and as daemon threads they do not keep the process alive. A thread may look at
``threading.current_thread().abort``, an event that is set when its group stops. Under the eventlet
backend a thread that waits in something of eventlet's is ended there, and awaited.

Rules: oslo_service.threadgroup (oslo.service 4.8), both backends; what differs between them
(signatures, what a full group does, what Thread.wait() raises) are class attributes here.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from osloxide import loopingcall
from osloxide._typing import override
from osloxide.signals import waiting
from osloxide.threads import forked, identity, inherited, stopping

LOG = logging.getLogger(__name__)


class GroupThread(threading.Thread):
    """A native thread of a group, with its outcome.

    :param group: the group that is told when the thread ends.
    :param callback: the function to run.
    :param args: its positional arguments.
    :param kw: its keyword arguments.
    """

    def __init__(
        self,
        group: ThreadGroup,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        kw: dict[str, Any],
    ) -> None:
        name = getattr(callback, "__qualname__", type(callback).__qualname__)
        super().__init__(name=f"{name} of a thread group", daemon=True)
        self.args = args
        self.kw = kw
        self.abort = threading.Event()
        self.cancelled = False
        self.result: Any = None
        self.failure: BaseException | None = None
        self.begun = threading.Event()
        """Set when it runs, or is known never to."""
        self.released = threading.Event()
        """Set when nothing waits for this thread any more: it ended, or was forgotten."""
        self._group = group
        self._callback = callback
        self._links: list[Callable[[], object]] = []
        self._links_lock = threading.Lock()
        self._ended = False

    @override
    def run(self) -> None:
        waiting.fire(self.begun)
        try:
            if not self.cancelled:
                self.result = forked.call(self._callback, *self.args, **self.kw)
        except Exception as exc:
            self.failure = exc
            LOG.exception("Thread %s failed", self.name)
        except BaseException as exc:  # noqa: BLE001  # SystemExit: the group's wait() may raise it
            self.failure = exc
            if not self._group.EXITS:
                LOG.warning("Thread %s ended with %r; the process goes on", self.name, exc)
        finally:
            self._group.thread_done(self)
            with self._links_lock:
                self._ended = True
                links = self._links
                self._links = []
            for link in links:
                _call_link(link)
            waiting.fire(self.released)

    def add_link(self, link: Callable[[], object]) -> None:
        """Call *link* when the thread ends, or now when it has."""
        with self._links_lock:
            if not self._ended:
                self._links.append(link)
                return
        _call_link(link)

    def outcome(self) -> Any:
        """Wait for the end; returns what the function returned and raises what it raised."""
        if self is not threading.current_thread():
            # The group lists a thread from before it starts.
            waiting.wait_for(self.begun)
            if self.ident is not None:
                self.join()
        if self.failure is not None:
            raise self.failure
        return self.result


def release_current() -> None:
    """The calling thread is about to wait for what waits for its group: that waits for it no more.

    Does nothing on a thread of no group.
    """
    current = threading.current_thread()
    if isinstance(current, GroupThread):
        waiting.fire(current.released)


def _call_link(link: Callable[[], object]) -> None:
    try:
        link()
    except Exception:
        LOG.exception("A function linked to a thread failed")


class _Outcome:
    """What a linked function is given: like the green thread that eventlet hands over."""

    def __init__(self, thread: GroupThread) -> None:
        self._thread = thread

    def wait(self) -> Any:
        return self._thread.outcome()


class Thread:
    """A handle on one thread of a group.

    :param thread: the native thread.
    :param group: the group that it belongs to.
    """

    RAISES: ClassVar[bool] = False
    """Whether wait() raises what the thread's function raised (it is logged in any case)."""
    KILLS: ClassVar[bool] = False
    """Whether stop() ends the thread where it waits in something of eventlet's."""

    def __init__(self, thread: threading.Thread, group: ThreadGroup | None = None) -> None:
        self.thread = thread
        self.group = group
        self._ident = getattr(thread, "ident", None) or id(thread)

    @property
    def ident(self) -> int:
        """Identifier of the thread, as ``threading.get_ident()`` gives inside it."""
        return self._ident

    def stop(self) -> None:
        """Ask the thread to end by setting its ``abort`` event; with :attr:`KILLS` it is ended.

        :raises BaseException: the calling thread is to be ended: GreenletExit.
        """
        _abort(self.thread)
        if self.KILLS:
            _kill(self.thread)

    def wait(self) -> Any:
        """Wait for the thread to end.

        :returns: what its function returned, None when that raised.
        """
        if not isinstance(self.thread, GroupThread):
            self.thread.join()
            return None
        try:
            return self.thread.outcome()
        except BaseException:
            # What is raised here without the thread having failed is meant for the caller.
            if self.RAISES or self.thread.failure is None:
                raise
            return None

    def link(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call ``func(outcome, *args, **kwargs)`` on the thread when it ends, or now when it has.

        ``outcome.wait()`` returns or raises what the thread's function did.
        """
        thread = self.thread
        if isinstance(thread, GroupThread):
            thread.add_link(lambda: func(_Outcome(thread), *args, **kwargs))

    def cancel(self, *throw_args: Any) -> None:
        """Keep the function from being called, if its thread has not come to that yet.

        :param throw_args: accepted for compatibility; nothing can be thrown into a native thread.
        """
        if isinstance(self.thread, GroupThread):
            self.thread.cancelled = True


class ThreadGroup:
    """Threads and timers that are stopped and awaited together.

    :param thread_pool_size: how many threads the group may have at once; timers do not count.
    :param max_threads: the threading backend's name for *thread_pool_size*.
    """

    DEFAULT_SIZE: ClassVar[int] = 1000
    BLOCKS_WHEN_FULL: ClassVar[bool] = False
    """Whether add_thread() waits for room; otherwise it raises RuntimeError."""
    THREAD: ClassVar[type[Thread]] = Thread
    EXITS: ClassVar[bool] = True
    """Whether wait() raises the SystemExit of a thread; otherwise that ends the thread alone."""
    LISTS_HANDLES: ClassVar[bool] = False
    """Whether ``threads`` lists :class:`Thread` handles; otherwise native threads."""
    FIXED_TIMER: ClassVar[type[loopingcall.FixedIntervalLoopingCall]] = (
        loopingcall.FixedIntervalLoopingCall
    )
    DYNAMIC_TIMER: ClassVar[type[loopingcall.DynamicLoopingCall]] = loopingcall.DynamicLoopingCall

    def __init__(
        self, thread_pool_size: int | None = None, *, max_threads: int | None = None
    ) -> None:
        if thread_pool_size is not None and max_threads is not None:
            raise TypeError(
                f"{type(self).__name__} got both thread_pool_size={thread_pool_size} and "
                f"max_threads={max_threads}; they mean the same, pass one"
            )
        size = thread_pool_size if max_threads is None else max_threads
        self.thread_pool_size = self.DEFAULT_SIZE if size is None else size
        self.threads: list[Any] = []
        self.timers: list[Any] = []
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._exit: SystemExit | None = None
        _groups.add(self)

    @property
    def max_threads(self) -> int:
        """Deprecated name of ``thread_pool_size``."""
        warnings.warn(
            "ThreadGroup.max_threads is deprecated and will be removed. "
            "Use thread_pool_size instead.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.thread_pool_size

    def _begin_in_child(self) -> None:
        """In a forked child it has the thread that has forked, if that is one of its own."""
        self._lock = threading.Lock()  # another thread may have held the inherited one
        self._room = threading.Condition(self._lock)
        current = threading.current_thread()
        gone = [thread for thread in map(_native, self.threads) if thread is not current]
        self.threads[:] = [entry for entry in self.threads if _native(entry) is current]
        inherited.keep(gone)
        for thread in gone:
            if isinstance(thread, GroupThread):
                thread.begun = inherited.event_of_the_past()
                thread.released = inherited.event_of_the_past()

    # ---- threads

    def add_thread(self, callback: Callable[..., Any], *args: Any, **kwargs: Any) -> Thread:
        """Run *callback* on a thread of its own.

        :returns: a handle on the thread.
        :raises RuntimeError: the group is full (threading backend). Under the eventlet backend this
            waits until a thread has ended; a thread of the group itself runs *callback* at once,
            and gets what that raises.
        """
        current = threading.current_thread()
        thread = GroupThread(self, callback, args, kwargs)
        handle = self.THREAD(thread, self)
        with self._lock:
            is_nested = False
            while len(self.threads) >= self.thread_pool_size and not is_nested:
                if not self.BLOCKS_WHEN_FULL:
                    raise RuntimeError("Maximum number of threads reached")
                is_nested = any(_native(entry) is current for entry in self.threads)
                if not is_nested:
                    self._room.wait()
            if not is_nested:
                self.threads.append(handle if self.LISTS_HANDLES else thread)
        if is_nested:
            # The calling thread holds the room that it would wait for, and is in the list itself:
            # what runs here must not wait for its own end when it waits for the group.
            thread.run()
            if thread.failure is not None:
                raise thread.failure
            return handle
        try:
            thread.start()
        except BaseException:
            self.thread_done(thread)
            waiting.fire(thread.begun)
            waiting.fire(thread.released)
            raise
        handle._ident = thread.ident or id(thread)
        return handle

    def thread_done(self, thread: threading.Thread | Thread) -> None:
        """Take a thread out of the group; called by itself when one ends.

        One that is not in the group's list, as it runs inside another one, is ignored there.
        """
        raw = _native(thread)
        failure = getattr(raw, "failure", None)
        with self._lock:
            if self.EXITS and isinstance(failure, SystemExit) and self._exit is None:
                self._exit = failure
            self.threads[:] = [entry for entry in self.threads if _native(entry) is not raw]
            self._room.notify_all()

    # ---- timers

    def add_timer(
        self,
        interval: float,
        callback: Callable[..., Any],
        initial_delay: float | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Deprecated with arguments for *callback*; see :meth:`add_timer_args`."""
        if args or kwargs:
            _warn_of_arguments("add_timer")
        return self.add_timer_args(interval, callback, args, kwargs, initial_delay=initial_delay)

    def add_timer_args(
        self,
        interval: float,
        callback: Callable[..., Any],
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        initial_delay: float | None = None,
        stop_on_exception: bool = True,
    ) -> Any:
        """Call *callback* at a fixed interval.

        :param interval: seconds; other parameters as for
            :meth:`osloxide.loopingcall.FixedIntervalLoopingCall.start`.
        :returns: the looping call.
        """
        timer = self.FIXED_TIMER(callback, *(args or ()), **(kwargs or {}))
        return self._start_timer(
            timer,
            interval=interval,
            initial_delay=initial_delay,
            stop_on_exception=stop_on_exception,
        )

    def add_dynamic_timer(
        self,
        callback: Callable[..., Any],
        initial_delay: float | None = None,
        periodic_interval_max: float | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Deprecated with arguments for *callback*; see :meth:`add_dynamic_timer_args`."""
        if args or kwargs:
            _warn_of_arguments("add_dynamic_timer")
        return self.add_dynamic_timer_args(
            callback,
            args,
            kwargs,
            initial_delay=initial_delay,
            periodic_interval_max=periodic_interval_max,
        )

    def add_dynamic_timer_args(
        self,
        callback: Callable[..., Any],
        args: Iterable[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        initial_delay: float | None = None,
        periodic_interval_max: float | None = None,
        stop_on_exception: bool = True,
    ) -> Any:
        """Call *callback* at intervals that it returns itself.

        :param periodic_interval_max: seconds; this and the other parameters as for
            :meth:`osloxide.loopingcall.DynamicLoopingCall.start`.
        :returns: the looping call.
        """
        timer = self.DYNAMIC_TIMER(callback, *(args or ()), **(kwargs or {}))
        return self._start_timer(
            timer,
            initial_delay=initial_delay,
            periodic_interval_max=periodic_interval_max,
            stop_on_exception=stop_on_exception,
        )

    def _start_timer(self, timer: Any, **when: Any) -> Any:
        # One step for other threads: a first call that stops the group, and a stop() at the same
        # moment, find the timer in the list.
        with self._lock:
            timer.start(**when)
            self.timers.append(timer)
        return timer

    def timer_done(self, timer: Any) -> None:
        """Take a timer out of the group; an unknown one is ignored."""
        with self._lock:
            self.timers[:] = [entry for entry in self.timers if entry is not timer]

    def stop_timers(self, wait: bool = False) -> None:
        """Stop all timers and take them out of the group.

        :param wait: also wait for calls that are running.
        """
        with self._lock:
            timers = self.timers
            self.timers = []
        for timer in timers:
            timer.stop()
        if wait:
            _wait_for_timers(timers)

    # ---- the whole group

    def stop(self, graceful: bool = False) -> None:
        """Stop the timers, then the threads.

        :param graceful: wait for threads and running timer calls to end; otherwise forget them.
            Under the eventlet backend threads that wait in something of eventlet's get
            GreenletExit there, and :meth:`wait` awaits them.
            The calling thread itself is neither awaited nor forgotten nor ended.
        """
        self.stop_timers(wait=graceful)
        if graceful:
            self._wait_threads()
        else:
            self._stop_threads()

    def _stop_threads(self) -> None:
        current = threading.current_thread()
        with self._lock:
            others = [t for t in map(_native, self.threads) if t is not current]
        for thread in others:
            _abort(thread)
        forgotten = []
        for thread in others:
            try:
                is_ending = self.THREAD.KILLS and _kill(thread)
            except BaseException as exc:
                # The calling thread is ended itself meanwhile, as by a thread of the group that
                # stops the group in its cleanup. The other threads are still to be ended.
                if not stopping.is_kill(exc):
                    raise
                is_ending = True
            if not is_ending:
                forgotten.append(thread)
        with self._lock:
            gone = {id(thread) for thread in forgotten}
            self.threads[:] = [t for t in self.threads if id(_native(t)) not in gone]
            self._room.notify_all()
        for thread in forgotten:
            if isinstance(thread, GroupThread):
                waiting.fire(thread.released)

    def _wait_threads(self, *, interruptible: bool = False) -> None:
        current = threading.current_thread()
        while True:
            with self._lock:
                pending = [
                    t
                    for t in map(_native, self.threads)
                    if t is not current and not _is_released(t)
                ]
            if not pending:
                return
            for thread in pending:
                if isinstance(thread, GroupThread):
                    waiting.wait_for(thread.released, interruptible=interruptible)
                else:
                    thread.join()
                    self.thread_done(thread)

    def wait(self) -> None:
        """Wait until all timers and threads have ended or the group was stopped.

        A timer that is not stopped keeps this waiting.

        :raises SystemExit: a thread of the group ended with it (eventlet backend, and the threads
            of a Launcher); other exceptions are logged.
        """
        with self._lock:
            timers = list(self.timers)
        _wait_for_timers(timers, interruptible=True)
        self._wait_threads(interruptible=True)
        with self._lock:
            leaving = self._exit
            self._exit = None
        if leaving is not None:
            raise leaving

    def waitall(self) -> None:
        """The threading backend's name of :meth:`wait`."""
        self.wait()

    def cancel(self, *throw_args: Any, timeout: float | None = None, wait_time: float = 1) -> None:
        """Cancel threads that have not begun; deprecated.

        :param throw_args: accepted for compatibility.
        :param timeout: seconds to wait for the others to end before they are stopped; None leaves
            them alone.
        :param wait_time: accepted for compatibility: the end of a thread is noticed at once.
        """
        current = threading.current_thread()
        with self._lock:
            pending = [t for t in map(_native, self.threads) if t is not current]
        for thread in pending:
            if isinstance(thread, GroupThread):
                thread.cancelled = True
        if timeout is None:
            return
        deadline = time.monotonic() + timeout
        if not all(_ends_before(deadline, thread) for thread in pending):
            LOG.debug("Cancel timeout reached, stopping threads.")
            self.stop()


_groups: identity.WeakIdentitySet[ThreadGroup] = identity.WeakIdentitySet()


def _begin_in_child() -> None:
    for group in list(_groups):
        group._begin_in_child()


os.register_at_fork(after_in_child=_begin_in_child)


def _native(thread: threading.Thread | Thread) -> threading.Thread:
    return thread.thread if isinstance(thread, Thread) else thread


def _abort(thread: threading.Thread) -> None:
    # A subclass may put threads of its own into the list, with or without the event.
    abort = getattr(thread, "abort", None)
    if abort is not None:
        abort.set()


def _kill(thread: threading.Thread) -> bool:
    """End *thread* where it waits in something of eventlet's; whether its end is to be awaited."""
    return isinstance(thread, GroupThread) and stopping.end(
        thread, functools.partial(waiting.fire, thread.released)
    )


def _ends_before(deadline: float, thread: threading.Thread) -> bool:
    """Wait for the end of *thread*, which may not have been started yet, until *deadline*."""
    left = min(max(deadline - time.monotonic(), 0), threading.TIMEOUT_MAX)
    if isinstance(thread, GroupThread):
        return thread.released.wait(left)
    if thread.ident is not None:
        thread.join(left)
    return not thread.is_alive()


def _is_released(thread: threading.Thread) -> bool:
    return isinstance(thread, GroupThread) and thread.released.is_set()


def _warn_of_arguments(method: str) -> None:
    warnings.warn(
        f"Calling {method}() with arguments is deprecated. Use {method}_args() instead.",
        DeprecationWarning,
        stacklevel=3,
    )


def _wait_for_timers(timers: list[Any], *, interruptible: bool = False) -> None:
    current = threading.current_thread()
    for timer in timers:
        if getattr(timer, "_thread", None) is current:
            continue
        try:
            if interruptible and isinstance(timer, loopingcall.LoopingCallBase) and timer.done:
                timer.done.wait(interruptible=True)
            else:
                timer.wait()
        except Exception:
            LOG.exception("Error waiting on timer.")
