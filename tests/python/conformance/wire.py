"""A strict HTTP/1.1 client on raw sockets: sends any bytes, accepts only well-formed answers.

It never repairs what it reads: an answer that a careful client would mistrust raises Malformed.
Framing rules: RFC 9112 section 6; syntax: RFC 9112 sections 2 to 5.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Self

from conformance.manner import PLAIN, Manner

STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([^\x00-\x08\x0a-\x1f\x7f]*))?")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")


class Malformed(Exception):
    """The server sent bytes that are not a well-formed answer."""


class Closed(Exception):
    """The connection ended before an answer was complete."""


class Cut(Closed):
    """It did not end in order: it was reset, or TLS ended without ``close_notify``."""


@dataclass
class Answer:
    """One final or interim response."""

    status: int
    minor: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    interim: list[int] = field(default_factory=list)
    delimited: bool = True

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def first(self, name: str) -> str | None:
        values = self.all(name)
        return values[0] if values else None

    @property
    def will_close(self) -> bool:
        """Whether the answer announces that the connection ends after it."""
        options = ",".join(self.all("Connection")).lower()
        return (
            "close" in options
            or not self.delimited
            or (self.minor == 0 and "keep-alive" not in options)
        )


class Connection:
    """One client connection. Every wait has a deadline."""

    def __init__(
        self,
        port: int,
        timeout: float = 5.0,
        receive_buffer: int | None = None,
        manner: Manner = PLAIN,
    ) -> None:
        self.manner = manner
        self.sock = manner.connect(port, timeout, receive_buffer)
        self.timeout = timeout
        self.unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.settimeout(self.timeout)
        for piece in self.manner.pieces(self.manner.spoken(data)):
            self.sock.sendall(piece)

    def finish_sending(self) -> None:
        self.sock.finish_sending()

    def reset(self) -> None:
        """Close so that the server gets a RST instead of a FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _more(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer before the deadline")
        self.sock.settimeout(left)
        try:
            data = self.sock.recv(self.manner.take or 65536)
        except ConnectionError as exc:
            raise Cut(f"{type(exc).__name__} with {len(self.unread)} bytes unread") from exc
        if not data:
            raise Closed(f"end of file with {len(self.unread)} bytes unread")
        self.unread += data

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self.unread:
            if len(self.unread) > 65536:
                raise Malformed("a line longer than 64 KiB")
            self._more(deadline)
        line, _, self.unread = self.unread.partition(b"\n")
        if not line.endswith(b"\r"):
            raise Malformed(f"a line without CR: {line[:80]!r}")
        return line[:-1]

    def _exactly(self, count: int, deadline: float) -> bytes:
        while len(self.unread) < count:
            self._more(deadline)
        data, self.unread = self.unread[:count], self.unread[count:]
        return data

    def _headers(self, deadline: float) -> list[tuple[str, str]]:
        headers = []
        while line := self._line(deadline):
            match = FIELD.fullmatch(line)
            if match is None:
                raise Malformed(f"header line {line[:80]!r}")
            headers.append((match[1].decode("ascii"), match[2].decode("latin-1")))
        return headers

    def head(self, timeout: float | None = None) -> Answer:
        """Read one status line and its headers."""
        deadline = time.monotonic() + (timeout or self.timeout)
        line = self._line(deadline)
        match = STATUS_LINE.fullmatch(line)
        if match is None:
            raise Malformed(f"status line {line[:80]!r}")
        return Answer(int(match[2]), int(match[1]), self._headers(deadline))

    def answer(self, method: str = "GET", timeout: float | None = None) -> Answer:
        """Read one final answer to a request of *method*, interim ones noted."""
        deadline = time.monotonic() + (timeout or self.timeout)
        interim: list[int] = []
        while True:
            answer = self.head(deadline - time.monotonic())
            if answer.status >= 200:
                break
            interim.append(answer.status)
        answer.interim = interim
        lengths = answer.all("Content-Length")
        codings = answer.all("Transfer-Encoding")
        if len(set(lengths)) > 1 or (lengths and not re.fullmatch(r"[0-9]+", lengths[0])):
            raise Malformed(f"Content-Length {lengths}")
        if lengths and codings:
            raise Malformed("both Content-Length and Transfer-Encoding")
        if method == "HEAD" or answer.status in (204, 304):
            return answer
        if codings:
            if [c.lower() for c in codings] != ["chunked"] or answer.minor == 0:
                raise Malformed(f"Transfer-Encoding {codings} in HTTP/1.{answer.minor}")
            answer.body = self._chunks(deadline)
        elif lengths:
            answer.body = self._exactly(int(lengths[0]), deadline)
        else:
            answer.delimited = False
            # Here the end says that the body is whole, so it has to be one in order.
            answer.body = self.rest(deadline - time.monotonic(), is_framing=True)
        return answer

    def _chunks(self, deadline: float) -> bytes:
        body = b""
        while True:
            line = self._line(deadline)
            match = CHUNK_SIZE.fullmatch(line)
            if match is None:
                raise Malformed(f"chunk size {line[:80]!r}")
            size = int(match[1], 16)
            if size == 0:
                self._headers(deadline)
                return body
            body += self._exactly(size, deadline)
            if self._exactly(2, deadline) != b"\r\n":
                raise Malformed("a chunk that does not end in CRLF")

    def rest(self, timeout: float | None = None, *, is_framing: bool = False) -> bytes:
        """Everything until the server closes; TimeoutError when it does not in time.

        :param is_framing: a connection that is cut is Cut, and not an end.
        """
        deadline = time.monotonic() + (timeout or self.timeout)
        while True:
            try:
                self._more(deadline)
            except Closed as end:
                if is_framing and isinstance(end, Cut):
                    raise
                data, self.unread = self.unread, b""
                return data

    def is_closed(self, timeout: float = 2.0) -> bool:
        """Whether the server closes (or resets) within *timeout* without sending anything else."""
        try:
            return self.rest(timeout) == b""
        except TimeoutError:
            return False

    def is_open(self, watch: float = 0.0) -> bool:
        """Whether the server has neither closed nor sent anything, after *watch* seconds."""
        self.sock.settimeout(watch or 0.001)
        try:
            self.unread += self.sock.recv(self.manner.take or 65536)
        except (TimeoutError, BlockingIOError):
            return not self.unread
        except ConnectionError:
            return False
        return False


def request(
    path: str,
    *headers: str,
    method: str = "GET",
    body: bytes = b"",
    version: str = "HTTP/1.1",
    host: str | None = "localhost",
) -> bytes:
    """A request as bytes. *headers* are whole lines and go out as they are (latin-1)."""
    lines = [f"{method} {path} {version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    lines.extend(headers)
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
