"""Launchers that run services in the process that launched them.

Owns what a signal means to such a process. How it runs its services is osloxide.launch.runner's
part; workers are osloxide.launch.process_launcher's. The two flavours that oslo.service knows,
eventlet and threading, are subclasses under osloxide.backends. Never forks.

Rules: oslo_service.service (oslo.service 4.8); docs/signals.md says which signal does what.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar

from osloxide import _native, threadgroup
from osloxide._typing import override
from osloxide.activation import import_hook
from osloxide.launch import configuration, ending, scoreboard, services, standard_streams, systemd
from osloxide.launch.runner import Runner, reset
from osloxide.signals import careful_log, policy, shutdown, signal_handler
from osloxide.signals.signal_names import signal_name

LOG = careful_log.logger(__name__)


def _check_one_worker(service: Any, workers: int | None) -> None:
    """Refuse what no launcher within one process can launch.

    :raises ValueError: *workers* is more than one.
    :raises TypeError: *service* is no ServiceBase.
    """
    if workers is not None and workers != 1:
        raise ValueError(
            f"Launcher asked to start multiple workers ({workers}); use ProcessLauncher"
        )
    services.check_service_base(service)
    import_hook.refuse_if_monkey_patched()


class Launcher:
    """Runs services in this process, each started at once on a thread of its own.

    :param conf: configuration.
    :param restart_method: ``"reload"`` or ``"mutate"``, what :meth:`restart` does.
    :raises ValueError: *restart_method* is neither.
    """

    SERVICES: ClassVar[type[services.Services]] = services.Services

    def __init__(self, conf: Any, restart_method: str = "reload") -> None:
        self.conf = conf
        configuration.register_options(conf)
        self.services = self.SERVICES(restart_method=restart_method)
        self.backdoor_port: int | None = None
        self.restart_method = restart_method

    def launch_service(self, service: Any, workers: int | None = 1) -> None:
        """Start *service* now, on a thread of its own.

        :param workers: 1 or None; other launchers offer more.
        :raises ValueError: *workers* is more than one.
        :raises TypeError: *service* is no ServiceBase.
        """
        _check_one_worker(service, workers)
        service.backdoor_port = self.backdoor_port
        self.services.add(service)

    def stop(self) -> None:
        """Stop all services."""
        self.services.stop()

    def wait(self) -> int | None:
        """Wait for all services.

        :raises SystemExit: a service failed to start.
        """
        self.services.wait()
        return None

    def restart(self) -> None:
        """Read the configuration files again and restart the services as *restart_method* says."""
        if configuration.reload(self.conf, self.restart_method):
            self.services.restart()


class ServiceLauncher(Launcher):
    """Runs services in this process, on its main thread, until a signal ends them.

    start() and wait() of the services run inside :meth:`wait`.

    :param conf: configuration.
    :param restart_method: what SIGHUP does: ``"reload"`` stops, resets and starts the services,
        ``"mutate"`` only resets them; both read the configuration files again before.
    :param start_method: accepted for compatibility; nothing is started here.
    :raises ValueError: *restart_method* or *start_method* is unknown.
    """

    HUP_NEEDS_DAEMON: ClassVar[bool] = False
    """Whether SIGHUP is a SIGTERM for a process in the foreground of a terminal."""
    STARTS_AT_LAUNCH: ClassVar[bool] = False
    """Whether launch_service() calls start(), where it runs on the main thread; otherwise wait()
    does."""

    def __init__(
        self, conf: Any, restart_method: str = "reload", start_method: str | None = None
    ) -> None:
        super().__init__(conf, restart_method=restart_method)
        self.start_method = start_method
        self.signal_handler = signal_handler.SignalHandler()
        self._notifier = systemd.Notifier()
        self._is_waiting = False
        self._term_came = False
        self._has_ended = threading.Event()
        self._policy = policy.Policy(
            self._request_stop, self._request_reload, hup_needs_daemon=self.HUP_NEEDS_DAEMON
        )
        self._runner = Runner(
            conf,
            self.services.services,
            restart_method=restart_method,
            on_ready=_native.worker_ready,
            notifier=self._notifier,
        )
        self.services.when_start_fails = self._runner.fail
        shutdown.begin_serving()
        standard_streams.fill()
        ending.take_back()

    @override
    def launch_service(self, service: Any, workers: int | None = 1) -> None:
        """Have *service* started by :meth:`wait`; at once when that is running already, which then
        ends all services where start() fails.

        :param workers: 1 or None.
        :raises ValueError: *workers* is more than one.
        :raises TypeError: *service* is no ServiceBase.
        """
        _check_one_worker(service, workers)
        configuration.grace_seconds(self.conf)  # refused now, not when somebody stops the service
        service.backdoor_port = self.backdoor_port
        if self._is_waiting:
            if self._runner.adopt(service):
                self.services.add(service)
            return
        self.services.services.append(service)
        # From here on a signal is kept for wait(), instead of ending the process in between.
        if threading.current_thread() is threading.main_thread():
            self.handle_signal()
            if self.STARTS_AT_LAUNCH:
                self._runner.start_early(service)

    def handle_signal(self) -> None:
        """Install the launcher's signal handlers, behind those of the application."""
        self.signal_handler.add_last(self._handlers())
        if not self._is_waiting:  # then the watch thread bounds them, as the configuration has it
            policy.bound_handlers(configuration.grace_seconds(self.conf), ending.NATIVE_MARGIN)
        policy.unblock()

    def _handlers(self) -> dict[str, signal_handler.Handler]:
        return {
            "SIGTERM": self._graceful_shutdown,
            "SIGINT": self._fast_exit,
            "SIGHUP": self._reload_service,
            "SIGALRM": self._on_timeout_exit,
        }

    def _graceful_shutdown(self, signo: int, frame: FrameType | None) -> None:
        self._policy.graceful_stop(signo, frame)

    def _reload_service(self, signo: int, frame: FrameType | None) -> None:
        self._policy.reload(signo, frame)

    def _fast_exit(self, signo: int, frame: FrameType | None) -> None:
        self._policy.fast_exit(signo, frame)

    def _on_timeout_exit(self, signo: int, frame: FrameType | None) -> None:
        self._policy.timeout_exit(signo, frame)

    def _request_stop(self, signo: int) -> None:
        if self._term_came and not self._is_waiting:
            if not self._has_ended.is_set():
                # wait() was not called since the first one: do not become immune.
                self.signal_handler.clear()
                os.kill(os.getpid(), signo)
                return
            ending.cut_short()
            return
        self._term_came = True
        self._runner.request_stop(f"Caught {signal_name(signo)}, stopping")
        if not self._is_waiting:
            # The main thread may never come to wait(): it may be waiting for a service to start.
            ending.begin(0, ending.AT_EXIT)

    def _request_reload(self, signo: int) -> None:
        name = signal_name(signo)
        self._runner.request_reconfigure(f"Caught {name}, handling")

    @override
    def wait(self) -> int | None:
        """Run the services until they are stopped.

        After a stop by a signal the process has to end: what is left of it is cut off when the
        grace period is over, and a few seconds after the main thread has ended.

        :returns: exit status: 0 after a clean stop, 1 when start() or stop() of a service failed,
            2 when its wait() failed, or what it passed to ``sys.exit()``.
        """
        import_hook.announce()
        configuration.log_options(self.conf, LOG)
        on_main_thread = threading.current_thread() is threading.main_thread()
        if on_main_thread:
            self.handle_signal()
        self._is_waiting = True
        ending.take_back()  # not before: a stop until here counts as one that nobody waits for
        scoreboard.begin(self.services.services)
        status, left = 2, 0.0
        try:
            status = self._runner.run()
            left = self._runner.time_left()
            return status
        finally:
            # In this order: between the two another one would find a process that nobody waits for,
            # where a second SIGTERM ends it at once.
            self._has_ended.set()
            self._is_waiting = False
            self._runner.close()
            _native.disarm_deadline()
            if self._term_came:
                ending.begin(status, left)
            elif on_main_thread:
                self.signal_handler.replace(self._handlers().values(), {})

    @override
    def stop(self) -> None:
        """Stop the services.

        While wait() runs, on the main thread this only asks it for that, and elsewhere it returns
        when the services have ended, which do not wait for the calling thread. Before wait() it
        returns when those have stopped that launch_service() has started. Services that were not
        started are not stopped.
        """
        self._runner.request_stop()
        if not self._is_waiting:
            self._runner.await_early_stop()
        elif threading.current_thread() is not threading.main_thread():
            threadgroup.release_current()
            self._has_ended.wait()

    @override
    def restart(self) -> None:
        """Do now what SIGHUP does: read the configuration again, then reset or restart."""
        if self._is_waiting:
            self._runner.request_reconfigure()
        elif configuration.reload(self.conf, self.restart_method):
            for service in self.services.services:
                reset(service)


def launch(
    service_launcher: Callable[[], Any],
    process_launcher: Callable[[], Any],
    service: Any,
    workers: int | None,
    *,
    in_this_process: bool,
) -> Any:
    """Launch *service* with one of two launchers; what both flavours' launch() share.

    :raises TypeError: *workers* is no int or *service* no ServiceBase.
    :raises ValueError: *workers* is not positive.
    """
    services.check_workers(workers)
    launcher = service_launcher() if in_this_process else process_launcher()
    launcher.launch_service(service, workers=workers)
    return launcher
