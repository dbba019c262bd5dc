"""What clients have sent to a server that ends, and the kernel still holds.

Owns the look at the kernel's buffers and at the queue of a listening socket. Decides nothing about
the end of a connection: ``wsgi`` does. Rules: recv(2) for MSG_PEEK; listen(2) for the queue.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

from osloxide.green.greenio import GreenSocket
from osloxide.green.hubs import notify_opened

QUEUE_SECONDS = 0.1
"""How long a server that ends accepts what the kernel has queued: clients may come for ever."""


class Connection(list[Any]):
    """``[address, socket, state]``."""

    #: A greenthread has it.
    is_begun = False
    #: A request was answered on it.
    is_answered = False
    #: Its application has said that it may be closed in the midst of a request.
    is_released = False


def is_plain(sock: Any) -> bool:
    """Whether bytes that wait on it are a request: those of TLS need not be."""
    return isinstance(sock, GreenSocket) and not hasattr(sock, "do_handshake")


def has_bytes(sock: Any) -> bool:
    """Whether the client has sent what was not read yet."""
    with contextlib.suppress(OSError):
        # Not through the hub: nothing is waited for.
        return bool(socket.socket.recv(sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    return False


def queued(sock: Any, state: str) -> list[Connection]:
    """Accept what the kernel has queued for *sock*: clients that believe they are connected.

    :param state: of the connections. Those of a listener with TLS are left in the queue.
    """
    taken: list[Connection] = []
    if not is_plain(sock):
        return taken
    end = time.monotonic() + QUEUE_SECONDS
    with contextlib.suppress(OSError):
        while time.monotonic() < end:
            # Not through the hub: the socket's next server may wait for it there already.
            number, address = sock._accept()
            notify_opened(number)
            green = GreenSocket(sock.family, sock.type, sock.proto, fileno=number)
            taken.append(Connection((address, green, state)))
    return taken
