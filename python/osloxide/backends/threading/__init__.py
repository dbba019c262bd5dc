"""The threading backend: what ``oslo_service.backend._threading`` is while osloxide is active.

Owns nothing but the table of components. Rules: oslo_service.backend.base.BaseBackend.
"""

from __future__ import annotations

from typing import Any

from oslo_service.backend.base import BaseBackend

from osloxide.backends.threading import loopingcall, service, threadgroup
from osloxide.signals import signal_handler


class ThreadingBackend(BaseBackend):
    """Hands out the components of the threading flavour."""

    @staticmethod
    def get_service_components() -> dict[str, Any]:
        """Name all components, as oslo.service's own backends do."""
        return {
            "ServiceBase": service.ServiceBase,
            "ServiceLauncher": service.ServiceLauncher,
            "Launcher": service.Launcher,
            "ProcessLauncher": service.ProcessLauncher,
            "Service": service.Service,
            "Services": service.Services,
            "ServiceWrapper": service.ServiceWrapper,
            "SignalExit": signal_handler.SignalExit,
            "SignalHandler": service.SignalHandler,
            "Singleton": signal_handler.Singleton,
            "LoopingCallBase": loopingcall.LoopingCallBase,
            "LoopingCallDone": loopingcall.LoopingCallDone,
            "LoopingCallTimeOut": loopingcall.LoopingCallTimeOut,
            "FixedIntervalLoopingCall": loopingcall.FixedIntervalLoopingCall,
            "FixedIntervalWithTimeoutLoopingCall": (
                loopingcall.FixedIntervalWithTimeoutLoopingCall
            ),
            "DynamicLoopingCall": loopingcall.DynamicLoopingCall,
            "BackOffLoopingCall": loopingcall.BackOffLoopingCall,
            "RetryDecorator": loopingcall.RetryDecorator,
            "ThreadGroup": threadgroup.ThreadGroup,
            "Thread": threadgroup.Thread,
            "_is_daemon": signal_handler.is_daemon,
            "_is_sighup_and_daemon": signal_handler.is_sighup_and_daemon,
            "launch": service.launch,
        }
