"""One answer of ``eventlet.wsgi``: its head, its framing, and what of it was sent.

Owns ``start_response()`` and ``write()`` of a request, and the header fields that the server adds.
Calls no application: the protocol does. Rules: PEP 3333; RFC 9112, sections 6 and 9.3.
"""

from __future__ import annotations

import email.utils
import time
from typing import Any

from osloxide.green._core.arrivals import Connection
from osloxide.green._core.body import capitalized


def format_date_time(timestamp: float) -> str:
    """A moment as HTTP writes it."""
    return email.utils.formatdate(timestamp, usegmt=True)


def encode_header_line(header: tuple[str, Any]) -> bytes:
    """A field of the header as it is sent.

    :raises UnicodeEncodeError: it is not latin-1.
    """
    encoded = []
    for what, text in zip(("names", "values"), header, strict=True):
        try:
            encoded.append(str(text).encode("latin-1"))
        except UnicodeEncodeError as error:
            reason = f"WSGI response header {what} must be latin-1 (PEP 3333)."
            if what == "values":
                reason += " Use RFC 8187 encoding or percent-encoding for non-latin-1 text."
            raise UnicodeEncodeError(
                error.encoding, error.object, error.start, error.end, reason
            ) from None
    return b": ".join(encoded) + b"\r\n"


class Answer:
    """One answer: what was set, what was sent, and how the body is framed."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.status = ""
        self.headers: list[tuple[str, Any]] | None = None
        self.sent: list[int] = []
        self.code = 200
        self.chunked = False
        self.bodyless = False
        self.length = 0

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        """PEP 3333."""
        self.code = int(status.split(" ", 1)[0])
        if exc_info:
            try:
                if self.sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        command = self.protocol.command
        self.bodyless = (
            self.code in (204, 304)
            or command == "HEAD"
            or 100 <= self.code < 200
            or (command == "CONNECT" and 200 <= self.code < 300)
        )
        pairs = list(headers.items()) if isinstance(headers, dict) else list(headers)
        if self.protocol.capitalize_response_headers:
            pairs = [(capitalized(name), value) for name, value in pairs]
        self.status, self.headers = status, pairs
        return self.write

    def write(self, data: bytes) -> None:
        """Send *data*, after the header if that was not sent yet."""
        if self.headers is None:
            raise AssertionError("write() before start_response()")
        parts: list[bytes] = []
        if not self.sent:
            self.sent.append(1)
            parts += self._head(self.headers)
        if self.chunked:
            parts += [b"%x\r\n" % len(data), data, b"\r\n"]
        else:
            parts.append(data)
        block = b"".join(parts)
        self.protocol.wfile.write(block)
        self.protocol.wfile.flush()
        self.length += len(block)

    def _head(self, headers: list[tuple[str, Any]]) -> list[bytes]:
        protocol = self.protocol
        names = {name.lower() for name, _ in headers}
        parts = [f"{protocol.protocol_version} {self.status}\r\n".encode("latin-1")]
        parts += map(encode_header_line, headers)
        if "date" not in names:
            parts.append(f"Date: {format_date_time(time.time())}\r\n".encode())
        wanted = protocol.headers.get("Connection", "").lower()
        if isinstance(protocol.conn_state, Connection):
            protocol.conn_state.is_answered = True
        keeps = (
            not protocol.close_connection
            and not protocol.server.is_ending
            and bool(protocol.server.keepalive)
            and (
                wanted == "keep-alive"
                or (protocol.request_version == "HTTP/1.1" and wanted != "close")
            )
        )
        protocol.close_connection = not keeps
        if "content-length" not in names and not self.bodyless:
            if protocol.request_version == "HTTP/1.1":
                self.chunked = True
                parts.append(b"Transfer-Encoding: chunked\r\n")
            else:
                protocol.close_connection = True  # the body ends with the connection
        if protocol.close_connection:
            parts.append(b"Connection: close\r\n")
        elif wanted == "keep-alive":
            parts.append(b"Connection: keep-alive\r\n")
            keepalive = protocol.server.keepalive
            if not isinstance(keepalive, bool) and int(keepalive):
                parts.append(b"Keep-Alive: timeout=%d\r\n" % int(keepalive))
        parts.append(b"\r\n")
        return parts

    def complete(self, result: Any) -> None:
        """The application has returned *result*: know the length where it can be known."""
        headers = self.headers
        if headers is None or self.sent or not hasattr(result, "__len__"):
            return
        if not self.bodyless and "content-length" not in {name.lower() for name, _ in headers}:
            headers.append(("Content-Length", str(sum(map(len, result)))))
