"""``eventlet.support.greenlets``, and ``import greenlet``: greenlets on native threads."""

from osloxide.green._core.greenlets import error, getcurrent, greenlet
from osloxide.green._core.interruption import GreenletExit

GreenletError = error
preserves_excinfo = True
GREENLET_USE_GC = True
GREENLET_USE_TRACING = False
GREENLET_USE_CONTEXT_VARS = True

__all__ = ["GreenletExit", "error", "getcurrent", "greenlet", "preserves_excinfo"]

__version__ = "3.1.1"


def gettrace() -> None:
    """No tracing function: switches of native threads are not traced."""


def settrace(callback: object) -> None:
    """Refused.

    :raises NotImplementedError: always.
    """
    raise NotImplementedError(
        "osloxide serves greenlet from native threads, whose switches cannot be traced; use "
        "threading.settrace(), or run on the real greenlet with OSLOXIDE_EVENTLET=real"
    )
