"""Launchers and services of the eventlet backend, without eventlet.

Workers are forked in ``launch_service()``, SIGHUP stops a process in the foreground of a terminal,
and ``no_fork`` is ignored. Rules: oslo_service.backend._eventlet.service.
"""

from __future__ import annotations

import functools
from typing import Any

from oslo_service.backend.base import ServiceBase

from osloxide.backends.eventlet import threadgroup
from osloxide.launch import process_launcher, service_launcher, services
from osloxide.launch.worker_fork import ServiceWrapper
from osloxide.signals.signal_handler import SignalExit, SignalHandler, Singleton

__all__ = [
    "Launcher",
    "ProcessLauncher",
    "Service",
    "ServiceBase",
    "ServiceLauncher",
    "ServiceWrapper",
    "Services",
    "SignalExit",
    "SignalHandler",
    "Singleton",
    "launch",
]


class Service(services.Service):
    """A service with a thread group ``tg``; applications derive from it."""

    THREAD_GROUP = threadgroup.ThreadGroup


class Services(services.Services):
    """A group of services, each started on a thread of its own."""

    THREAD_GROUP = threadgroup.ThreadGroup


class Launcher(service_launcher.Launcher):
    """Runs services in this process, each started at once on a thread of its own."""

    SERVICES = Services


class ServiceLauncher(service_launcher.ServiceLauncher, Launcher):
    """Runs services in this process, on its main thread, until a signal ends them."""

    SERVICES = Services
    HUP_NEEDS_DAEMON = True
    STARTS_AT_LAUNCH = True

    def __init__(self, conf: Any, restart_method: str = "reload") -> None:
        super().__init__(conf, restart_method=restart_method)


class ProcessLauncher(process_launcher.ProcessLauncher):
    """Runs services in workers, which launch_service() forks.

    :param wait_interval: accepted for compatibility: the end of a worker is noticed at once.
    """

    FORKS_AT_LAUNCH = True
    HUP_NEEDS_DAEMON = True

    def __init__(
        self, conf: Any, wait_interval: float = 0.01, restart_method: str = "reload"
    ) -> None:
        super().__init__(conf, wait_interval, restart_method)
        self.signal_handler = self._signals
        self.handle_signal()


def launch(
    conf: Any,
    service: Any,
    workers: int | None = 1,
    restart_method: str = "reload",
    no_fork: bool = False,
) -> Any:
    """Launch a service and return its launcher; call the launcher's ``wait()``.

    :param conf: configuration.
    :param service: an instance of ServiceBase.
    :param workers: number of processes; None or 1 runs the service in this process.
    :param restart_method: what SIGHUP does: ``"reload"`` reads the configuration again and
        restarts (one worker after the other), ``"mutate"`` reads it again and calls reset().
    :param no_fork: ignored.
    :raises TypeError: *workers* is no int or *service* no ServiceBase.
    :raises ValueError: *workers* is not positive or *restart_method* unknown.
    """
    del no_fork
    return service_launcher.launch(
        functools.partial(ServiceLauncher, conf, restart_method=restart_method),
        functools.partial(ProcessLauncher, conf, restart_method=restart_method),
        service,
        workers,
        in_this_process=workers in (None, 1),
    )
