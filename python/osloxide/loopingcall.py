"""Looping calls: a function that is called again and again, never twice at a time.

Owns the loop and the sleep between two calls; never interrupts a call that is running. stop()
ends the sleep at once, and a sleeping call costs no wake-up. A loop that sleeps for long gives its
thread back (osloxide.threads.timers), and the next call is made on a new one: a thousand idle loops
have one thread together. What it runs on does not keep the process alive and ends with the loop.

Rules: oslo_service.loopingcall (oslo.service 4.8), names, signatures, messages and arithmetic.
Differs in four points: time is monotonic throughout, RetryDecorator counts each call on its own,
a call may be started again as soon as wait() has returned, and the thread may change between calls.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar

from osloxide.signals import waiting
from osloxide.threads import forked, inherited, pausing, timers

# oslo.service up to 4.0 logged here, and default_log_levels of designate, mistral and others
# still name it.
LOG = logging.getLogger("oslo_service.loopingcall")

IdleFor = Callable[[Any, float], float]

SHORT = 0.5
"""Seconds; a loop that sleeps for less keeps its thread, for starting one would cost more."""


class LoopingCallDone(Exception):
    """Raised by the looped function to end the loop.

    :param retvalue: what ``wait()`` returns.
    """

    def __init__(self, retvalue: Any = True) -> None:
        super().__init__(retvalue)
        self.retvalue = retvalue


class LoopingCallTimeOut(Exception):
    """The loop ran longer than its *timeout*."""


class FutureEvent:
    """The outcome of a looping call: a value or an exception, known once the loop has ended.

    A loop does not go on in a forked child: there it has ended, as after ``stop()``.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._result: Any = None
        self._exc_info: tuple[Any, BaseException, TracebackType | None] | None = None

    def ready(self) -> bool:
        """Tell whether the loop has ended."""
        return self._event.is_set()

    def send(self, result: Any = None) -> None:
        """Record a value and wake everybody who waits."""
        self._result = result
        waiting.fire(self._event)

    def send_exception(
        self, exc_type: Any, exc_value: BaseException, tb: TracebackType | None
    ) -> None:
        """Record an exception and wake everybody who waits."""
        self._exc_info = (exc_type, exc_value, tb)
        waiting.fire(self._event)

    def wait(self, timeout: float | None = None, *, interruptible: bool = False) -> Any:
        """Wait for the loop to end.

        :param timeout: seconds; None waits for ever.
        :param interruptible: see :func:`osloxide.signals.waiting.wait_for`; without a timeout only.
        :returns: the value of ``LoopingCallDone``, True after ``stop()``.
        :raises RuntimeError: *timeout* seconds passed.
        """
        if timeout is None:
            waiting.wait_for(self._event, interruptible=interruptible)
        elif not self._event.wait(timeout):
            raise RuntimeError("Timed out waiting for event")
        if self._exc_info is not None:
            _, exc_value, tb = self._exc_info
            raise exc_value.with_traceback(tb)
        return self._result

    def _end_in_child(self) -> None:
        """A loop of the parent has ended as after ``stop()``."""
        if not self._event.is_set():
            self._event = inherited.event_of_the_past()
            self._result, self._exc_info = True, None


class _Stopwatch:
    """Seconds from construction to stop()."""

    def __init__(self) -> None:
        self._started_at = time.monotonic()
        self._seconds = 0.0

    def stop(self) -> None:
        self._seconds = time.monotonic() - self._started_at

    def elapsed(self) -> float:
        return self._seconds


def _callable_name(function: Any) -> str:
    name = getattr(function, "__qualname__", None)
    if name is None:
        function = type(function)
        name = function.__qualname__
    return f"{function.__module__}.{name}"


