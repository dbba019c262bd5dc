"""What a process knows about its own end: is it stopping, and which sockets does it listen on?

Launchers and workers call :func:`begin_shutdown` before they stop a service;
:class:`osloxide.wsgi.Server` asks :func:`is_stopping` to tell the end of the process from a reload
in place, and registers its listening sockets here. The supervisor closes the registered sockets in
its own process when it begins to stop: a socket that only the parent still holds open would accept
connections into the kernel's backlog that no process answers.

Never stops a service and never sends a signal. Safe to call from any thread and from a signal
handler: no lock is taken.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from osloxide.signals import careful_log
from osloxide.threads import identity

LOG = careful_log.logger(__name__)

_stopping = False
_listeners: identity.WeakIdentitySet[socket.socket] = identity.WeakIdentitySet()
_on_close: list[Callable[[], object]] = []


def is_stopping() -> bool:
    """Tell whether this process is on its way out.

    :returns: True from the moment a launcher begins to stop; False during a reload in place, after
        which the same process goes on serving.
    """
    return _stopping


def begin_shutdown() -> None:
    """Record that this process is on its way out. Calling it twice is harmless."""
    global _stopping
    _stopping = True


def begin_serving() -> None:
    """Record that this process serves (again): a launcher was made or a worker was forked."""
    global _stopping
    _stopping = False


def register_listener(listener: socket.socket) -> None:
    """Hand over a listening socket for :func:`close_listeners`.

    :param listener: kept by a weak reference only; a socket that is closed or forgotten earlier
        needs no further call.
    """
    _listeners.add(listener)


def when_listeners_close(callback: Callable[[], object]) -> None:
    """Have :func:`close_listeners` call *callback* each time; what it raises is logged."""
    _on_close.append(callback)


def close_listeners() -> int:
    """Close every registered socket in this process.

    Copies that other processes hold (workers that drain their backlog) stay open. Never fails: a
    stop depends on it.

    :returns: how many sockets were still open.
    """
    closed = 0
    for listener in tuple(_listeners):
        _listeners.discard(listener)
        if listener.fileno() != -1:
            with contextlib.suppress(OSError):  # EBADF: the application closed the descriptor
                listener.close()
            closed += 1
    for callback in _on_close:
        try:
            callback()
        except Exception:
            LOG.exception("The stop goes on after a failure")
    return closed
