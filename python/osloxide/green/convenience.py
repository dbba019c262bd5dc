"""``eventlet.convenience``: sockets and a small server. Rules: eventlet.convenience."""

from __future__ import annotations

import socket as _socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

from osloxide.green import greenpool, greenthread, support
from osloxide.green._core.greenlets import greenlet
from osloxide.green._core.interruption import GreenletExit
from osloxide.green.green import socket

__all__ = ["StopServe", "connect", "listen", "serve", "wrap_ssl"]


def connect(addr: Any, family: int = _socket.AF_INET, bind: Any = None) -> Any:
    """Connect to *addr*, from the address *bind* if given."""
    sock = socket.socket(family, _socket.SOCK_STREAM)
    try:
        if bind is not None:
            sock.bind(bind)
        sock.connect(addr)
    except BaseException:
        sock.close()
        raise
    return sock


class ReuseRandomPortWarning(Warning):
    """A port of the kernel's choice was asked for together with SO_REUSEPORT."""


class ReusePortUnavailableWarning(Warning):
    """The kernel has no SO_REUSEPORT."""


def listen(
    addr: Any,
    family: int = _socket.AF_INET,
    backlog: int = 50,
    reuse_addr: bool = True,
    reuse_port: bool | None = None,
) -> Any:
    """Listen on *addr*.

    :param backlog: connections that may wait to be accepted.
    :param reuse_port: SO_REUSEPORT; unless said otherwise, for every port but 0.
    """
    sock = socket.socket(family, _socket.SOCK_STREAM)
    try:
        if reuse_addr:
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        if family in (_socket.AF_INET, _socket.AF_INET6) and addr[1] == 0:
            if reuse_port:
                warnings.warn(
                    "listen on random port (0) with SO_REUSEPORT is dangerous. Double check your "
                    "intent. Example problem: https://github.com/eventlet/eventlet/issues/411",
                    ReuseRandomPortWarning,
                    stacklevel=3,
                )
        elif reuse_port is None:
            reuse_port = True
        if reuse_port and hasattr(socket, "SO_REUSEPORT"):
            try:
                sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
            except OSError as error:
                if support.get_errno(error) in (22, 92, 95):
                    warnings.warn(
                        "socket.SO_REUSEPORT is defined but not supported.",
                        ReusePortUnavailableWarning,
                        stacklevel=3,
                    )
        sock.bind(addr)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


class StopServe(Exception):
    """Raised by a handler of :func:`serve`: the server ends."""


def _stop_checker(t: Any, server_gt: greenlet, conn: Any) -> None:
    try:
        try:
            t.wait()
        finally:
            conn.close()
    except GreenletExit:
        pass
    except Exception:  # noqa: BLE001 - the server's to raise
        greenthread.kill(server_gt, *sys.exc_info())


def serve(sock: Any, handle: Callable[[Any, Any], Any], concurrency: int = 1000) -> None:
    """Call *handle* with each connection and its address, in greenthreads.

    Returns when a handler raises :class:`StopServe`; what else one raises ends it too.

    :param concurrency: most handlers at once; further connections are not accepted.
    """
    pool = greenpool.GreenPool(concurrency)
    server_gt = greenthread.getcurrent()
    while True:
        try:
            conn, addr = sock.accept()
            gt: Any = pool.spawn(handle, conn, addr)
            gt.link(_stop_checker, server_gt, conn)
            conn = addr = gt = None
        except StopServe:
            return


def wrap_ssl(sock: Any, *a: Any, **kw: Any) -> Any:
    """Encrypt a socket; arguments as for ``ssl.wrap_socket`` of older Pythons."""
    return wrap_ssl_impl(sock, *a, **kw)


def wrap_ssl_impl(sock: Any, *a: Any, **kw: Any) -> Any:
    """What :func:`wrap_ssl` calls."""
    from osloxide.green.green import ssl

    return ssl.wrap_socket(sock, *a, **kw)