class LoopingCallBase:
    """What all looping calls share.

    :param f: the function; called with the further positional and keyword arguments.
    """

    _KIND: ClassVar[str] = "Unknown looping call"
    _LEVEL_OF_SLEEPS: ClassVar[int] = logging.DEBUG
    _RUN_ONLY_ONE_MESSAGE: ClassVar[str] = "A looping call can only run one function at a time"
    _EVENT: ClassVar[type[FutureEvent]] = FutureEvent

    def __init__(self, f: Callable[..., Any] | None = None, *args: Any, **kw: Any) -> None:
        self.f = f
        self.args = args
        self.kw = self.kwargs = kw
        self.done: FutureEvent | None = None
        self._thread: threading.Thread | None = None
        """The thread that runs or ran a call last, as long as the loop has not ended."""
        self._abort = threading.Event()
        self._timer: timers.Timer | None = None

    @property
    def _running(self) -> bool:
        return not self._abort.is_set()

    def stop(self) -> None:
        """End the loop: a sleep ends now, a call that is running is the last one."""
        self._abort.set()
        # Read after the flag was set: a timer that is begun later looks at the flag.
        if self._timer is not None:
            timers.wake(self._timer)

    def wait(self) -> Any:
        """Wait for the loop to end; returns and raises as the event that start() returned."""
        if self.done is None:
            raise AttributeError(
                f"{self._KIND} {_callable_name(self.f)!r} has no outcome yet; call start() first"
            )
        return self.done.wait()

    def _sleep(self, timeout: float) -> None:
        self._abort.wait(timeout)

    def _elapsed(self, watch: Any) -> float:
        seconds: float = watch.elapsed()
        return seconds

    def _start(
        self,
        idle_for: IdleFor,
        initial_delay: float | None = None,
        stop_on_exception: bool = True,
    ) -> FutureEvent:
        if self._thread is not None:
            raise RuntimeError(self._RUN_ONLY_ONE_MESSAGE)
        self.done = done = self._EVENT()
        self._abort.clear()
        self._timer = None
        _under_way[done] = self
        loop = functools.partial(self._run_loop, done, idle_for, stop_on_exception)
        name = f"looping call {_callable_name(self.f)}"
        self._thread = threading.Thread(
            target=loop, args=(initial_delay or 0,), name=name, daemon=True
        )
        try:
            self._thread.start()
        except BaseException as exc:
            self._end(done, None, exc)  # it may be started again, and nobody waits for it
            raise
        return done

    def _run_loop(
        self, done: FutureEvent, idle_for: IdleFor, stop_on_exception: bool, idle: float
    ) -> None:
        """Sleep for *idle* seconds, call, and so on, until the loop ends or gives its thread up."""
        self._thread = threading.current_thread()
        failure: BaseException | None = None
        result: Any = True
        try:
            while True:
                if idle >= SHORT and not self._sleeps_its_own_way():
                    loop = functools.partial(self._run_loop, done, idle_for, stop_on_exception)
                    end = functools.partial(self._end, done, True, None)
                    if self._rests(idle, functools.partial(loop, 0), end):
                        return
                if idle:
                    self._sleep(idle)
                if not self._running:
                    break
                watch = _Stopwatch()
                outcome = self._call(stop_on_exception)
                watch.stop()
                if self._abort.is_set():
                    break
                idle = idle_for(outcome, self._elapsed(watch))
                LOG.log(
                    self._LEVEL_OF_SLEEPS,
                    "%(kind)s %(func_name)r sleeping for %(idle).02f seconds",
                    {"kind": self._KIND, "func_name": _callable_name(self.f), "idle": idle},
                )
                if not idle:
                    self._sleep(0)
        except LoopingCallDone as exc:
            result = exc.retvalue
        except Exception as exc:  # noqa: BLE001  # for wait() to raise
            self._log_failure(exc)
            failure = exc
        except BaseException as exc:  # noqa: BLE001  # SystemExit: wait() must not last for ever
            failure = exc
        self._end(done, result, failure)

    def _sleeps_its_own_way(self) -> bool:
        """Whether a subclass, or a test, replaces _sleep(), which then has to be called."""
        return type(self)._sleep is not _OWN_SLEEP or "_sleep" in vars(self)

    def _rests(
        self, seconds: float, go_on: Callable[[], object], end: Callable[[], object]
    ) -> bool:
        """Sleep without a thread; then either of the two is called. False: sleep on this one."""
        name = threading.current_thread().name
        self._timer = timers.Timer(
            seconds, name, on_due=go_on, on_woken=end, is_over=self._abort.is_set
        )
        try:
            timers.begin(self._timer)
        except RuntimeError as exc:
            LOG.debug("%s keeps its thread while it sleeps: %s", name, exc)
            return False
        return True

    def _end(self, done: FutureEvent, result: Any, failure: BaseException | None) -> None:
        # Before the outcome is known, so that a caller of wait() may start() again.
        self._thread = None
        if failure is None:
            done.send(result)
        else:
            done.send_exception(type(failure), failure, failure.__traceback__)
        _under_way.pop(done, None)

    def _end_in_child(self) -> None:
        """It does not go on in a forked child, where it may be started anew."""
        self._thread = self._timer = None
        self._abort = inherited.event_of_the_past()

    def _call(self, stop_on_exception: bool) -> Any:
        # None is no error before the first call, which then fails as it does with oslo.service.
        function: Any = self.f
        me = threading.get_ident()
        is_nested = me in _calling  # the function of another loop may run a loop
        _calling.add(me)
        try:
            return forked.call_until((LoopingCallDone,), function, *self.args, **self.kw)
        except LoopingCallDone:
            raise
        except Exception as exc:
            if stop_on_exception:
                raise
            self._log_failure(exc)
            return 0
        finally:
            if not is_nested:
                _calling.discard(me)

    def _log_failure(self, exc: Exception) -> None:
        LOG.error(
            "%(kind)s %(func_name)r failed",
            {"kind": self._KIND, "func_name": _callable_name(self.f)},
            exc_info=exc,
        )

    def _rest_of(self, interval: float, elapsed: float) -> float:
        """Seconds of *interval* that a call of *elapsed* seconds left over, at least 0."""
        delay = round(elapsed - interval, 2)
        if delay > 0:
            LOG.warning(
                "Function %(func_name)r run outlasted interval by %(delay).2f sec",
                {"func_name": _callable_name(self.f), "delay": delay},
            )
        return -delay if delay < 0 else 0


