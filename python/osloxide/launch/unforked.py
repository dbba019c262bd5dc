"""A ProcessLauncher that does not fork: one service in this process (``no_fork=True``).

Owns the run of that service inside ``launch_service()`` and what SIGTERM and SIGHUP mean then, also
once the service has ended by itself. Installs no handler: the launcher does. How a service is run
is osloxide.launch.runner's part.

Rules: oslo_service.service.ProcessLauncher with *no_fork* (oslo.service 4.8); docs/signals.md.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

from osloxide import _native
from osloxide.activation import import_hook
from osloxide.launch import configuration, ending, scoreboard, services, systemd
from osloxide.launch.runner import Runner
from osloxide.signals import careful_log, signal_handler

LOG = careful_log.logger(careful_log.OF_PROCESS_LAUNCHER)

_LONGEST_ALARM = 2**31 - 1
"""Seconds that alarm(2) takes through Python's ``signal.alarm()``."""


class Unforked:
    """Runs services in this process, one after the other.

    :param conf: configuration.
    :param restart_method: what SIGHUP does: ``"reload"`` or ``"mutate"``.
    :param notifier: told what happens here.
    :param signals: where the launcher's handlers are.
    """

    def __init__(
        self,
        conf: Any,
        restart_method: str,
        notifier: systemd.Notifier,
        signals: signal_handler.SignalHandler,
    ) -> None:
        self._conf = conf
        self._restart_method = restart_method
        self._notifier = notifier
        self._signals = signals
        self._service: Any = None
        self._runner: Runner | None = None
        self._has_run = False

    def run(self, service: Any) -> None:
        """Run *service* on the main thread; returns when it has ended."""
        LOG.warning("no_fork=True: running service in main process")
        import_hook.announce()
        scoreboard.begin([service])
        configuration.log_options(self._conf, LOG)
        service.backdoor_port = None
        runner = Runner(
            self._conf,
            [service],
            restart_method=self._restart_method,
            on_ready=_native.worker_ready,
            notifier=self._notifier,
            parks=False,
        )
        self._runner = runner
        self._has_run = False
        self._service = service  # not before: a stop would stop it that was never started
        try:
            status = runner.run()
        finally:
            left = runner.time_left()
            runner.close()
            self._has_run = True  # from here on a handler asks the runner what was asked of it
            _native.disarm_deadline()
        if status:
            ending.leave(status)
        if runner.is_leaving:
            ending.begin(status, left)

    def graceful_shutdown(self, _signo: int, _frame: FrameType | None) -> None:
        """SIGTERM."""
        runner = self._runner
        if runner is not None and not self._has_run:
            runner.request_stop("Caught SIGTERM, stopping")
            return
        if runner is not None and runner.is_leaving:
            ending.cut_short()
            return
        # The service has returned from wait() by itself: nothing is left to wait for.
        LOG.info("Graceful shutdown start")
        grace = self._conf.graceful_shutdown_timeout or 0
        if 0 < grace <= _LONGEST_ALARM:
            signal.alarm(grace)
        self._signals.ignore_handler("SIGTERM")
        if self._service is not None:
            services.call_service(self._service.stop)
        LOG.info("Graceful shutdown finish")
        os._exit(0)

    def reload(self, _signo: int, _frame: FrameType | None) -> None:
        """SIGHUP."""
        self.reconfigure("Caught SIGHUP, handling")

    def reconfigure(self, message: str = "") -> None:
        """Have a service that runs reloaded or reset.

        :param message: for the log.
        """
        if self._runner is not None and not self._has_run:
            self._runner.request_reconfigure(message)
