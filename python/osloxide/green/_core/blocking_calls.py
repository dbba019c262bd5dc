"""Blocking calls of the standard library, under the handover ``strict``.

Owns what ``monkey_patch()`` puts around them there: a greenthread that comes back from one, and
from which the baton was taken meanwhile, waits for its turn, as with eventlet. Otherwise two would
run beside each other until the next wait of eventlet's. The calls stay the standard library's, and
block their own thread alone. Imported with that handover alone; changes nothing for threads that
take no part.

Rules: eventlet.patcher and eventlet.green, which say what of which module is green.
"""

from __future__ import annotations

import _thread
import functools
import os
import queue
import select
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from osloxide._typing import override
from osloxide.green import patcher
from osloxide.green._core import turns as _turns
from osloxide.green._core.waits import hold

_CALLS: dict[str, tuple[tuple[Any, tuple[str, ...]], ...]] = {
    "os": ((os, ("read", "readv", "write", "writev", "wait", "wait3", "wait4", "waitpid")),),
    "select": (
        (select, ("select",)),
        (selectors.SelectSelector, ("select",)),
        (selectors.PollSelector, ("select",)),
        (selectors.EpollSelector, ("select",)),
    ),
    "socket": (
        (
            socket.socket,
            (
                "accept", "connect", "connect_ex", "recv", "recv_into", "recvfrom", "recvfrom_into",
                "recvmsg", "recvmsg_into", "send", "sendall", "sendfile", "sendmsg", "sendto",
            ),
        ),
        (ssl.SSLSocket, ("accept", "connect", "do_handshake", "read", "unwrap", "write")),
        (socket, ("getaddrinfo", "gethostbyaddr", "gethostbyname", "gethostbyname_ex",
                  "getnameinfo")),
    ),
    "time": ((time, ("sleep",)),),
}  # fmt: skip
"""Word of ``monkey_patch()`` -> where its calls are."""

_wrapped: set[str] = set()
"""Words whose calls have been changed."""


def wait_for_turn() -> None:
    """The calling greenthread is back: if others have the baton, they go on until they wait."""
    me = _turns.local.carrier
    if me is None or me._state != _turns.RUNNING:
        return  # a thread that takes no part, or a signal handler in the midst of a wait
    current = _turns.local.current
    held: Any = _turns.lock
    if held._is_owned() or (current is not None and current._is_hub):
        return
    hold()


def _coming_back(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def blocking(*arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        finally:
            wait_for_turn()

    return blocking


class _Lock:
    """``threading.Lock``."""

    __slots__ = ("__weakref__", "_lock")
    _make: Callable[[], Any] = staticmethod(_thread.allocate_lock)

    def __init__(self) -> None:
        self._lock = self._make()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if blocking and self._lock.acquire(False):
            return True
        try:
            return bool(self._lock.acquire(blocking, timeout))
        finally:
            wait_for_turn()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)

    @override
    def __repr__(self) -> str:
        return repr(self._lock)


class _RLock(_Lock):
    """``threading.RLock``."""

    __slots__ = ()
    _make = staticmethod(_thread.RLock)

    def _acquire_restore(self, state: Any) -> None:
        try:
            self._lock._acquire_restore(state)
        finally:
            wait_for_turn()


def _wrap_threads() -> None:
    names: Any = threading
    names.Lock = names._allocate_lock = _Lock
    names.RLock = _RLock
    names.Thread.join = _coming_back(threading.Thread.join)
    plain: Any = queue
    plain.SimpleQueue = plain._PySimpleQueue  # that of C waits in C


def serve() -> None:
    """Change the calls of what ``monkey_patch()`` was asked for; once each."""
    for word, is_requested in patcher.requested.items():
        if not is_requested or word in _wrapped:
            continue
        _wrapped.add(word)
        if word == "thread":
            _wrap_threads()
        for place, names in _CALLS.get(word, ()):
            for name in names:
                if hasattr(place, name):
                    setattr(place, name, _coming_back(getattr(place, name)))