_OWN_SLEEP = LoopingCallBase._sleep

_under_way: dict[FutureEvent, LoopingCallBase] = {}
"""The loops that have not ended, by the outcome of each: one may be started again as it ends."""


_calling: set[int] = set()
"""The threads that are in the midst of a call, and may hold locks that it took."""


def _are_between_calls() -> bool:
    """Whether no loop is in the midst of a call, that of the calling thread aside.

    Under green threads a loop that begins before the workers has not called yet when they are
    forked. Here its first call may be asking the database by then.
    """
    return _calling <= {threading.get_ident()}


pausing.serve(_are_between_calls)


def _end_all_in_child() -> None:
    _calling.intersection_update({threading.get_ident()})
    for done, loop in _under_way.items():
        done._end_in_child()
        if loop.done is done:
            loop._end_in_child()
    inherited.keep(list(_under_way.items()))
    _under_way.clear()


os.register_at_fork(after_in_child=_end_all_in_child)


class FixedIntervalLoopingCall(LoopingCallBase):
    """Calls at a fixed interval, counted from one start of the function to the next."""

    _RUN_ONLY_ONE_MESSAGE = "A fixed interval looping call can only run one function at a time"
    _KIND = "Fixed interval looping call"

    def start(
        self,
        interval: float,
        initial_delay: float | None = None,
        stop_on_exception: bool = True,
    ) -> FutureEvent:
        """Start the loop.

        :param interval: seconds. A call that takes longer is followed at once by the next;
            intervals that it missed are not made up for.
        :param initial_delay: seconds before the first call; None or 0 calls at once.
        :param stop_on_exception: False logs an exception and goes on.
        :returns: an event whose ``wait()`` gives the outcome.
        :raises RuntimeError: the loop runs already.
        """

        def idle_for(_result: Any, elapsed: float) -> float:
            return self._rest_of(interval, elapsed)

        return self._start(idle_for, initial_delay, stop_on_exception)


