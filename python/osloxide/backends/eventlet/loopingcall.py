"""Looping calls of the eventlet backend: osloxide's own.

One difference: waiting for an outcome with a timeout returns None when the time is over, as
``eventlet.event.Event`` does, instead of raising.
Rules: oslo_service.backend._eventlet.loopingcall.
"""

from __future__ import annotations

from typing import Any

from osloxide import loopingcall
from osloxide._typing import override
from osloxide.loopingcall import LoopingCallDone, LoopingCallTimeOut

__all__ = [
    "BackOffLoopingCall",
    "DynamicLoopingCall",
    "FixedIntervalLoopingCall",
    "FixedIntervalWithTimeoutLoopingCall",
    "LoopingCallBase",
    "LoopingCallDone",
    "LoopingCallTimeOut",
    "RetryDecorator",
]

TRACE = 5
"""The level of that name of oslo.log."""


class _Event(loopingcall.FutureEvent):
    @override
    def wait(self, timeout: float | None = None, *, interruptible: bool = False) -> Any:
        if timeout is not None and not self._event.wait(timeout):
            return None
        return super().wait(interruptible=interruptible)


class LoopingCallBase(loopingcall.LoopingCallBase):
    """What all looping calls share."""

    _EVENT = _Event
    _LEVEL_OF_SLEEPS = TRACE


class FixedIntervalLoopingCall(LoopingCallBase, loopingcall.FixedIntervalLoopingCall):
    """Calls at a fixed interval."""


class FixedIntervalWithTimeoutLoopingCall(
    LoopingCallBase, loopingcall.FixedIntervalWithTimeoutLoopingCall
):
    """Calls at a fixed interval until a time limit."""


class DynamicLoopingCall(LoopingCallBase, loopingcall.DynamicLoopingCall):
    """Calls at intervals that the function itself returns."""


class BackOffLoopingCall(LoopingCallBase, loopingcall.BackOffLoopingCall):
    """Calls with growing intervals until the function is done."""


class RetryDecorator(loopingcall.RetryDecorator):
    """Calls a function again while it raises one of the given exceptions."""

    _LOOP = DynamicLoopingCall
