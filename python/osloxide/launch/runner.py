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
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from osloxide import _native
from osloxide.launch import configuration, orphans
from osloxide.launch.systemd import Notifier
from osloxide.signals import shutdown, waiting
from osloxide.signals.control_thread import ControlThread, Request, begin_thread
from osloxide.signals.signal_handler import SignalExit
from osloxide.threads import event_loop

LOG = logging.getLogger(__name__)

DEADLINE_OF_START = 60.0
"""Seconds that a start() which hangs or failed may delay the end when the grace is "for ever"."""

NATIVE_MARGIN = 0.25
"""Seconds after the deadline at which the native core ends a process that could not do it itself,
because something holds the interpreter or the log."""


class Phase(enum.Enum):
    """What a round is waiting for."""

    STARTING = "start() to return"
    SERVING = "a request to stop"
    STOPPING = "stop() to return"
    STOPPED = "wait() to return"


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
        self._control = ControlThread(self._handle, self._cut_off, self._pulse)
        self._changed = threading.Condition()
        self._phase = Phase.STOPPED
        self._begun: list[Any] = []
        self._stopping: Any = None
        self._awaited: Any = None
        self._leaving = False
        self._status = 0
        self._reconfigure_wanted = False
        self._reconfiguring = False
        self._mutated = False
        self._again: SignalExit | None = None
        self._signal_mask: set[int] | set[signal.Signals] = set()

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
        self._signal_mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._take_early_requests()
        self._control.open()
        ready_told = False
        outer, waiting.interruption = waiting.interruption, self._leave_wait_after_mutating
        try:
            while not self._leaving:
                self._begin_round()
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
                if not self._leaving:
                    self._reset(self._services)
        except BaseException as exc:  # noqa: BLE001  # it becomes the exit status
            # A handler of the application raised in here, or on_ready() failed.
            self._end_round(_exit_status(exc, 2, "Unhandled exception"))
        finally:
            waiting.interruption = outer
            with contextlib.suppress(BaseException):
                self._end_round(0)
            self._control.put(("end", ""))
            self._control.close()
        return self._status

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
        with self._changed:
            self._phase = Phase.STARTING
            self._begun = []
            self._changed.notify_all()

    def _start_done(self) -> None:
        with self._changed:
            self._phase = Phase.SERVING
            if self._leaving:
                if self._grace() <= 0:
                    self._control.deadline = None  # it was only for start()
                    _native.disarm_deadline()
                self._begin_stopping()
            self._changed.notify_all()

    def _is_over(self) -> bool:
        """Every wait() has returned: whether that ends the process although nobody asked."""
        with self._changed:
            if self._parks or self._leaving or self._phase is not Phase.SERVING:
                return False
            self._phase = Phase.STOPPED
            self._changed.notify_all()
            return True

    def _attempt(self, method: str, failure_status: int) -> bool:
        """Call start() or wait() of every service; False when that ends the process."""
        for service in list(self._services):
            if method == "start" and self._leaving:
                break  # those that have started already are stopped by _start_done()
            try:
                if method == "start":
                    self._begun.append(service)
                    event_loop.complete(service.start())
                elif service in self._begun:
                    self._awaited = service
                    self._wait_for(service)
            except BaseException as exc:  # noqa: BLE001  # it becomes the exit status
                text = "Error starting thread." if method == "start" else "Unhandled exception"
                self._end_round(_exit_status(exc, failure_status, text))
                return False
        self._awaited = None
        return True

    def _wait_for(self, service: Any) -> None:
        while True:
            try:
                event_loop.complete(service.wait())
                return
            except SignalExit as exc:
                if exc is not self._again:
                    raise
                self._again = None

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
        with self._changed:
            self._status = self._status or status
            if self._phase is not Phase.STOPPED:
                self._set_leaving()
                if self._phase is not Phase.STOPPING:
                    self._begin_stopping()
        self._park_until_stopped()

    def _park_until_stopped(self) -> None:
        while self._phase is not Phase.STOPPED:
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
        if self._notifier is not None and self._notifier.watchdog_interval:
            self._notifier.alive()
            intervals.append(self._notifier.watchdog_interval)
        if self._beats:
            timeout = self._conf[configuration.GROUP].worker_timeout
            _native.beat(timeout)
            if timeout:
                intervals.append(timeout / 4)
        if os.getpid() == 1 and (seconds := orphans.reap()):
            intervals.append(seconds)
        return min(intervals, default=0.0)

    def _begin_leaving(self, message: str) -> None:
        if message and not self._leaving:
            LOG.info("%s", message)
        with self._changed:
            if self._leaving:
                return
            self._set_leaving()
            if self._phase is Phase.SERVING:
                self._begin_stopping()
            self._changed.notify_all()
        self._interrupt_start()

    def _interrupt_start(self) -> None:
        """Tell a service whose start() is running, if it wants to know (``interrupt_start()``)."""
        starting = self._begun[-1] if self._begun and self._phase is Phase.STARTING else None
        interrupt = getattr(starting, "interrupt_start", None)
        if callable(interrupt):
            interrupt()

    def _grace(self) -> float:
        """Seconds; 0 means for ever."""
        return float(self._conf.graceful_shutdown_timeout or 0)

    def _set_leaving(self) -> None:
        if self._leaving:
            return
        self._leaving = True
        shutdown.begin_shutdown()
        _native.worker_leaving()
        if self._notifier is not None:
            self._notifier.stopping()
        grace = self._grace()
        if grace <= 0 and self._phase is Phase.STARTING:
            grace = DEADLINE_OF_START
        if grace > 0:
            event_loop.cancel_before(time.monotonic() + grace)
            grace += self._grace_margin
            self._control.deadline = time.monotonic() + grace
            self._control.put(("look at the clock", ""))
            _native.arm_deadline(grace + NATIVE_MARGIN)

    def _begin_stopping(self) -> None:
        self._phase = Phase.STOPPING
        begin_thread("stop", self._stop_services, self._signal_mask)

    def _stop_services(self) -> None:
        for service in list(self._begun):
            self._stopping = service
            try:
                event_loop.complete(service.stop())
            except BaseException as exc:  # noqa: BLE001  # it becomes the exit status
                text = f"Error stopping {type(service).__name__}"
                self._status = self._status or _exit_status(exc, 1, text)
        self._stopping = None
        with self._changed:
            self._phase = Phase.STOPPED
            self._changed.notify_all()
        _native.wake()

    def _cut_off(self) -> NoReturn:
        late = [
            f"{type(service).__name__}.{method}() has not returned"
            for service, method in ((self._stopping, "stop"), (self._awaited, "wait"))
            if service is not None
        ]
        LOG.warning(
            "Process %d is still running %.1f s after it was told to stop: %s",
            os.getpid(),
            self._grace(),
            "; ".join(late) or f"it waits for {self._phase.value}",
        )
        LOG.info("Graceful shutdown timeout exceeded, instantaneous exiting")
        leave(1)

    # ---- reloading and mutating

    def _begin_reconfiguring(self, message: str) -> None:
        if message:
            LOG.info("%s", message)
        with self._changed:
            self._reconfigure_wanted = True
            if self._reconfiguring:
                return
            self._reconfiguring = True
        begin_thread("reconfigure", self._reconfigure, self._signal_mask)

    def _reconfigure(self) -> None:
        while True:
            with self._changed:
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
            if self._restart_method == "mutate":
                self._reset(self._services)
                self._mutated = True
                _native.wake()
                self._reconfigured()
                continue
            with self._changed:
                if self._phase is not Phase.SERVING or self._leaving:
                    self._reconfigured()
                    continue
                self._phase = Phase.STOPPING
            self._stop_services()

    def _reset(self, services: Iterable[Any]) -> None:
        for service in list(services):
            reset(service)


def reset(service: Any) -> None:
    """Call reset(); what it raises is logged, the process goes on with what it has."""
    try:
        event_loop.complete(service.reset())
    except Exception:
        LOG.exception("Error resetting %s", type(service).__name__)


def _exit_status(exc: BaseException, failure_status: int, text: str) -> int:
    """The exit status for an exception, which is logged unless it is a plain ``sys.exit(n)``."""
    if isinstance(exc, SystemExit):
        if exc.code is None:
            return 0
        if isinstance(exc.code, int):
            return exc.code
        LOG.error("%s", exc.code)
        return 1
    LOG.error(text, exc_info=exc)
    return failure_status if isinstance(exc, Exception) else 2


def leave(status: int) -> NoReturn:
    """End this process now, after its log and its output were written.

    Nothing above runs: no ``finally``, no ``atexit`` function of the parent that this process was
    forked from.
    """
    try:
        with contextlib.suppress(BaseException):
            logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
    finally:
        os._exit(status & 0xFF)
