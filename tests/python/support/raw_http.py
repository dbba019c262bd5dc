"""An HTTP/1.1 client that sends exactly the bytes it is given and reads answers strictly.

Follows RFC 9112 to the letter on the reading side and forgives nothing: a test must notice an
answer that is cut short, too long, or not there. Every wait is bounded by one deadline.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Iterator
from typing import Any

from oslo_config import cfg

from osloxide import wsgi

#: No test waits longer than this for a byte, in seconds.
DEADLINE = 10.0


class Incomplete(Exception):
    """The connection ended before the answer did."""

    def __init__(self, received: bytes) -> None:
        super().__init__(f"connection ended after {received!r}")
        self.received = received


@dataclasses.dataclass
class Answer:
    """One answer as it arrived."""

    version: str
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def all(self, name: str) -> list[str]:
        """Values of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def one(self, name: str) -> str | None:
        """Value of a header that must not be repeated."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None


class Connection:
    """One connection to a server under test."""

    def __init__(self, address: tuple[str, int] | str, receive_buffer: int | None = None) -> None:
        """*receive_buffer*: bytes that the kernel takes unread, with segments as on an Ethernet."""
        if receive_buffer is not None:
            assert isinstance(address, tuple)
            self.socket = socket.socket()
            self.socket.settimeout(DEADLINE)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1448)
            self.socket.connect(address)
        elif isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.settimeout(DEADLINE)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, timeout=DEADLINE)
        self._received = b""

    def send(self, data: bytes | str) -> None:
        """Send *data*; text as latin-1, so that every character is a byte."""
        self.socket.sendall(data.encode("latin-1") if isinstance(data, str) else data)

    def request(
        self,
        method: str = "GET",
        target: str = "/",
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        body: bytes = b"",
        version: str = "HTTP/1.1",
    ) -> Answer:
        """Send one well-formed request and read its answer."""
        pairs = list(headers.items() if isinstance(headers, dict) else headers or [])
        if not any(name.lower() == "host" for name, _ in pairs):
            pairs.insert(0, ("Host", "test"))
        if body and not any(name.lower() == "transfer-encoding" for name, _ in pairs):
            pairs.append(("Content-Length", str(len(body))))
        lines = [f"{method} {target} {version}", *(f"{name}: {value}" for name, value in pairs)]
        self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        return self.answer(method)

    def answer(self, method: str = "GET") -> Answer:
        """Read one final answer to a request of *method*; interim ones are skipped."""
        while True:
            answer = self.head()
            if answer.status >= 200:
                break
        answer.body = self._body(answer, method)
        return answer

    def head(self) -> Answer:
        """Read one head."""
        line, *fields = self.until(b"\r\n\r\n")[:-4].decode("latin-1").split("\r\n")
        version, status, reason = [*line.split(" ", 2), ""][:3]
        pairs = [(name, value.strip()) for name, _, value in (f.partition(":") for f in fields)]
        return Answer(version, int(status), reason, pairs)

    def _body(self, answer: Answer, method: str) -> bytes:
        if method == "HEAD" or answer.status in (204, 304):
            return b""
        length, coding = answer.one("Content-Length"), answer.one("Transfer-Encoding")
        assert not (length and coding), "both Content-Length and Transfer-Encoding"
        if coding:
            assert coding == "chunked"
            return b"".join(self.chunks())
        if length is not None:
            return self.exactly(int(length))
        return self.rest()

    def chunks(self) -> Iterator[bytes]:
        """Read a chunked body, chunk by chunk."""
        while size := int(self.until(b"\r\n")[:-2], 16):
            yield self.exactly(size)
            assert self.exactly(2) == b"\r\n"
        assert self.exactly(2) == b"\r\n", "trailers"

    def until(self, end: bytes) -> bytes:
        """Read up to and with *end*."""
        while end not in self._received:
            self._fill()
        index = self._received.index(end) + len(end)
        return self._take(index)

    def exactly(self, count: int) -> bytes:
        """Read *count* bytes."""
        while len(self._received) < count:
            self._fill()
        return self._take(count)

    def rest(self) -> bytes:
        """Read to the end of the connection, reset or not."""
        with contextlib.suppress(Incomplete):
            while True:
                self._fill()
        return self._take(len(self._received))

    def assert_closed(self) -> None:
        """Check that the server closes the connection and sends nothing more before."""
        assert self.rest() == b""

    def assert_open(self) -> None:
        """Check that the connection takes another request."""
        assert self.request("OPTIONS", "*").status

    def reset(self) -> None:
        """Vanish: the server gets a reset."""
        linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.socket.close()

    def _fill(self) -> None:
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            raise Incomplete(self._received)
        self._received += data

    def _take(self, count: int) -> bytes:
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def configuration(**options: Any) -> cfg.ConfigOpts:
    """A configuration with *options* of the group DEFAULT overridden."""
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    wsgi.register_opts(conf)
    for name, value in options.items():
        conf.set_override(name, value)
    return conf


@contextlib.contextmanager
def serving(
    app: Any,
    *,
    options: dict[str, Any] | None = None,
    conf: cfg.ConfigOpts | None = None,
    kind: type[wsgi.Server] = wsgi.Server,
    **arguments: Any,
) -> Iterator[wsgi.Server]:
    """Run *app* on a port of its own; afterwards prove that the server has drained.

    :param options: options of the group DEFAULT, or *conf*: all of them.
    :param kind: the class of the server.
    """
    arguments.setdefault("host", "127.0.0.1")
    conf = conf or configuration(**options or {})
    server = kind(conf, "test", app, **arguments)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        for engine in server._engines:
            assert engine.wait(DEADLINE), f"did not drain: {engine.stats()}"
        server.socket.close()
        server.dup_socket.close()


def connect(server: wsgi.Server) -> Connection:
    """A new connection to *server*."""
    if server.socket.family == socket.AF_UNIX:
        return Connection(server.host)
    return Connection((server.host, server.port))
