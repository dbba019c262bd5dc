"""What osloxide changes in oslo.messaging, module by module, when the service imports it.

Owns the changes; :mod:`osloxide.activation.import_hook` calls :func:`amend` right after a module's
body ran.
Imports nothing of oslo.messaging itself: a service that does not use it pays nothing.
Why each change: docs/rpc.md.
"""

from types import ModuleType, SimpleNamespace
from typing import Any

from osloxide.messaging import connections, dispatch, heart, outage, rabbit


def amend(module: ModuleType) -> None:
    """Change *module*, if it is one of those that need it. Amending twice changes nothing more."""
    change = {
        "amqp.connection": _beat_natively,
        "oslo_messaging._drivers.amqpdriver": _pace_rabbit,
        "oslo_messaging._drivers.impl_rabbit": _survive_outages,
        "oslo_messaging._drivers.pool": connections.amend,
        "oslo_messaging.rpc.dispatcher": dispatch.amend_dispatcher,
        "oslo_messaging.rpc.server": dispatch.amend_rpc_server,
        "oslo_messaging.server": _run_on_native_threads,
    }.get(module.__name__)
    if change is not None and not getattr(module, "_osloxide_amended", False):
        module._osloxide_amended = True  # type: ignore[attr-defined]
        change(module)


def _beat_natively(connection: ModuleType) -> None:
    heart.amend(connection)


def _survive_outages(impl_rabbit: ModuleType) -> None:
    heart.amend_connection(impl_rabbit)
    outage.amend_connection(impl_rabbit)


def _pace_rabbit(amqpdriver: ModuleType) -> None:
    outage.amend_waiters(amqpdriver)
    rabbit.pace(amqpdriver, lambda driver: int(driver.conf.executor_thread_pool_size))


def _run_on_native_threads(server: ModuleType) -> None:
    """Give servers our executor where they look up theirs.

    A second distribution cannot register ``threading`` beside futurist's: stevedore refuses names
    that are taken. Both names mean the same here, since nothing under osloxide has green threads;
    and futurist is not loaded at all.
    """
    server.driver = _Executors(server.driver)  # type: ignore[attr-defined]
    dispatch.amend_server(server)


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
