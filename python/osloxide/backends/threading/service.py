"""Launchers and services of the threading backend.

Workers are forked in ``wait()``, SIGHUP always reloads, and ``no_fork`` runs the service where
launch_service() is called. Rules: oslo_service.backend._threading.service.
"""

from __future__ import annotations

import functools
import multiprocessing
import warnings
from typing import Any

from oslo_service.backend.base import ServiceBase

from osloxide import exceptions
from osloxide._typing import override
from osloxide.backends.threading import threadgroup
from osloxide.launch import process_launcher, service_launcher, services, worker_fork
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


def _check_start_method(start_method: str | None) -> None:
    """Refuse what no platform knows at once; what osloxide does not offer, when it is needed."""
    if start_method not in (None, *multiprocessing.get_all_start_methods()):
        raise exceptions.StartMethodError(
            f"Invalid start_method {start_method!r}; leave it out or pass 'fork'"
        )


class Service(services.Service):
    """A service with a thread group ``tg``; applications derive from it."""

    THREAD_GROUP = threadgroup.ThreadGroup


class Services(services.Services):
    """A group of services, each started on a thread of its own."""

    THREAD_GROUP = threadgroup.StartGroup


class Launcher(service_launcher.Launcher):
    """Runs services in this process, each started at once on a thread of its own."""

    SERVICES = Services


class ProcessLauncher(process_launcher.ProcessLauncher):
    """Runs services in workers, which wait() forks.

    :param wait_interval: deprecated, has no effect.
    """

    def __init__(
        self,
        conf: Any,
        wait_interval: float | None = None,
        restart_method: str = "reload",
        no_fork: bool = False,
        start_method: str | None = None,
    ) -> None:
        _check_start_method(start_method)
        super().__init__(conf, wait_interval, restart_method, no_fork, start_method)
        if wait_interval is not None:
            warnings.warn(
                "'wait_interval' is deprecated and has no effect in the 'threading' backend. It "
                "is accepted only for compatibility reasons and will be removed.",
                category=DeprecationWarning,
                stacklevel=2,
            )


class ServiceLauncher(service_launcher.ServiceLauncher):
    """Runs services in this process, or in workers when more than one is asked for."""

    SERVICES = Services

    def __init__(
        self, conf: Any, restart_method: str = "reload", start_method: str | None = None
    ) -> None:
        _check_start_method(start_method)
        super().__init__(conf, restart_method, start_method)
        self._processes: ProcessLauncher | None = None

    @override
    def launch_service(self, service_instance: Any, workers: int | None = 1) -> None:
        """Have the service started by wait().

        :param workers: with more than one, this launcher forks as a ProcessLauncher does, and
            services launched before and after run in workers too.
        """
        services.check_workers(workers)
        services.check_service_base(service_instance)
        if self._processes is None and workers not in (None, 1):
            self._processes = ProcessLauncher(
                self.conf, restart_method=self.restart_method, start_method=self.start_method
            )
            self.signal_handler.replace(self._handlers().values(), {})
            for earlier in self.services.services:
                self._processes.launch_service(earlier)
        if self._processes is not None:
            self._processes.launch_service(service_instance, workers)
        else:
            services.refuse_spawn(self.start_method, service_instance)
            super().launch_service(service_instance, workers)

    @override
    def wait(self) -> int | None:
        """Run the services until they are stopped; returns the exit status."""
        return super().wait() if self._processes is None else self._processes.wait()

    @override
    def stop(self) -> None:
        """Stop the services."""
        if self._processes is None:
            super().stop()
        else:
            self._processes.stop()

    @override
    def restart(self) -> None:
        """Do now what SIGHUP does."""
        if self._processes is None:
            super().restart()
        else:
            self._processes.restart()


class ServiceWrapper(worker_fork.ServiceWrapper):
    """One worker's view of its service, as the threading backend shapes it.

    :param worker_id: number of the worker; or the service, as the eventlet backend orders them.
    :param service_instance: the service; or how many workers it is to have.
    """

    def __init__(self, worker_id: Any, service_instance: Any, **_kwargs: Any) -> None:
        if isinstance(worker_id, ServiceBase):
            super().__init__(worker_id, service_instance)
            self.worker_id = 0
        else:
            services.check_service_base(service_instance)
            super().__init__(service_instance, 1)
            self.worker_id = worker_id
        self.service_instance = self.service

    def run(self) -> None:
        """Start the service and wait for it."""
        self.service_instance.start()
        self.service_instance.wait()

    def terminate(self) -> None:
        """Stop the service."""
        self.service_instance.stop()


def launch(
    conf: Any,
    service: Any,
    workers: int | None = 1,
    restart_method: str = "reload",
    no_fork: bool = False,
    start_method: str | None = None,
) -> Any:
    """Launch a service and return its launcher; call the launcher's ``wait()``.

    :param conf: configuration.
    :param service: an instance of ServiceBase.
    :param workers: number of processes; None or 1 runs the service in this process.
    :param restart_method: what SIGHUP does: ``"reload"`` reads the configuration again and
        restarts (one worker after the other), ``"mutate"`` reads it again and calls reset().
    :param no_fork: run the service here and now: returns when it has ended.
    :param start_method: None or ``"fork"``.
    :raises TypeError: *workers* is no int or *service* no ServiceBase.
    :raises ValueError: *workers*, *restart_method* or *start_method* is not one of the above.
    """
    return service_launcher.launch(
        functools.partial(
            ServiceLauncher, conf, restart_method=restart_method, start_method=start_method
        ),
        functools.partial(
            ProcessLauncher,
            conf,
            restart_method=restart_method,
            no_fork=no_fork,
            start_method=start_method,
        ),
        service,
        workers,
        in_this_process=workers in (None, 1) and not no_fork,
    )