class FixedIntervalWithTimeoutLoopingCall(LoopingCallBase):
    """Calls at a fixed interval until a time limit."""

    _RUN_ONLY_ONE_MESSAGE = (
        "A fixed interval looping call with timeout checking can only run one function at a time"
    )
    _KIND = "Fixed interval looping call with timeout checking."

    def start(
        self,
        interval: float,
        initial_delay: float | None = None,
        stop_on_exception: bool = True,
        timeout: float = 0,
    ) -> FutureEvent:
        """Start the loop; parameters as for :class:`FixedIntervalLoopingCall`.

        :param timeout: seconds after which the loop ends with :class:`LoopingCallTimeOut`, checked
            after each call; 0 means never.
        """
        started_at = time.monotonic()

        def idle_for(_result: Any, elapsed: float) -> float:
            idle = self._rest_of(interval, elapsed)
            passed = time.monotonic() - started_at
            if timeout > 0 and passed > timeout:
                raise LoopingCallTimeOut(f"Looping call timed out after {passed:.02f} seconds")
            return idle

        return self._start(idle_for, initial_delay, stop_on_exception)


class DynamicLoopingCall(LoopingCallBase):
    """Calls at intervals that the function itself returns."""

    _RUN_ONLY_ONE_MESSAGE = "A dynamic interval looping call can only run one function at a time"
    _TASK_MISSING_SLEEP_VALUE_MESSAGE = (
        "A dynamic interval looping call should supply either an interval or periodic_interval_max"
    )
    _KIND = "Dynamic interval looping call"

    def start(
        self,
        initial_delay: float | None = None,
        periodic_interval_max: float | None = None,
        stop_on_exception: bool = True,
    ) -> FutureEvent:
        """Start the loop; the function returns the seconds to sleep.

        :param initial_delay: as for :class:`FixedIntervalLoopingCall`.
        :param periodic_interval_max: upper limit of a sleep, and its length when the function
            returns None; without it None is an error.
        :param stop_on_exception: False logs an exception and calls again at once.
        :returns: an event whose ``wait()`` gives the outcome.
        :raises RuntimeError: the loop runs already.
        """

        def idle_for(suggested: Any, _elapsed: float) -> float:
            if suggested is None:
                if periodic_interval_max is None:
                    raise RuntimeError(self._TASK_MISSING_SLEEP_VALUE_MESSAGE)
                return periodic_interval_max
            delay: float = suggested
            if periodic_interval_max is not None:
                delay = min(delay, periodic_interval_max)
            return delay

        return self._start(idle_for, initial_delay, stop_on_exception)


