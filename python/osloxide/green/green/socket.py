"""``eventlet.green.socket``: the standard module with sockets that wait at the hub."""

from __future__ import annotations

import socket as _std
from typing import Any

from osloxide.green.greenio import base as _base
from osloxide.green.patcher import slurp_properties as _slurp

_slurp(_std, globals(), srckeys=dir(_std))

__all__ = _std.__all__
__patched__ = ["fromfd", "socketpair", "ssl", "socket", "timeout", "create_connection"]

socket = _base.GreenSocket
SocketType = _base.GreenSocket
timeout = _base.socket_timeout
error = OSError
_GLOBAL_DEFAULT_TIMEOUT = _base._GLOBAL_DEFAULT_TIMEOUT


def fromfd(*args: Any) -> _base.GreenSocket:
    """A socket over a copy of a descriptor."""
    return socket(_std.fromfd(*args))


def socketpair(*args: Any) -> tuple[_base.GreenSocket, _base.GreenSocket]:
    """Two connected sockets."""
    one, two = _std.socketpair(*args)
    return socket(one), socket(two)


def create_connection(
    address: Any,
    timeout: Any = _GLOBAL_DEFAULT_TIMEOUT,
    source_address: Any = None,
) -> _base.GreenSocket:
    """Connect to the first address of a host that answers."""
    host, port = address
    failure: OSError = OSError("getaddrinfo returns an empty list")
    for family, kind, proto, _, where in _std.getaddrinfo(host, port, 0, _std.SOCK_STREAM):
        sock = None
        try:
            sock = socket(family, kind, proto)
            if timeout is not _GLOBAL_DEFAULT_TIMEOUT:
                sock.settimeout(timeout)
            if source_address:
                sock.bind(source_address)
            sock.connect(where)
        except OSError as caught:
            failure = caught
            if sock is not None:
                sock.close()
        else:
            return sock
    raise failure
