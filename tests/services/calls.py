"""One request and its answer, over HTTP, HTTPS or the uwsgi protocol; each on a new connection.

Owns no judgement about the answer. Rules: RFC 9110 and 9112; the uwsgi protocol's packet of
variables, as nginx's ``uwsgi_params`` names them.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

_TIMEOUT = 180.0
"""Seconds: a first request waits for an import, and many workers may import at once."""


@dataclass(frozen=True)
class Answer:
    """Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    def part(self, path: str) -> Any:
        """A part of the answer: ``header NAME``, or the keys and indices of JSON with dots."""
        if path.startswith("header "):
            return self.headers.get(path.removeprefix("header ").lower())
        found = json.loads(self.data)
        for key in path.split("."):
            found = found[int(key)] if key.isdigit() else found[key]
        return found


Body = bytes | Iterator[bytes] | None
Call = Callable[[str, str, Body, Mapping[str, str]], Answer]
"""``call(method, path, body, headers)``."""


def call_to(address: str) -> Call:
    """Requests to one server.

    :param address: ``http://HOST:PORT``, ``https://HOST:PORT`` (any certificate will do),
        ``uwsgi://HOST:PORT`` or ``uwsgi:///PATH``.
    """
    where = urlsplit(address)

    def call(method: str, path: str, body: Body, headers: Mapping[str, str]) -> Answer:
        if where.scheme == "uwsgi":
            target: Any = where.path if not where.hostname else (where.hostname, where.port)
            return _speak_uwsgi(target, method, path, body, headers)
        connection: http.client.HTTPConnection
        if where.scheme == "https":
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(
                where.netloc, timeout=_TIMEOUT, context=context
            )
        else:
            connection = http.client.HTTPConnection(where.netloc, timeout=_TIMEOUT)
        try:
            connection.request(method, path, body, dict(headers))
            return _answer(connection.getresponse())
        finally:
            connection.close()

    return call


def _speak_uwsgi(
    target: Any, method: str, path: str, body: Body, headers: Mapping[str, str]
) -> Answer:
    data = body if isinstance(body, bytes) else b"".join(body or ())
    plain, _, query = path.partition("?")
    variables = {
        "REQUEST_METHOD": method, "REQUEST_URI": path, "PATH_INFO": unquote(plain),
        "QUERY_STRING": query, "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "localhost",
        "CONTENT_LENGTH": str(len(data)) if data else "", "CONTENT_TYPE": "",
        "REMOTE_ADDR": "192.0.2.1", "SERVER_NAME": "localhost", "SERVER_PORT": "80",
    }  # fmt: skip
    for name, value in headers.items():
        key = name.upper().replace("-", "_")
        variables[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
    packet = b"".join(
        struct.pack("<H", len(text)) + text
        for pair in variables.items()
        for text in (pair[0].encode(), pair[1].encode())
    )
    with socket.socket(socket.AF_UNIX if isinstance(target, str) else socket.AF_INET) as peer:
        peer.settimeout(_TIMEOUT)
        peer.connect(target)
        peer.sendall(struct.pack("<BHB", 0, len(packet), 0) + packet + data)
        answer = http.client.HTTPResponse(peer, method=method)
        answer.begin()
        return _answer(answer)


def _answer(answer: http.client.HTTPResponse) -> Answer:
    names = {name.lower(): value for name, value in answer.getheaders()}
    return Answer(answer.status, names, answer.read())
