"""What osloxide changes in oslo.messaging, module by module, when the service imports it.

Owns the changes; :mod:`osloxide._bootstrap` calls :func:`amend` right after a module's body ran.
Imports nothing of oslo.messaging itself: a service that does not use it pays nothing.
Why each change: docs/rpc.md.
"""

import functools
from types import ModuleType, SimpleNamespace
from typing import Any

from osloxide.messaging import rabbit


def amend(module: ModuleType) -> None:
    """Change *module*, if it is one of those that need it. Amending twice changes nothing more."""
    change = {
        "oslo_messaging._drivers.amqpdriver": _pace_rabbit,
        "oslo_messaging.rpc.server": _pick_up_before_running,
        "oslo_messaging.server": _run_on_native_threads,
    }.get(module.__name__)
    if change is not None and not getattr(module, "_osloxide_amended", False):
        module._osloxide_amended = True  # type: ignore[attr-defined]
        change(module)


def _pace_rabbit(amqpdriver: ModuleType) -> None:
    rabbit.pace(amqpdriver, lambda driver: int(driver.conf.executor_thread_pool_size))


def _pick_up_before_running(server: ModuleType) -> None:
    """Let a request be acknowledged, or given back, by the thread that is about to run it."""
    process = server.RPCServer._process_incoming

    @functools.wraps(process)
    def process_incoming(self: Any, incoming: list[Any]) -> None:
        pick_up = getattr(incoming[0], "pick_up", None)
        if pick_up is None or pick_up():
            process(self, incoming)

    server.RPCServer._process_incoming = process_incoming


def _run_on_native_threads(server: ModuleType) -> None:
    """Give servers our executor where they look up theirs.

    A second distribution cannot register ``threading`` beside futurist's: stevedore refuses names
    that are taken. Both names mean the same here, since nothing under osloxide has green threads;
    and futurist is not loaded at all.
    """
    server.driver = _Executors(server.driver)  # type: ignore[attr-defined]


class _Executors:
    """``stevedore.driver`` as oslo_messaging.server uses it, knowing one more driver."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def DriverManager(self, namespace: str, name: str, **options: Any) -> Any:  # noqa: N802
        if namespace == "oslo.messaging.executors":
            from osloxide import rpc

            return SimpleNamespace(driver=rpc.Executor)
        return self._driver.DriverManager(namespace, name, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)
