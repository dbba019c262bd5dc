"""``eventlet.green.OpenSSL.SSL``: pyOpenSSL with connections that wait at the hub.

Owns the connection. Its socket does not block, as each green one, so what OpenSSL cannot do at once
is tried again when the descriptor is ready; that ends with the socket's timeout. Everything else is
the module that is installed. Rules: eventlet.green.OpenSSL; SSL_get_error(3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import OpenSSL.SSL as _std

from osloxide._typing import override
from osloxide.green.greenio import base as _base
from osloxide.green.patcher import slurp_properties as _slurp

_slurp(_std, globals(), srckeys=dir(_std))

__patched__ = ["Connection"]


class GreenConnection(_base.GreenSocket):
    """A TLS connection.

    :param ctx: an ``OpenSSL.SSL.Context``, or a connection that is there already.
    :param sock: what it runs over.
    """

    def __init__(self, ctx: Any, sock: Any = None) -> None:
        super().__init__(ctx if sock is None else _std.Connection(ctx, sock))

    def _until_done(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of *function* once OpenSSL has what it waits for.

        :raises TimeoutError: that took longer than the socket's timeout.
        """
        while True:
            try:
                return function(*arguments)
            except (_std.WantReadError, _std.WantWriteError) as wanted:
                if self.act_non_blocking:
                    raise
                reads = isinstance(wanted, _std.WantReadError)
                self._wait(read=reads, timeout=self.gettimeout())

    @override
    def connect(self, address: Any) -> None:
        """Connect; the handshake is made as a client."""
        self.fd.set_connect_state()
        super().connect(address)

    @override
    def accept(self) -> tuple[GreenConnection, Any]:
        """Take a connection; its handshake is made as a server."""
        while True:
            try:
                connection, address = self.fd.accept()
            except BlockingIOError:
                if self.act_non_blocking:
                    raise
                self._wait(read=True, timeout=self.gettimeout())
            else:
                return type(self)(connection), address

    def do_handshake(self) -> None:
        """Make the handshake."""
        self._until_done(self.fd.do_handshake)

    def read(self, size: int) -> bytes:
        """Read at most *size* bytes; none when the peer has closed without a word."""
        return self._received(b"", self.fd.read, size)  # type: ignore[no-any-return]

    def _received(self, nothing: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of *function*, or *nothing* when the peer has closed without a word."""
        try:
            return self._until_done(function, *arguments)
        except _std.SysCallError as error:
            if error.args[:1] == (-1,):
                return nothing
            raise

    @override
    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Read at most *bufsize* bytes; ``MSG_PEEK`` leaves them there."""
        return self._received(  # type: ignore[no-any-return]
            b"", self.fd.recv, bufsize, flags or None
        )

    @override
    def recv_into(self, buffer: Any, nbytes: int | None = 0, flags: int = 0) -> int:
        """Read into *buffer*, at most *nbytes* bytes, or as many as it holds where that is 0."""
        return self._received(  # type: ignore[no-any-return]
            0, self.fd.recv_into, buffer, nbytes or None, flags or None
        )

    def _no_datagrams(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refused: bytes that go past OpenSSL would break its session.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("Datagrams and ancillary data not supported on SSL sockets")

    recvfrom = recvfrom_into = recvmsg = recvmsg_into = sendto = sendmsg = _no_datagrams

    def write(self, data: Any) -> int:
        """Write as much of *data* as goes at once; the number of bytes."""
        return self._until_done(self.fd.write, data) if data else 0

    @override
    def send(self, data: Any, flags: int = 0) -> int:
        """Write as much of *data* as goes at once; the number of bytes."""
        return self.write(data)

    @override
    def sendall(self, data: Any, flags: int = 0) -> None:
        """Write all of *data*."""
        left = memoryview(data).cast("B")
        while left:
            left = left[self.write(bytes(left[:65536])) :]

    @override
    def shutdown(self, *_how: Any) -> Any:
        """Tell the peer that nothing more comes."""
        return self._until_done(self.fd.shutdown)

    @override
    def makefile(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refused, as by eventlet.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("Makefile not supported on SSL sockets")

    @override
    def dup(self) -> Any:
        """Refused, as by eventlet.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("Dup not supported on SSL sockets")


Connection = ConnectionType = GreenConnection
