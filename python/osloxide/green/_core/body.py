"""The body of a request of ``eventlet.wsgi``: ``wsgi.input``.

Owns the reading of bodies with a length and of chunked ones, and the ``100 Continue`` that is sent
before the first read. Never reads beyond the body. Rules: PEP 3333; RFC 9112, section 7.1; what
eventlet.wsgi.Input offers beyond a stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


class ChunkReadError(ValueError):
    """The size of a chunk is no number."""


class Input:
    """A request's body as a stream.

    :param content_length: bytes; ignored when *chunked_input*.
    :param sock: the connection, for :meth:`get_socket`.
    :param wfile: where a ``100 Continue`` goes; None when the client does not wait for one.
    :param wfile_line: its first line.
    :ivar position: bytes that were read, of the present chunk when chunked.
    """

    def __init__(
        self,
        rfile: Any,
        content_length: int | str | None,
        sock: Any,
        wfile: Any = None,
        wfile_line: bytes | None = None,
        chunked_input: bool = False,
    ) -> None:
        self.rfile = rfile
        self._sock = sock
        self.content_length = None if content_length is None else int(content_length)
        self.wfile = wfile
        self.wfile_line = wfile_line
        self.position = 0
        self.chunked_input = chunked_input
        self.chunk_length = -1
        self.hundred_continue_headers: list[tuple[str, str]] | None = None
        self.is_hundred_continue_response_sent = False
        self.headers_sent: list[Any] | None = None
        """True as soon as the answer has begun: it is too late to say ``100 Continue``."""

    # ---- 100 Continue ---------------------------------------------------------------------------

    @property
    def should_send_hundred_continue(self) -> bool:
        """Whether the client still waits for it."""
        return self.wfile is not None and not self.is_hundred_continue_response_sent

    def set_hundred_continue_response_headers(
        self, headers: Iterable[tuple[str, str]], capitalize_response_headers: bool = True
    ) -> None:
        """Headers of the next ``100 Continue``."""
        if capitalize_response_headers:
            headers = [(capitalized(name), value) for name, value in headers]
        self.hundred_continue_headers = list(headers)

    def send_hundred_continue_response(self) -> None:
        """Send it, unless the answer has begun; more of the body may follow."""
        if self.headers_sent:
            return
        lines = [self.wfile_line or b"HTTP/1.1 100 Continue\r\n"]
        lines += [
            f"{name}: {value}\r\n".encode("latin-1")
            for name, value in self.hundred_continue_headers or ()
        ]
        self.wfile.write(b"".join([*lines, b"\r\n"]))
        self.wfile.flush()
        self.chunk_length = -1

    def _invite(self) -> None:
        if self.should_send_hundred_continue:
            self.send_hundred_continue_response()
            self.is_hundred_continue_response_sent = True

    # ---- reading --------------------------------------------------------------------------------

    def _read_plain(self, reader: Any, length: int | None) -> Any:
        self._invite()
        left = (self.content_length or 0) - self.position
        if length is None or length < 0 or length > left:
            length = left
        if not length:
            return [] if reader == self.rfile.readlines else b""
        data = reader(length)
        size = sum(map(len, data)) if isinstance(data, list) else len(data)
        self.position += size
        return data

    def _read_chunked(self, length: int | None = None, *, line: bool = False) -> bytes:
        self._invite()
        if length == 0:
            return b""
        if length is not None and length < 0:
            length = None
        parts: list[bytes] = []
        while self.chunk_length != 0:
            if self.chunk_length - self.position <= 0:
                self._begin_chunk()
                continue
            size = self.chunk_length - self.position
            if length is not None:
                size = min(size, length)
            data = self.rfile.readline(size) if line else self.rfile.read(size)
            if not data:
                self.chunk_length = 0
                raise OSError("unexpected end of file while parsing chunked data")
            parts.append(data)
            self.position += len(data)
            if self.chunk_length == self.position:
                self.rfile.readline()  # the end of the chunk
            if length is not None:
                length -= len(data)
                if length == 0:
                    break
            if line and data.endswith(b"\n"):
                break
        return b"".join(parts)

    def _begin_chunk(self) -> None:
        size = self.rfile.readline().split(b";", 1)[0]
        try:
            self.chunk_length = int(size, 16)
        except ValueError as error:
            raise ChunkReadError(error) from error
        self.position = 0
        if self.chunk_length == 0:
            while self.rfile.readline() not in (b"\r\n", b"\n", b""):
                pass  # trailers

    def read(self, length: int | None = None) -> bytes:
        """Read *length* bytes, or all."""
        if self.chunked_input:
            return self._read_chunked(length)
        return self._read_plain(self.rfile.read, length)  # type: ignore[no-any-return]

    def readline(self, size: int | None = None) -> bytes:
        """Read a line, at most *size* bytes of it."""
        if self.chunked_input:
            return self._read_chunked(size, line=True)
        return self._read_plain(self.rfile.readline, size)  # type: ignore[no-any-return]

    def readlines(self, hint: int | None = None) -> list[bytes]:
        """Read lines, about *hint* bytes of them."""
        if not self.chunked_input:
            return list(self._read_plain(self.rfile.readlines, hint))
        lines = []
        for line in iter(self.readline, b""):
            lines.append(line)
            if hint and hint > 0:
                hint -= len(line)
                if hint <= 0:
                    break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.read, b"")

    def get_socket(self) -> Any:
        """The connection itself."""
        return self._sock

    def discard(self, buffer_size: int = 16 << 10) -> None:
        """Read what is left and forget it."""
        while self.read(buffer_size):
            pass


def capitalized(name: str) -> str:
    """*name* as ``Foo-Bar``; letters beyond ASCII stay as they are."""
    return "-".join(
        part.encode("latin-1").capitalize().decode("latin-1") for part in name.split("-")
    )
