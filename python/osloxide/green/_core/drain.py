"""The end of a server of ``eventlet.wsgi``: what clients have sent is answered, and nothing more.

Owns which connections are closed when the server is killed, which get an answer first, and how long
one gets on which no request has come. Accepts what the kernel has queued; closes no listening
socket. Rules: docs/eventlet.md, "The server"; the native server's drain for the bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from osloxide.green import greenio, greenpool, greenthread
from osloxide.green._core.arrivals import Connection, has_bytes, is_plain, queued

STATE_IDLE = "idle"
STATE_REQUEST = "request"
STATE_CLOSE = "close"


def drain(
    serv: Any,
    sock: Any,
    pool: Any,
    connections: dict[int, Connection],
    clean: Callable[[object, Connection], None],
    first_request_seconds: float,
) -> None:
    """Answer what clients have sent, and wait for it.

    :param serv: the ``Server`` that ends.
    :param sock: what it listens on.
    :param pool: runs its connections.
    :param connections: those that are open, by their id.
    :param clean: closes one, once its greenthread has ended.
    :param first_request_seconds: what one gets on which no request has come.
    """
    serv.is_ending = True
    for connection in queued(sock, STATE_IDLE):
        connection[1].settimeout(serv.socket_timeout)
        serv.log.debug("(%s) accepted %r", serv.pid, connection[0])
        connections[id(connection)] = connection
    awaited = _close_idle(list(connections.values()))

    def shut_silent() -> None:
        for connection in awaited:
            if connection[2] == STATE_CLOSE and id(connection) in connections:
                greenio.shutdown_safe(connection[1])

    # The pool may have been resized to nothing, so that these do not go through it.
    rest = [it for it in connections.values() if not it.is_begun]
    late = greenpool.GreenPool(len(rest))
    for connection in rest:
        late.spawn(serv.process_request, connection).link(clean, connection)
    timer = greenthread.spawn_after(first_request_seconds, shut_silent) if awaited else None
    try:
        pool.waitall()
        late.waitall()
    finally:
        if timer is not None:
            timer.cancel()


def _close_idle(connections: list[Connection]) -> list[Connection]:
    """Let each end with its next answer; idle ones with nothing to answer are closed.

    :returns: idle ones on which a request is still to come, or to be read.
    """
    awaited = []
    for connection in connections:
        before, connection[2] = connection[2], STATE_CLOSE
        if before != STATE_IDLE:
            continue
        if connection.is_released or not is_plain(connection[1]):
            greenio.shutdown_safe(connection[1])
        elif not connection.is_answered or has_bytes(connection[1]):
            awaited.append(connection)
        else:
            greenio.shutdown_safe(connection[1])
    return awaited
