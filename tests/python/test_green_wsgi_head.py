"""The header of a request of eventlet.wsgi comes to the same as with the parser of http.server."""

from __future__ import annotations

import http.client
import io
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from osloxide.green._core import head
from osloxide.green.wsgi import HttpProtocol

REQUEST_LINES = [
    b"GET / HTTP/1.1\r\n",
    b"GET / HTTP/1.0\n",
    b"POST /v3/volumes?limit=1&name=%C3%A4 HTTP/1.1\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"GET http://127.0.0.1/ HTTP/1.1\r\n",
    b"GET //two/slashes HTTP/1.1\r\n",
    b"GET /\xe4 HTTP/1.1\r\n",
    b"GET /a b HTTP/1.1\r\n",
    b"GET  /  HTTP/1.1\r\n",
    b"GET /\r\n",
    b"POST /\r\n",
    b"GET / HTTP/1.10\r\n",
    b"GET / HTTP/2.0\r\n",
    b"GET / HTTP/x\r\n",
    b"GET / SPDY/1.1\r\n",
    b"\r\n",
    b"GET\r\n",
]
HEADERS = [
    b"\r\n",
    b"",
    b"Host: a\r\n\r\n",
    b"Host: a\n\n",
    b"Host:a\r\nX-Empty:\r\nX-Blank: \t \r\nX-Twice: 1\r\nx-twice: 2  \r\n\r\n",
    b"Host: a\r\nX-Value: \xc3\xa4 \x0b b\r\n\r\n",
    b"X-Folded: one\r\n  two\r\nHost: a\r\n\r\n",
    b" X-Leading: one\r\nHost: a\r\n\r\n",
    b"No colon\r\nHost: a\r\n\r\n",
    b"Space : a\r\nHost: a\r\n\r\n",
    b": no name\r\nHost: a\r\n\r\n",
    b"From me\r\nHost: a\r\n\r\n",
    b"X-Bare: one\rX-Other: two\r\nHost: a\r\n\r\n",
    b"Host: a",
    b"Host: a\r\n",
    b"Connection: close\r\n\r\n",
    b"Connection: Keep-Alive\r\n\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"Expect: 100-Continue\r\n\r\n",
    b"Content-Type: multipart/form-data; boundary=x\r\n\r\n",
    b"".join(b"X-%d: 1\r\n" % number for number in range(99)) + b"\r\n",
    b"".join(b"X-%d: 1\r\n" % number for number in range(100)) + b"\r\n",
]


class Parsing(HttpProtocol):
    """A protocol without a connection, which notes what it answers."""

    def __init__(self, line: bytes, rest: bytes, protocol_version: str) -> None:
        self.raw_requestline = line
        self.rfile: Any = io.BytesIO(rest + b"body")
        self.protocol_version = protocol_version
        self.answers: list[Any] = []

    def send_error(self, code: Any, message: Any = None, explain: Any = None) -> None:
        self.answers.append((int(code), message, explain))

    def result(self, parse: Any) -> dict[str, Any]:
        """What *parse* comes to: all that a protocol reads afterwards."""
        done = parse(self)
        found = {
            name: getattr(self, name, None)
            for name in ("command", "path", "request_version", "close_connection", "requestline")
        }
        if done:
            found["headers"] = list(self.headers.items())
            # Newer releases of http.server have a plain dictionary for a request without a version.
            is_message = hasattr(self.headers, "get_content_type")
            found["type"] = self.headers.get_content_type() if is_message else None
            found["left"] = self.rfile.read()
        return {"done": done, "answers": self.answers, **found}


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("line", REQUEST_LINES)
def test_a_header_comes_to_what_http_server_makes_of_it(line: bytes, version: str) -> None:
    for rest in HEADERS:
        ours = Parsing(line, rest, version).result(HttpProtocol.parse_request)
        theirs = Parsing(line, rest, version).result(BaseHTTPRequestHandler.parse_request)
        assert ours == theirs, rest


def test_what_clients_send_needs_no_parser_of_mail_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http.client, "parse_headers", None)
    rest = b"Host: 127.0.0.1\r\nAccept: */*\r\nX-Auth-Token: a:b\r\n\r\n"
    parsed = Parsing(b"GET /v3 HTTP/1.1\r\n", rest, "HTTP/1.1").result(HttpProtocol.parse_request)
    assert parsed["headers"][-1] == ("X-Auth-Token", "a:b")


def test_a_header_without_end_is_read_to_its_bound() -> None:
    stream = io.BytesIO(b"X: 1\r\n" * 1000)
    assert len(head.read_lines(stream)) == 101
