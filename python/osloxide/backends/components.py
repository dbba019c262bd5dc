"""The table of components that both backends hand out, under oslo.service's names.

Owns the names; which class stands behind a name is the flavour's part (osloxide.backends.eventlet,
osloxide.backends.threading). Rules: oslo_service.backend.base.BaseBackend,
oslo_service.service, .loopingcall and .threadgroup (oslo.service 4.2 to 4.8).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from osloxide.signals import signal_handler

_OF_SERVICE = (
    "ServiceBase",
    "ServiceLauncher",
    "Launcher",
    "ProcessLauncher",
    "Service",
    "Services",
    "ServiceWrapper",
    "SignalExit",
    "SignalHandler",
    "Singleton",
    "launch",
)
_OF_LOOPINGCALL = (
    "LoopingCallBase",
    "LoopingCallDone",
    "LoopingCallTimeOut",
    "FixedIntervalLoopingCall",
    "FixedIntervalWithTimeoutLoopingCall",
    "DynamicLoopingCall",
    "BackOffLoopingCall",
    "RetryDecorator",
)
_OF_THREADGROUP = ("ThreadGroup", "Thread")


def of_flavour(
    service: ModuleType, loopingcall: ModuleType, threadgroup: ModuleType
) -> dict[str, Any]:
    """The components of the flavour that the three modules implement."""
    table = {
        name: getattr(module, name)
        for module, names in (
            (service, _OF_SERVICE),
            (loopingcall, _OF_LOOPINGCALL),
            (threadgroup, _OF_THREADGROUP),
        )
        for name in names
    }
    table["_is_daemon"] = signal_handler.is_daemon
    table["_is_sighup_and_daemon"] = signal_handler.is_sighup_and_daemon
    return table
