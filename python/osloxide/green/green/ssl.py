"""``eventlet.green.ssl``: the standard module with sockets that wait at the hub.

Owns a TLS socket whose waits timeouts end: an ``ssl.SSLSocket`` over a nonblocking descriptor.
Rules: eventlet.green.ssl; ssl (notes on non-blocking sockets).
"""

from __future__ import annotations

import ssl as _std
from collections.abc import Callable
from typing import Any

from osloxide._typing import override
from osloxide.green import hubs as _hubs
from osloxide.green.greenio import base as _base
from osloxide.green.hubs import IOClosed
from osloxide.green.patcher import slurp_properties as _slurp

_slurp(_std, globals(), srckeys=dir(_std))

__patched__ = [
    "SSLSocket",
    "SSLContext",
    "wrap_socket",
    "create_default_context",
    "_create_default_https_context",
]


class GreenSSLSocket(_std.SSLSocket, _base.GreenSocket):
    """A TLS socket. :func:`wrap_socket` and :class:`GreenSSLContext` make them."""

    _wraps_accepted = True
    do_handshake_on_connect: bool
    suppress_ragged_eofs: bool

    def __new__(cls, sock: Any = None, *args: Any, **kw: Any) -> Any:
        if sock is None or isinstance(sock, int):
            return _std.SSLSocket.__new__(cls)
        kw.pop("_context", None)
        return wrap_socket(sock, *args, **kw)

    def __init__(self, *_args: Any, **_kw: Any) -> None:
        """Done by the context."""

    def _call_trampolining(self, func: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        if self.act_non_blocking:
            return func(*args, **kw)
        while True:
            try:
                return func(*args, **kw)
            except _std.SSLWantReadError:
                reads = True
            except _std.SSLWantWriteError:
                reads = False
            _hubs.trampoline(
                self,
                read=reads,
                write=not reads,
                timeout=self.gettimeout(),
                timeout_exc=TimeoutError("timed out"),
            )

    @override
    def write(self, data: Any) -> int:
        """Encrypt and send."""
        return self._call_trampolining(super().write, data)  # type: ignore[no-any-return]

    @override
    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """Receive and decrypt."""
        try:
            return self._call_trampolining(super().read, len, buffer)
        except IOClosed:
            return b"" if buffer is None else 0

    @override
    def send(self, data: Any, flags: int = 0) -> int:
        """As ``socket.send``."""
        if self._sslobj is None:
            return _base.GreenSocket.send(self, data, flags)
        return self._call_trampolining(super().send, data, flags)  # type: ignore[no-any-return]

    @override
    def sendall(self, data: Any, flags: int = 0) -> Any:
        """As ``socket.sendall``."""
        if self._sslobj is None:
            return _base.GreenSocket.sendall(self, data, flags) if data else None
        return super().sendall(data, flags)

    @override
    def accept(self) -> tuple[Any, Any]:
        """As ``SSLSocket.accept``; the connection shakes hands when it is first used."""
        sock, address = _base.GreenSocket.accept(self)
        return (
            self.context.wrap_socket(
                sock,
                server_side=True,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=self.suppress_ragged_eofs,
            ),
            address,
        )

    @override
    def do_handshake(self, block: bool = False) -> None:
        """Shake hands."""
        del block
        self._call_trampolining(super().do_handshake)

    @override
    def unwrap(self) -> Any:
        """End the encryption; the plain socket."""
        return self._call_trampolining(super().unwrap)

    def _real_connect(self, addr: Any, connect_ex: bool) -> Any:
        if self.server_side:
            raise ValueError("can't connect in server-side mode")
        if self._connected or self._sslobj is not None:  # type: ignore[has-type]
            raise ValueError("attempt to connect already-connected SSLSocket!")
        self._sslobj = self.context._wrap_socket(  # type: ignore[attr-defined]
            self,
            False,
            self.server_hostname,
            owner=self,
            session=self._session,
        )
        try:
            if connect_ex:
                result = _base.GreenSocket.connect_ex(self, addr)
            else:
                result = 0
                _base.GreenSocket.connect(self, addr)
            if not result:
                self._connected = True
                if self.do_handshake_on_connect:
                    self.do_handshake()
        except (OSError, ValueError):
            self._sslobj = None
            raise
        return result


SSLSocket = GreenSSLSocket


class GreenSSLContext(_std.SSLContext):
    """A context whose sockets are green."""

    sslsocket_class = GreenSSLSocket

    @override
    def wrap_socket(self, sock: Any, *args: Any, **kw: Any) -> Any:
        """As ``SSLContext.wrap_socket``."""
        act_non_blocking = getattr(sock, "act_non_blocking", False)
        result = super().wrap_socket(sock, *args, **kw)
        if act_non_blocking:
            result.setblocking(False)
        return result


SSLContext = GreenSSLContext


def create_default_context(
    purpose: Any = _std.Purpose.SERVER_AUTH,
    *,
    cafile: Any = None,
    capath: Any = None,
    cadata: Any = None,
) -> GreenSSLContext:
    """As ``ssl.create_default_context``."""
    server = purpose == _std.Purpose.SERVER_AUTH
    context = GreenSSLContext(_std.PROTOCOL_TLS_CLIENT if server else _std.PROTOCOL_TLS_SERVER)
    if server:
        context.verify_mode = _std.CERT_REQUIRED
        context.check_hostname = True
    if cafile or capath or cadata:
        context.load_verify_locations(cafile, capath, cadata)
    elif context.verify_mode != _std.CERT_NONE:
        context.load_default_certs(purpose)
    return context


_create_default_https_context = create_default_context


def wrap_socket(
    sock: Any,
    keyfile: Any = None,
    certfile: Any = None,
    server_side: bool = False,
    cert_reqs: Any = _std.CERT_NONE,
    ssl_version: Any = None,
    ca_certs: Any = None,
    do_handshake_on_connect: bool = True,
    suppress_ragged_eofs: bool = True,
    ciphers: Any = None,
    server_hostname: Any = None,
    **_unused: Any,
) -> Any:
    """Encrypt *sock*, as ``ssl.wrap_socket`` of older Pythons."""
    if ssl_version is None or ssl_version == _std.PROTOCOL_TLS:
        ssl_version = _std.PROTOCOL_TLS_SERVER if server_side else _std.PROTOCOL_TLS_CLIENT
    context = GreenSSLContext(ssl_version)
    context.check_hostname = False
    context.verify_mode = cert_reqs
    if certfile or keyfile:
        context.load_cert_chain(certfile=certfile, keyfile=keyfile)
    if ca_certs:
        context.load_verify_locations(ca_certs)
    if ciphers:
        context.set_ciphers(ciphers)
    if not isinstance(sock, _base.GreenSocket):
        timeout = sock.gettimeout()
        sock = _base.GreenSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        sock.settimeout(timeout)
    return context.wrap_socket(
        sock,
        server_side=server_side,
        do_handshake_on_connect=do_handshake_on_connect,
        suppress_ragged_eofs=suppress_ragged_eofs,
        server_hostname=server_hostname,
    )


def get_server_certificate(
    addr: Any,
    ssl_version: Any = _std.PROTOCOL_TLS_CLIENT,
    ca_certs: Any = None,
    timeout: Any = None,
) -> str:
    """As ``ssl.get_server_certificate``."""
    kwargs = {} if timeout is None else {"timeout": timeout}
    return _std.get_server_certificate(addr, ssl_version, ca_certs, **kwargs)
