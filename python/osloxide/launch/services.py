"""Service and Services: what applications derive from, and the group that a Launcher runs.

Owns the order in which several services are started, reset, stopped and awaited when each start()
runs on a thread of its own, which is what a plain Launcher does. ServiceLauncher and workers run
services on the main thread instead, see osloxide.launch.runner.

Rules: oslo_service.service.Service and Services (oslo.service 4.8), both backends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

from oslo_service.backend.base import ServiceBase

from osloxide import exceptions, threadgroup
from osloxide._typing import override
from osloxide.launch import service_name
from osloxide.signals import careful_log
from osloxide.threads import event_loop, forked, stopping

LOG = careful_log.logger(__name__)

RESTART_METHODS = ("reload", "mutate")
START_METHODS = (None, "fork")


def call_service(method: Callable[[], Any]) -> None:
    """Call start(), stop(), wait() or reset() of a service, which may be a coroutine, to its end.

    A process that it has forked ends where it leaves the method: the services, threads and signals
    of the frames above are those of its parent.
    """
    forked.call(lambda: event_loop.complete(method()))


def check_service_base(service: object) -> None:
    """Refuse what is not a service.

    :raises TypeError: *service* is not a :class:`ServiceBase`.
    """
    if not isinstance(service, ServiceBase):
        raise TypeError(f"Service {service} must be an instance of {ServiceBase}!")


def check_restart_method(restart_method: str) -> None:
    """Refuse an unknown restart method.

    :raises ValueError: neither ``"reload"`` nor ``"mutate"``.
    """
    if restart_method not in RESTART_METHODS:
        raise ValueError(
            f"Invalid restart_method: {restart_method} (expected one of "
            f"{', '.join(RESTART_METHODS)})"
        )


def check_workers(workers: object) -> None:
    """Refuse what is no number of workers; None is one.

    :raises TypeError: not an int.
    :raises ValueError: not positive.
    """
    if workers is None:
        return
    if not isinstance(workers, int):
        raise TypeError(
            f"Type of workers should be int! (got {workers!r}, a {type(workers).__name__})"
        )
    if workers <= 0:
        raise ValueError(f"Number of workers should be positive! (got {workers})")


def refuse_spawn(start_method: str | None, service: Any) -> None:
    """Refuse a start method that is valid in oslo.service but not offered here.

    :raises StartMethodError: neither None nor ``"fork"``.
    """
    if start_method not in START_METHODS:
        raise exceptions.StartMethodError(
            f"start_method {start_method!r} is not offered for {service_name.of(service)}: workers "
            "are forked before any thread exists, so the reasons for spawning do not apply; "
            "leave start_method out"
        )


class Service(ServiceBase):
    """A service with a thread group ``tg``; applications derive from it.

    :param threads: size of the thread group.
    """

    THREAD_GROUP: ClassVar[type[threadgroup.ThreadGroup]] = threadgroup.ThreadGroup

    def __init__(self, threads: int = 1000) -> None:
        super().__init__()
        self.tg = self.THREAD_GROUP(threads)
        self.backdoor_port: int | None = None

    @override
    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        tg = state.pop("tg", None)
        state["_thread_pool_size"] = 1000 if tg is None else tg.thread_pool_size
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        size = state.pop("_thread_pool_size", 1000)
        self.__dict__.update(state)
        self.tg = self.THREAD_GROUP(size)

    def reset(self) -> None:
        """Called when the configuration has changed (SIGHUP)."""

    def start(self) -> None:
        """Called once the process that is to serve exists."""

    def stop(self, graceful: bool = False) -> None:
        """Stop the thread group.

        :param graceful: wait for its threads; otherwise forget them.
        """
        self.tg.stop(graceful)

    def wait(self) -> None:
        """Wait for the thread group."""
        self.tg.wait()


class Services:
    """A group of services, each started on a thread of its own.

    :param restart_method: what :meth:`restart` does: ``"reload"`` stops, resets and starts the
        services, ``"mutate"`` only resets them.
    :raises ValueError: *restart_method* is neither.
    """

    THREAD_GROUP: ClassVar[type[threadgroup.ThreadGroup]] = threadgroup.ThreadGroup

    def __init__(self, restart_method: str = "reload") -> None:
        check_restart_method(restart_method)
        self.restart_method = restart_method
        self.services: list[Any] = []
        self.tg = self.THREAD_GROUP(1000)
        self.done = threading.Event()
        self._given_up: tuple[threading.Event, list[Any]] | None = None
        """After a failed start: until when services would have run, and who was stopped."""
        self.when_start_fails: Callable[[SystemExit], object] | None = None
        """Called, on the thread of a start() that has failed, in place of stopping the others."""

    def add(self, service: Any) -> None:
        """Start *service* on a thread of its own, now."""
        self.services.append(service)
        self._run(service)

    def stop(self) -> None:
        """Stop the services in order. May be called more than once."""
        for service in self.services:
            call_service(service.stop)
        self.done.set()
        self.tg.stop()

    def wait(self) -> None:
        """Wait for the services in order.

        :raises SystemExit: the start() of one failed (status 1) or raised SystemExit itself.
        """
        for service in self.services:
            call_service(service.wait)
        self.tg.wait()

    def restart(self) -> None:
        """Reset all services; with ``"reload"`` stop them before and start them afterwards.

        None starts before all are reset, as on green threads, where the reset of all comes before
        the first switch.
        """
        starts_again = self.restart_method == "reload"
        if starts_again:
            self.stop()
            self.done = threading.Event()
        for service in self.services:
            call_service(service.reset)
        if starts_again:
            for service in self.services:
                self._run(service)

    def _run(self, service: Any) -> None:
        self.tg.add_thread(self._run_or_give_up, service, self.done)

    def _run_or_give_up(self, service: Any, done: threading.Event) -> None:
        try:
            self.run_service(service, done)
        except SystemExit as failure:
            if self.when_start_fails is not None:
                self.when_start_fails(failure)
            else:
                # A thread may be in wait() of a service that will never get going.
                self._given_up = done, list(self.services)
                for each in self._given_up[1]:
                    self._stop_after_failure(each)
            done.set()
            raise
        until, stopped = self._given_up or (None, [])
        if until is done and not any(one is service for one in stopped):  # it was added since
            self._stop_after_failure(service)

    @staticmethod
    def _stop_after_failure(service: Any) -> None:
        try:
            call_service(service.stop)
        except BaseException:
            LOG.exception("Error stopping %s after a failed start", service_name.of(service))

    @staticmethod
    def run_service(service: Any, done: threading.Event) -> None:
        """Start *service*, then wait until the group is stopped.

        :raises SystemExit: start() failed: with 1, with what it passed to ``sys.exit()``, or with 2
            after another exception that ends programs.
        """
        try:
            call_service(service.start)
        except BaseException as exc:
            if isinstance(exc, SystemExit) or stopping.is_kill(exc):
                raise
            LOG.exception("Error starting thread.")
            raise SystemExit(1 if isinstance(exc, Exception) else 2) from None
        done.wait()
