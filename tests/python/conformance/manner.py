"""How clients talk to the server under test: the dimensions in which every row can run.

Owns what a manner does to bytes and sockets; no row knows in which one it runs, beyond the version
and the scheme that an answer has to name. Rules: RFC 9112 sections 2.5 (versions) and 9.3
(persistence); RFC 8446 section 6.1 (the end of a TLS stream).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from dataclasses import dataclass

#: Bytes that go out one by one in a slow writer's hands; more go in pieces of PIECE.
SMALL = 4096
PIECE = 1000


@dataclass(frozen=True)
class Manner:
    """One way to talk HTTP.

    :ivar version: of all requests that say ``HTTP/1.1`` otherwise.
    :ivar closes: every request asks for the end of its connection.
    :ivar take: most bytes of one recv(2), and about the receive buffer; ``None`` for no bound.
    :ivar is_slow_writer: bytes are sent one by one.
    """

    name: str
    promise: str
    is_tls: bool = False
    version: str = "HTTP/1.1"
    closes: bool = False
    take: int | None = None
    is_slow_writer: bool = False

    @property
    def scheme(self) -> str:
        return "https" if self.is_tls else "http"

    @property
    def persists(self) -> bool:
        """Whether a connection carries a second request."""
        return not self.closes and self.version != "HTTP/1.0"

    def spoken(self, data: bytes) -> bytes:
        """*data* as a client of this manner sends it."""
        if self.version != "HTTP/1.1":
            data = data.replace(b" HTTP/1.1\r\n", f" {self.version}\r\n".encode())
        if self.closes:
            data = data.replace(b" HTTP/1.1\r\n", b" HTTP/1.1\r\nConnection: close\r\n")
        return data

    def connect(self, port: int, timeout: float, receive_buffer: int | None) -> Channel:
        """Connect to *port* on loopback; encrypted, where that is the manner."""
        plain = socket.socket()
        if receive_buffer is None and self.take is not None:
            receive_buffer = 2048
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        if receive_buffer is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if self.is_slow_writer:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.settimeout(timeout)
        plain.connect(("127.0.0.1", port))
        return EncryptedChannel(plain, timeout) if self.is_tls else Channel(plain)

    def pieces(self, data: bytes) -> list[bytes]:
        """What goes out with one send each."""
        if not self.is_slow_writer:
            return [data]
        size = 1 if len(data) <= SMALL else PIECE
        return [data[at : at + size] for at in range(0, len(data), size)]


class Channel:
    """A socket, as far as a row needs one."""

    def __init__(self, plain: socket.socket) -> None:
        self._plain = plain

    def settimeout(self, seconds: float) -> None:
        self._plain.settimeout(seconds)

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        self._plain.setsockopt(level, option, value)

    def sendall(self, data: bytes) -> None:
        self._plain.sendall(data)

    def recv(self, most: int) -> bytes:
        return self._plain.recv(most)

    def finish_sending(self) -> None:
        """End the sending half in order."""
        self._plain.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._plain.close()


class EncryptedChannel(Channel):
    """The same over TLS, whose two halves end apart, as those of TCP do.

    ``ssl.SSLSocket`` has no such end: its ``shutdown()`` leaves TLS. An end of the stream without
    ``close_notify`` is a ConnectionError here: it may be an attacker's.
    """

    def __init__(self, plain: socket.socket, timeout: float) -> None:
        super().__init__(plain)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._plain.settimeout(max(0.001, deadline - time.monotonic()))
                self._feed()
        self._flush()

    def sendall(self, data: bytes) -> None:
        for at in range(0, len(data), 1 << 20):
            self._tls.write(data[at : at + (1 << 20)])
            self._flush()

    def recv(self, most: int) -> bytes:
        while True:
            try:
                return self._tls.read(most)
            except ssl.SSLWantReadError:
                self._flush()
                self._feed()
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as error:
                raise ConnectionAbortedError(str(error)) from error

    def finish_sending(self) -> None:
        with contextlib.suppress(ssl.SSLError):  # the server's own end is still to come
            self._tls.unwrap()
        self._flush()
        self._plain.shutdown(socket.SHUT_WR)

    def _flush(self) -> None:
        if data := self._outgoing.read():
            self._plain.sendall(data)

    def _feed(self) -> None:
        if data := self._plain.recv(65536):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


PLAIN = Manner("plain", "HTTP/1.1")

MANNERS = {
    manner.name: manner
    for manner in (
        PLAIN,
        Manner("tls", "the same over TLS", is_tls=True),
        Manner("http10", "every request says HTTP/1.0", version="HTTP/1.0"),
        Manner("slow-reader", "a receive buffer of 2 KiB, 256 bytes a read", take=256),
        Manner("slow-writer", "one byte a write", is_slow_writer=True),
        Manner("close", "every request says `Connection: close`", closes=True),
    )
}
