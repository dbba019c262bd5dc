"""Looping calls of the threading backend: osloxide's own, unchanged.

Rules: oslo_service.backend._threading.loopingcall, which applications also import directly.
"""

from osloxide.loopingcall import (
    BackOffLoopingCall,
    DynamicLoopingCall,
    FixedIntervalLoopingCall,
    FixedIntervalWithTimeoutLoopingCall,
    FutureEvent,
    LoopingCallBase,
    LoopingCallDone,
    LoopingCallTimeOut,
    RetryDecorator,
)

__all__ = [
    "BackOffLoopingCall",
    "DynamicLoopingCall",
    "FixedIntervalLoopingCall",
    "FixedIntervalWithTimeoutLoopingCall",
    "FutureEvent",
    "LoopingCallBase",
    "LoopingCallDone",
    "LoopingCallTimeOut",
    "RetryDecorator",
]
