"""``eventlet.greenio``: sockets and pipes whose waits timeouts and ``kill()`` end.

Rules: eventlet.greenio.
"""

from osloxide.green.greenio import base, py3
from osloxide.green.greenio.base import (
    _GLOBAL_DEFAULT_TIMEOUT,
    CONNECT_ERR,
    CONNECT_SUCCESS,
    SOCKET_BLOCKING,
    SOCKET_CLOSED,
    SSL,
    GreenSocket,
    set_nonblocking,
    shutdown_safe,
    socket_accept,
    socket_checkerr,
    socket_connect,
    socket_timeout,
)
from osloxide.green.greenio.py3 import GreenFileIO, GreenPipe, _fileobject

__all__ = [
    "CONNECT_ERR",
    "CONNECT_SUCCESS",
    "SOCKET_BLOCKING",
    "SOCKET_CLOSED",
    "SSL",
    "_GLOBAL_DEFAULT_TIMEOUT",
    "GreenFileIO",
    "GreenPipe",
    "GreenSocket",
    "_fileobject",
    "base",
    "py3",
    "set_nonblocking",
    "shutdown_safe",
    "socket_accept",
    "socket_checkerr",
    "socket_connect",
    "socket_timeout",
]
