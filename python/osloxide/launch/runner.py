"""Runs services on the main thread of this process until it is told to stop.

Owns the rounds of a process that serves, be it a forked worker or a single process: start() and
wait() on the main thread, stop() and reset() on threads beside it, the deadline of a shutdown.
Never forks, never installs a signal handler and never decides what a signal means: launchers and
workers call :meth:`Runner.request_stop` and :meth:`Runner.request_reconfigure`.

One round is start() of every service in order, then wait() of every service in order; a reload in
place ends a round and begins the next. Within a round each service is started, stopped and awaited
once. Rules: oslo_service.service.ServiceLauncher and Launcher (oslo.service 4.8).
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from osloxide import _native
from osloxide.launch import configuration, ending, orphans, service_name
from osloxide.launch.services import call_service
from osloxide.launch.systemd import Notifier
from osloxide.signals import careful_log, shutdown, signal_handler, waiting
from osloxide.signals.control_thread import ControlThread, Request
from osloxide.signals.signal_handler import SignalExit
from osloxide.threads import event_loop, forked, own, stopping

LOG = careful_log.logger(__name__)

DEADLINE_OF_START = 60.0
"""Seconds that a start() which hangs or failed may delay the end when the grace is "for ever"."""

LEAVE_START_AFTER = 0.5
"""Seconds after SIGTERM that a start() gets to return before an exception ends it, and again each
time that it has swallowed one."""


class Phase(enum.Enum):
    """What a process that serves is waiting for; the value is for the log."""

    IDLE = "run() to be called"
    STARTING = "start() to return"
    SERVING = "a request to stop"
    STOPPING = "stop() to return"
    STOPPED = "wait() to return"
    ENDING = "threads and exit functions to end"


NEXT: dict[Phase, frozenset[Phase]] = {
    Phase.IDLE: frozenset({Phase.STARTING, Phase.ENDING}),
    Phase.STARTING: frozenset({Phase.SERVING, Phase.STOPPING}),
    Phase.SERVING: frozenset({Phase.STOPPING, Phase.STOPPED}),
    Phase.STOPPING: frozenset({Phase.STOPPED}),
    Phase.STOPPED: frozenset({Phase.STARTING, Phase.ENDING}),
    Phase.ENDING: frozenset({Phase.STARTING}),
}
"""Which phase may follow which; docs/lifecycle.md has the table with the reasons."""


_AT_REST = (Phase.IDLE, Phase.STOPPED, Phase.ENDING)
"""Phases in which no service runs."""


class Runner:
    """Runs services on the main thread.

    :param conf: configuration with oslo.service's options registered.
    :param services: started in this order. The list may grow until run() is entered.
    :param restart_method: ``"reload"`` or ``"mutate"``, what :meth:`request_reconfigure` does.
    :param on_ready: called once on the main thread when every start() has returned.
    :param on_reconfigured: called each time the configuration was read again and acted upon.
    :param notifier: told what happens here; None where a parent does that.
    :param beats: whether this process shows its parent that the interpreter runs, for
        ``worker_timeout``.
    :param grace_margin: seconds to wait beyond the grace period: workers leave the first word to
        their parent, which enforces the same deadline.
    :param parks: whether run() goes on when every wait() has returned by itself, until a stop is
        requested.
    """

    def __init__(
        self,
        conf: Any,
        services: list[Any],
        *,
        restart_method: str,
        on_ready: Callable[[], object],
        on_reconfigured: Callable[[], object] = lambda: None,
        notifier: Notifier | None = None,
        beats: bool = False,
        grace_margin: float = 0.0,
        parks: bool = True,
    ) -> None:
        self._conf = conf
        self._services = services
        self._restart_method = restart_method
        self._on_ready = on_ready
        self._on_reconfigured = on_reconfigured
        self._notifier = notifier
        self._beats = beats
        self._grace_margin = grace_margin
        self._parks = parks
        # All that a signal handler may touch: locks are not reentrant.
        self._control = ControlThread(
            self._handle,
            self._cut_off,
            self._pulse,
            self._leave_start_if_asked,
            self._patience,
        )
        # Entered by itself and never by its condition, whose __enter__() is code in Python: what a
        # handler raises in there, once the lock is taken, would leave it locked for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._phase = Phase.IDLE
        self._begun: list[Any] = []
        # Of those, whose wait() has returned in this round.
        self._returned: list[Any] = []
        self._early: list[Any] = []
        self._is_early = self._has_failed_early = False
        self._early_stopped = threading.Event()
        self._stop_thread: int | None = None
        self._starting: Any = None
        self._resetting: Any = None
        self._leave_start_at: float | None = None
        self._stopping: Any = None
        self._awaited: Any = None
        self._leaving = False
        self._status = 0
        self._reconfigure_wanted = False
        self._reconfiguring = False
        self._mutated = False
        self._again: SignalExit | None = None

    # ---- from anywhere, signal handlers included

    def request_stop(self, message: str = "") -> None:
        """Ask for a graceful end. Asking again changes nothing.

        :param message: for the log, written when the request is taken up.
        """
        self._control.put(("stop", message))

    def request_reconfigure(self, message: str = "") -> None:
        """Ask to reload or mutate the configuration; requests that coincide are handled as one.

        :param message: as for :meth:`request_stop`.
        """
        self._control.put(("reconfigure", message))

    # ---- the main thread

    def run(self) -> int:
        """Serve until stopped (main thread only).

        :returns: exit status: 0 after a clean stop, 1 when start() or stop() failed, 2 when
            wait() failed, or what a service passed to ``sys.exit()``.
        """
        with self._lock:
            # Who has taken a stop up may have yet to look, and will not find it early any more.
            self._stop_early()
            was_early, self._is_early = self._is_early, False
        if not was_early:
            self._take_early_requests()
            self._control.open()
        ready_told = False
        outer, waiting.interruption = waiting.interruption, self._leave_wait_after_mutating
        try:
            if was_early and self._leaving:
                # Services run already, and a stop was asked for or one of them has failed.
                if not self._has_failed_early:
                    if self._grace() > 0:
                        self.bound_end()
                    self._attempt("wait", 2)
                self._end_round(self._status)
            while not self._leaving:
                if not was_early:
                    self._begin_round()
                was_early = False
                if not self._attempt("start", 1):
                    break
                if not self._leaving:
                    if ready_told:
                        self._reconfigured()
                    else:
                        self._ready()
                        ready_told = True
                self._start_done()
                if not self._attempt("wait", 2) or self._is_over():
                    break
                self._park_until_stopped()
                if self.is_leaving and not self._attempt("wait", 2):  # who was launched meanwhile
                    break
                self._reset_between_rounds()
        except BaseException as exc:  # noqa: BLE001  # it becomes the exit status
            # A handler of the application raised in here, or on_ready() failed.
            self._end_round(exit_status(exc, 2, "Unhandled exception"))
        finally:
            waiting.interruption = outer
            with contextlib.suppress(BaseException):
                self._end_round(0)
            with self._lock:
                if self._phase in (Phase.IDLE, Phase.STOPPED):
                    self._enter(Phase.ENDING)
        return self._status

    def close(self) -> None:
        """Give up the control thread and the wakeup fd, after :meth:`run`."""
        self._control.put(("end", ""))
        self._control.close()

    def bound_end(self) -> None:
        """Arm a deadline for what is left of a worker, unless one is armed already."""
        if self._control.deadline is None:
            self._arm(self._grace() or ending.WITHOUT_GRACE)

    def time_left(self) -> float:
        """Seconds until the deadline of the stop; 0 when there is none."""
        deadline = self._control.deadline
        return 0.0 if deadline is None else max(deadline - time.monotonic(), 0.001)

    @property
    def is_leaving(self) -> bool:
        """Whether a stop was asked for, or a service has failed."""
        return self._leaving

    def start_early(self, service: Any) -> None:
        """Call start() now, on the main thread, before :meth:`run`, which will not call it again.

        A failure is logged and becomes what :meth:`run` returns.
        """
        with self._lock:
            if self._phase is Phase.IDLE:
                self._enter(Phase.STARTING)
                self._is_early = True
                self._control.open()
            if self._leaving or self._phase is not Phase.STARTING:
                return
        try:
            self._start(service)
        except BaseException as exc:  # noqa: BLE001  # it becomes the exit status
            self._has_failed_early = True
            self._status = self._status or exit_status(exc, 1, "Error starting thread.")
            self._begin_leaving("")
        self._early.append(service)
        self._stop_early()

    def adopt(self, service: Any) -> bool:
        """Stop and await *service* with the others, which the caller starts beside :meth:`run`.

        :returns: False where they are being stopped already: it is not to be started.
        """
        with self._lock:
            if self._leaving:
                return False
            self._begun.append(service)
        return True

    def fail(self, failure: SystemExit) -> None:
        """End as after a start() that has failed, for one that was called beside :meth:`run`."""
        with self._lock:
            self._status = self._status or exit_status(failure, 1, "Error starting thread.")
        self.request_stop()

    def await_early_stop(self) -> None:
        """After :meth:`request_stop`: wait until what :meth:`start_early` has started has stopped.

        Not within the start() of a service, which has to return first, nor within its stop().
        """
        is_started = self._is_early and self._phase not in _AT_REST
        on_main_thread = threading.current_thread() is threading.main_thread()
        is_within_start = on_main_thread and self._starting is not None
        if is_started and not is_within_start and threading.get_ident() != self._stop_thread:
            waiting.wait_for(self._early_stopped)

    def _enter(self, phase: Phase) -> None:
        """Go on to *phase*; the caller holds the lock."""
        if phase not in NEXT[self._phase]:
            raise AssertionError(f"{self._phase} cannot be followed by {phase}")
        self._phase = phase
        self._changed.notify_all()

    def _take_early_requests(self) -> None:
        """Honour what arrived before run(): no service is started only to be stopped."""
        for kind, message in self._control.take():
            if kind == "stop":
                self._begin_leaving(message)
            else:
                self._control.put((kind, message))

    def _ready(self) -> None:
        self._on_ready()
        if self._notifier is not None:
            self._notifier.ready()
        self._control.look()

    def _reconfigured(self) -> None:
        """The configuration was read again and every service has heard of it."""
        if self._notifier is not None:
            self._notifier.reloaded()
        self._on_reconfigured()
        self._control.look()

    def _begin_round(self) -> None:
        with self._lock:
            self._enter(Phase.STARTING)
            self._begun = []
            self._returned = []

    def _start_done(self) -> None:
        with self._lock:
            self._enter(Phase.SERVING)
            if self._leaving:
                if self._grace() <= 0:
                    self._control.deadline = None  # it was only for start()
                    _native.disarm_deadline()
                self._begin_stopping()

    def _is_over(self) -> bool:
        """Every wait() has returned: whether that ends the process although nobody asked."""
        with self._lock:
            if self._parks or self._leaving or self._phase is not Phase.SERVING:
                return False
            self._enter(Phase.STOPPED)
            return True

    def _attempt(self, method: str, failure_status: int) -> bool:
        """Call start() or wait() of every service; False when that ends the process."""
        # One that is launched meanwhile has been started, and is awaited.
        for service in list(self._services) if method == "start" else self._services:
            if method == "start" and self._leaving:
                break  # those that have started already are stopped by _start_done()
            try:
                if method == "start":
                    self._start(service)
                elif _holds(self._begun, service) and not _holds(self._returned, service):
                    self._awaited = service
                    self._wait_for(service)
                    self._returned.append(service)
            except BaseException as exc:  # noqa: BLE001  # it becomes the exit status
                text = "Error starting thread." if method == "start" else "Unhandled exception"
                self._end_round(exit_status(exc, failure_status, text))
                return False
        self._awaited = None
        return True

    def _start(self, service: Any) -> None:
        if _holds(self._early, service):
            self._early[:] = [one for one in self._early if one is not service]
            return
        try:  # around all of it: what a stop raises in here may come before the call
            with self._lock:
                if self._leaving:
                    return  # told in between: nothing is started only to be stopped
                if not _holds(self._begun, service):
                    self._begun.append(service)
                self._starting = service  # who begins to leave from now on interrupts it
            call_service(service.start)
        finally:
            self._starting = None

    def _leave_start_if_asked(self) -> None:
        """On the main thread, when it is nudged: end a start() or reset() that outlasts SIGTERM."""
        at = self._leave_start_at
        is_called = self._starting is not None or self._resetting is not None
        if is_called and at is not None and time.monotonic() >= at:
            raise SignalExit(signal.SIGTERM, 0)

    def _reset_between_rounds(self) -> None:
        for service in list(self._services):
            try:
                with self._lock:
                    if self._leaving:
                        return
                    self._resetting = service  # who begins to leave from now on interrupts it
                reset(service)
            finally:
                self._resetting = None

    def _wait_for(self, service: Any) -> None:
        while True:
            try:
                call_service(service.wait)
                return
            except SignalExit as exc:
                if exc is not self._again:
                    raise
                self._again = None
            except BaseException as exc:
                if not (self._leaving and stopping.is_kill(exc)):
                    raise
                return  # its stop() has killed the greenthread that it waits for

    def _leave_wait_after_mutating(self) -> None:
        """Have a service that waits for its thread group enter wait() anew, as oslo.service does.

        Only there: an exception in the middle of other code could leave a lock behind.
        """
        if self._mutated and self._awaited is not None:
            self._mutated = False
            self._again = SignalExit(signal.SIGHUP)
            raise self._again

    def _end_round(self, status: int) -> None:
        """Stop what was started, if nobody did yet, and wait for that."""
        with self._lock:
            self._status = self._status or status
            if self._phase not in _AT_REST:
                self._set_leaving()
                if self._phase is not Phase.STOPPING:
                    self._begin_stopping()
        self._park_until_stopped()

    def _park_until_stopped(self) -> None:
        while self._phase not in _AT_REST:
            _native.park()

    # ---- on the control thread

    def _handle(self, request: Request) -> bool:
        kind, message = request
        if kind == "end":
            return False
        if kind == "stop":
            self._begin_leaving(message)
        elif kind == "reconfigure":
            self._begin_reconfiguring(message)
        return True

    def _pulse(self) -> float:
        """What is to be done from time to time; returns the seconds until then, 0 for never.

        Shows that the interpreter runs, to whom it concerns, and reaps orphans as process 1.
        """
        intervals = []
        if self._notifier is not None and (seconds := self._notifier.pulse()):
            intervals.append(seconds)
        if self._beats:
            timeout = self._conf[configuration.GROUP].worker_timeout
            _native.beat(timeout)
            if timeout:
                intervals.append(timeout / 4)
        if self._may_be_interrupted() and self._leave_start_at is not None:
            if time.monotonic() >= self._leave_start_at:
                self._control.nudge()
            intervals.append(LEAVE_START_AFTER)
        if os.getpid() == 1 and (seconds := orphans.reap()):
            intervals.append(seconds)
        return min(intervals, default=0.0)

    def _may_be_interrupted(self) -> bool:
        """Whether the main thread is in what a stop ends by an exception."""
        return self._phase is Phase.STARTING or self._resetting is not None

    def _begin_leaving(self, message: str) -> None:
        with self._lock:
            if self._leaving:
                return
            # The deadline first: the log line may be what never returns.
            self._set_leaving()
        if message:
            LOG.info("%s", message)
        with self._lock:
            if self._phase is Phase.SERVING:
                self._begin_stopping()
            self._changed.notify_all()
        if self._starting is None:
            self._stop_early()
        else:
            self._interrupt_start(self._starting)

    @staticmethod
    def _interrupt_start(service: Any) -> None:
        """Tell a service whose start() is running, if it wants to know (``interrupt_start()``)."""
        interrupt = getattr(service, "interrupt_start", None)
        if callable(interrupt):
            interrupt()

    def _stop_early(self) -> None:
        """Stop what was started before run(), once asked; run() may never be called."""
        with self._lock:
            if self._leaving and self._is_early and self._phase is Phase.STARTING:
                self._begin_stopping()

    def _grace(self) -> float:
        """Seconds; 0 means for ever."""
        return float(self._conf.graceful_shutdown_timeout or 0)

    def _patience(self) -> float:
        """Seconds after SIGTERM within which a handler must have run; 0 means for ever."""
        grace = self._grace()
        return grace + self._grace_margin + ending.NATIVE_MARGIN if grace > 0 else 0.0

    def _set_leaving(self) -> None:
        if self._leaving:
            return
        self._leaving = True
        grace = self._grace()
        if grace <= 0 and self._may_be_interrupted():
            grace = DEADLINE_OF_START
        if grace > 0:
            self._arm(grace + self._grace_margin)
            event_loop.cancel_before(time.monotonic() + grace)
        if self._may_be_interrupted():
            self._leave_start_at = time.monotonic() + LEAVE_START_AFTER
            self._control.look()
        shutdown.begin_shutdown()
        _native.worker_leaving()
        if self._notifier is not None:
            self._notifier.stopping()
            self._control.look()

    def _arm(self, seconds: float) -> None:
        self._control.deadline = time.monotonic() + seconds
        self._control.put(("look at the clock", ""))
        # Without a thread to watch it the deadline is this thread's alone, and the stop goes on.
        with contextlib.suppress(OSError):
            _native.arm_deadline(seconds + ending.NATIVE_MARGIN)

    def _begin_stopping(self) -> None:
        self._enter(Phase.STOPPING)
        self._run_beside("service stop", self._stop_services)

    @staticmethod
    def _run_beside(name: str, work: Callable[[], None]) -> None:
        """Run *work* on a thread of its own, or here where the system has none to give."""
        try:
            own.start(name, work)
        except RuntimeError:
            LOG.warning("No thread for %s; the control thread does it", name)
            work()

    def _stop_services(self) -> None:
        self._stop_thread = threading.get_ident()
        for service in list(self._begun):
            self._stopping = service
            try:
                call_service(service.stop)
            except BaseException as exc:  # noqa: BLE001  # it becomes the exit status
                text = f"Error stopping {service_name.of(service)}"
                self._status = self._status or exit_status(exc, 1, text)
        self._stopping = self._stop_thread = None
        with self._lock:
            self._enter(Phase.STOPPED)
            if self._is_early and not ending.has_begun():
                # By the program itself, which may go on without run().
                self._control.deadline = None
                _native.disarm_deadline()
        _native.wake()
        waiting.fire(self._early_stopped)

    def _cut_off(self) -> NoReturn:
        late = [
            f"{service_name.of(service)}.{method}() has not returned"
            for service, method in (
                (self._starting, "start"),
                (self._resetting, "reset"),
                (self._stopping, "stop"),
                (self._awaited, "wait"),
            )
            if service is not None
        ]
        if self._phase is Phase.ENDING:
            late.append(ending.what_is_left())
        LOG.warning(
            "Process %d is still running %.1f s after it was told to stop: %s",
            os.getpid(),
            self._grace(),
            "; ".join(late) or f"it waits for {self._phase.value}",
        )
        LOG.info("Graceful shutdown timeout exceeded, instantaneous exiting")
        ending.leave(1)

    # ---- reloading and mutating

    def _begin_reconfiguring(self, message: str) -> None:
        if message:
            LOG.info("%s", message)
        with self._lock:
            self._reconfigure_wanted = True
            if self._reconfiguring:
                return
            self._reconfiguring = True
        self._run_beside("service reconfigure", self._reconfigure)

    def _reconfigure(self) -> None:
        try:
            self._reconfigure_while_wanted()
        except BaseException:
            # The next SIGHUP has to find that none is under way.
            with self._lock:
                self._reconfiguring = False
            raise

    def _reconfigure_while_wanted(self) -> None:
        while True:
            with self._lock:
                # A round that is starting or ending is not disturbed: wait for the next one.
                self._changed.wait_for(lambda: self._leaving or self._phase is Phase.SERVING)
                if self._leaving or not self._reconfigure_wanted:
                    self._reconfiguring = False
                    return
                self._reconfigure_wanted = False
            if self._notifier is not None:
                self._notifier.reloading()
            if not configuration.reload(self._conf, self._restart_method):
                self._reconfigured()
                continue
            self._control.bound_unheard(self._patience())
            if self._restart_method == "mutate":
                self._reset(self._services)
                self._mutated = True
                _native.wake()
                self._reconfigured()
                continue
            with self._lock:
                if self._phase is not Phase.SERVING or self._leaving:
                    self._reconfigured()
                    continue
                self._enter(Phase.STOPPING)
            self._stop_services()

    def _reset(self, services: Iterable[Any]) -> None:
        for service in list(services):
            reset(service)


def _holds(services: list[Any], service: Any) -> bool:
    """Whether *service* itself is one of *services*: others may equal it, as dataclasses do."""
    return any(one is service for one in services)


def reset(service: Any) -> None:
    """Call reset(); what it raises is logged, the process goes on with what it has.

    An exception that ends programs passes on the main thread where it is none of reset()'s own: a
    signal handler has raised it, or the greenthread is killed.
    """
    try:
        call_service(service.reset)
    except BaseException as exc:
        on_main_thread = threading.current_thread() is threading.main_thread()
        ends_program = on_main_thread and not isinstance(exc, Exception)
        if ends_program and (signal_handler.has_raised(exc) or stopping.is_kill(exc)):
            raise
        LOG.exception("Error resetting %s", service_name.of(service))


def exit_status(exc: BaseException, failure_status: int, text: str) -> int:
    """The exit status for an exception, which is logged unless it is a plain ``sys.exit(n)``.

    :param failure_status: that of an :class:`Exception`.
    :param text: of the log line.
    """
    if not isinstance(exc, SystemExit):
        LOG.error(text, exc_info=exc)
    of_others = failure_status if isinstance(exc, Exception) else 2
    return forked.exit_status(exc, of_others, lambda said: LOG.error("%s", said))
