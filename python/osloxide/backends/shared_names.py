"""Names that oslo.service's own backends share: osloxide's classes under them too.

Owns two amendments, of ``oslo_service.backend._common.loopingcall`` and ``.service``. Upstream an
exception that is imported from there is the one that the public module names; without the
amendments a function that raises that ``LoopingCallDone`` would fail instead of ending its loop.
4.2 has no such modules. Replaces no base class: osloxide's classes do not derive from them.

Rules: oslo_service.backend._common (oslo.service 4.4 to 4.8).
"""

from __future__ import annotations

from typing import Any

from osloxide import loopingcall
from osloxide.activation.amendments import relies_on
from osloxide.signals import signal_handler


@relies_on("LoopingCallDone", "LoopingCallTimeOut")
def of_loopingcall(module: Any) -> None:
    """Put the exceptions of osloxide's looping calls into ``_common.loopingcall``."""
    module.LoopingCallDone = loopingcall.LoopingCallDone
    module.LoopingCallTimeOut = loopingcall.LoopingCallTimeOut


@relies_on("SignalExit", "Singleton")
def of_service(module: Any) -> None:
    """Put the exception of a signal and the metaclass of singletons into ``_common.service``."""
    module.SignalExit = signal_handler.SignalExit
    module.Singleton = signal_handler.Singleton
