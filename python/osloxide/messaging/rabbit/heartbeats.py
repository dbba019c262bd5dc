"""Heartbeats of AMQP connections that go on while an endpoint holds the interpreter's lock.

Owns the change to py-amqp's connections: bytes leave through a native connection, and a native
thread sends a heartbeat on one that has been silent for three quarters of the interval agreed with
the broker (``src/amqp/heartbeat.rs``). Listeners go on sending their own while Python runs; that is
also how the native thread knows that it does. It stops five minutes after the last sign of Python:
what is stuck for longer hangs, and the broker has to give its messages to another server.
Over TLS as well where its records are made natively (:mod:`osloxide.messaging.rabbit.tls`); where
OpenSSL makes them under the lock, the connection is left alone.
Rules: amqp/connection.py (``_on_tune``, ``heartbeat_tick``), amqp/transport.py; AMQP 0-9-1, 4.2.7.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import select
import socket
import ssl
import threading
from types import CodeType, ModuleType
from typing import Any

from osloxide import _native
from osloxide.threads import identity

LOG = logging.getLogger(__name__)

POSTED = 16 * 1024
"""Bytes up to which a frame is queued without waiting: acknowledgements and heartbeats must not
wait behind a large reply that a broker short of memory does not take."""


class _ProcessHeartbeats:
    """The native heartbeats of this process: their thread exists in no other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: tuple[int, _native.Heartbeats] | None = None
        # Those of the process that this one was forked from may have been locked at that moment:
        # they are never touched again, not even to be freed.
        self._left: list[Any] = []

    def own(self) -> _native.Heartbeats:
        with self._lock:
            if self._own is None or self._own[0] != os.getpid():
                self._left.append(self._own)
                self._own = (os.getpid(), _native.Heartbeats())
            return self._own[1]

    def begin_in_child(self) -> None:
        """Another thread of the parent may have held the lock."""
        self._lock = threading.Lock()


_heartbeats = _ProcessHeartbeats()
os.register_at_fork(after_in_child=_heartbeats.begin_in_child)


def own() -> _native.Heartbeats:
    """Those of this process."""
    return _heartbeats.own()


def amend_amqp(connection: ModuleType) -> None:
    """Change py-amqp's module ``amqp.connection``."""
    cls = connection.Connection
    on_tune, heartbeat_tick = cls._on_tune, cls.heartbeat_tick

    @functools.wraps(on_tune)
    def on_tune_natively(self: Any, *arguments: Any, **keywords: Any) -> Any:
        answer = on_tune(self, *arguments, **keywords)
        if self.heartbeat:
            lend(self.transport, float(self.heartbeat))
        return answer

    @functools.wraps(heartbeat_tick)
    def tick_after_silence(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if _has_unread(self._transport):
            # No thread has read for a while; the broker was not silent. Without this, an
            # endpoint that holds the interpreter for two intervals has this end give up a
            # connection that the broker kept.
            self.prev_recv = None
        return heartbeat_tick(self, *arguments, **keywords)

    cls._on_tune, cls.heartbeat_tick = on_tune_natively, tick_after_silence


def amend_connection(impl_rabbit: ModuleType) -> None:
    """Change ``oslo_messaging._drivers.impl_rabbit.Connection``: one thread, not one for each.

    oslo.messaging has one send the heartbeats of every connection for sending. Here the native
    thread does, and what the broker says in between is read with the next confirmation.
    """
    cls = impl_rabbit.Connection
    start = cls._heartbeat_start
    threaded: identity.WeakIdentitySet[Any] = identity.WeakIdentitySet()

    @functools.wraps(start)
    def start_unless_lent(self: Any) -> None:
        connection = getattr(self.connection, "_connection", None)
        is_lent = hasattr(getattr(connection, "_transport", None), "_osloxide_connection")
        # One thread stays: in a process without a listener it is what shows that Python runs.
        if is_lent and any(_has_live_thread(other) for other in list(threaded)):
            self._heartbeat_thread = None
            return
        start(self)
        threaded.add(self)

    cls._heartbeat_start = start_unless_lent


def _has_live_thread(connection: Any) -> bool:
    """Whether its heartbeat thread runs in this process: a forked child has the object only."""
    thread = connection._heartbeat_thread
    return thread is not None and thread.is_alive()


def lend(transport: Any, seconds: float) -> None:
    """Send heartbeats natively on *transport*.

    :param seconds: how often the broker expects something at least.
    """
    sock = transport.sock
    if not hasattr(transport, "_quick_recv") or isinstance(sock, ssl.SSLSocket):
        LOG.info("%r: no heartbeats while an endpoint holds the interpreter: OpenSSL's TLS", sock)
        return
    native: _native.AmqpConnection | None = getattr(sock, "native", None)  # of TLS
    if native is not None:
        native.beat(seconds)
    else:
        try:
            native = own().add(sock.fileno(), seconds)
        except OSError as error:
            LOG.warning("%r: no native heartbeats: %s", sock, error)
            return
    _write_natively(transport, native)


def _write_natively(transport: Any, native: _native.AmqpConnection) -> None:
    sock, close = transport.sock, transport.close

    def write(data: Any) -> None:
        if len(data) <= POSTED:
            native.post(data)
        else:
            native.write(data, sock.gettimeout())

    def close_all() -> None:
        native.close()
        close()

    transport._write, transport.close = write, close_all
    transport._osloxide_connection = native


def writes_are_ordered(connection: Any) -> bool:
    """Whether any thread may send a method that is not answered, as ``basic.ack`` is, on
    *connection* (of py-amqp): its frames are made under a lock, and leave through a native
    connection. Never on kombu's own transports, ``kombu+memory://`` for one."""
    transport = getattr(connection, "_transport", None)
    return _frames_are_locked() and hasattr(transport, "_osloxide_connection")


@functools.cache
def _frames_are_locked() -> bool:
    """py-amqp makes frames in one buffer for each connection; since 5.4 a lock guards it."""
    maker = importlib.import_module("amqp.method_framing").frame_writer
    return any(
        "buffer_lock" in code.co_freevars
        for code in maker.__code__.co_consts
        if isinstance(code, CodeType)
    )


def _has_unread(transport: Any) -> bool:
    sock: Any = getattr(transport, "sock", None)
    plain = getattr(sock, "plain", sock)
    if not isinstance(plain, socket.socket) or plain.fileno() < 0:
        return False
    if getattr(sock, "pending", int)():
        return True
    poll = select.poll()
    poll.register(plain.fileno(), select.POLLIN)
    # A hang-up is not a sign of life, though it makes the socket readable.
    return any(events == select.POLLIN for _, events in poll.poll(0))