class BackOffLoopingCall(LoopingCallBase):
    """Calls until the function is done, with growing intervals while it returns something false."""

    _RNG: ClassVar[random.SystemRandom] = random.SystemRandom()
    _KIND = "Dynamic backoff interval looping call"
    _RUN_ONLY_ONE_MESSAGE = (
        "A dynamic backoff interval looping call can only run one function at a time"
    )

    def __init__(self, f: Callable[..., Any] | None = None, *args: Any, **kw: Any) -> None:
        super().__init__(f, *args, **kw)
        self._error_time: float = 0
        self._interval: float = 1

    def start(
        self,
        initial_delay: float | None = None,
        starting_interval: float = 1,
        timeout: float = 300,
        max_interval: float = 300,
        jitter: float = 0.75,
        min_interval: float = 0.001,
    ) -> FutureEvent:
        """Start the loop. A true result resets the interval, a false one doubles it.

        :param initial_delay: as for :class:`FixedIntervalLoopingCall`.
        :param starting_interval: seconds; the first interval.
        :param timeout: seconds of sleep in a row of failures after which the loop ends with
            :class:`LoopingCallTimeOut`; 0 means never.
        :param max_interval: seconds; upper limit of a sleep.
        :param jitter: mean of the random factor (standard deviation 0.1) on each sleep.
        :param min_interval: seconds; lower limit of a sleep after a failure.
        :returns: an event whose ``wait()`` gives the outcome.
        :raises RuntimeError: the loop runs already.
        """
        if self._thread is not None:
            raise RuntimeError(self._RUN_ONLY_ONE_MESSAGE)
        self._error_time = 0
        self._interval = starting_interval

        def idle_for(success: Any, _elapsed: float) -> float:
            factor = abs(self._RNG.gauss(jitter, 0.1))
            if success:
                self._interval = starting_interval
                self._error_time = 0
                return self._interval * factor
            idle = min(max(self._interval * 2 * factor, min_interval), max_interval)
            # The next interval grows by the mean, so that chance does not add up.
            self._interval = max(self._interval * 2 * jitter, min_interval)
            if timeout > 0 and self._error_time + idle > timeout:
                raise LoopingCallTimeOut(
                    f"Looping call timed out after {self._error_time + idle:.02f} seconds"
                )
            self._error_time += idle
            return idle

        return self._start(idle_for, initial_delay)


class RetryDecorator:
    """Calls a function again while it raises one of the given exceptions.

    Each call of the decorated function has counters of its own; ``_retry_count`` and
    ``_sleep_time`` show those of the latest call that ended.

    :param max_retry_count: how often to retry; -1 means without limit.
    :param inc_sleep_time: seconds by which the sleep grows with each retry.
    :param max_sleep_time: seconds; upper limit of the sleep.
    :param exceptions: the exceptions to retry on; with none, nothing is retried.
    """

    _LOOP: ClassVar[type[DynamicLoopingCall]] = DynamicLoopingCall

    def __init__(
        self,
        max_retry_count: int = -1,
        inc_sleep_time: float = 10,
        max_sleep_time: float = 60,
        exceptions: tuple[type[BaseException], ...] = (),
    ) -> None:
        self._max_retry_count = max_retry_count
        self._inc_sleep_time = inc_sleep_time
        self._max_sleep_time = max_sleep_time
        self._exceptions = exceptions
        self._retry_count = 0
        self._sleep_time: float = 0

    def __call__(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate *f*."""

        @functools.wraps(f)
        def retried(*args: Any, **kwargs: Any) -> Any:
            attempt = _Attempts(self, f)
            loop = self._create_dynamic_looping_call(attempt, *args, **kwargs)
            outcome = loop.start(periodic_interval_max=self._max_sleep_time)
            try:
                return outcome.wait()
            finally:
                self._retry_count = attempt.retries
                self._sleep_time = attempt.sleep_time

        return retried

    def _create_dynamic_looping_call(
        self, func: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> DynamicLoopingCall:
        return self._LOOP(func, *args, **kwargs)


class _Attempts:
    """The attempts of one call of a function under :class:`RetryDecorator`."""

    def __init__(self, policy: RetryDecorator, function: Callable[..., Any]) -> None:
        self.retries = 0
        self.sleep_time: float = 0
        self._policy = policy
        self._function = function
        self.__module__ = function.__module__
        self.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)

    def __call__(self, *args: Any, **kwargs: Any) -> float:
        policy = self._policy
        try:
            result = self._function(*args, **kwargs)
        except policy._exceptions:
            if policy._max_retry_count != -1 and self.retries >= policy._max_retry_count:
                LOG.debug(
                    "Cannot retry %s: it failed and was retried %d times",
                    _callable_name(self._function),
                    self.retries,
                )
                raise
            self.retries += 1
            self.sleep_time += policy._inc_sleep_time
            return self.sleep_time
        raise LoopingCallDone(result)
