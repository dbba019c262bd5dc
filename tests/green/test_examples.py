"""eventlet's own examples, under ``osloxide run``: they answer as they do on eventlet.

Owns a client for each example that serves on this machine alone; only its port is changed, as
other tests run beside it. Those that fetch pages of the internet are left out, and so are those on
ZeroMQ, which fail on eventlet too: they send text where pyzmq takes bytes.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from upstream.sdist import unpacked
from waiting import wait_until

LOCK = Path(__file__).parents[2] / "requirements" / "eventlet-tests.lock"
UPGRADE = (
    "GET {} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
KEY_TAKEN = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""The answer to the key of RFC 6455 section 1.3."""


class Example:
    """An example that runs."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, output: Path) -> None:
        self.process, self.port, self.output = process, port, output

    def connect(self) -> socket.socket:
        return wait_until(self._try_to_connect, lambda: f"answer: {self.output.read_text()}")

    def _try_to_connect(self) -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", self.port), 30)
        except ConnectionRefusedError:
            return None

    def interrupt(self) -> str:
        """End it as Ctrl-C does; returns what it has written."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 0, self.output.read_text()
        return self.output.read_text()


def free_port() -> int:
    """One that the kernel gives to no other test: below the range that it chooses from."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(lowest // 2, lowest)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Example]:
    name, its_port = request.param
    _, root = unpacked(LOCK, "eventlet", "examples")
    port = free_port()
    program = tmp_path / name
    source = (root / "examples" / name).read_text()
    assert str(its_port) in source
    program.write_text(source.replace(str(its_port), str(port)))
    (tmp_path / "websocket_chat.html").write_text("port %(port)s")
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "osloxide", "run", sys.executable, program],
            stdout=file,
            stderr=file,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    with contextlib.ExitStack() as stack:
        stack.callback(process.wait)
        stack.callback(process.kill)
        yield Example(process, port, output)


def read(connection: socket.socket, expected: bytes) -> None:
    """Read until *expected* has come, and nothing behind it."""
    got = b""
    while len(got) < len(expected):
        part = connection.recv(len(expected) - len(got))
        assert part, got
        got += part
    assert got == expected


def head(connection: socket.socket) -> bytes:
    got = b""
    while not got.endswith(b"\r\n\r\n"):
        part = connection.recv(1)
        assert part, got
        got += part
    return got


def of_example(name: str, port: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", [(name, port)], indirect=True, ids=[name])


@of_example("echoserver.py", 6000)
def test_echoserver(example: Example) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(example.connect()) for _ in range(20)]
        for number, client in enumerate(clients):
            client.sendall(b"line %d\n" % number)
        for number, client in enumerate(clients):
            read(client, b"line %d\n" % number)
    assert "client connected" in example.interrupt()


@of_example("chat_server.py", 3001)
def test_chat_server(example: Example) -> None:
    with example.connect() as first, example.connect() as second:
        wait_until(
            lambda: example.output.read_text().count("joined chat") == 2, "both participants"
        )
        first.sendall(b"good morning\n")
        read(second, b"good morning\n")
    wait_until(lambda: example.output.read_text().count("left chat") == 2, "both leave")
    assert "Chat: good morning" in example.interrupt()


@of_example("wsgi.py", 8090)
def test_wsgi(example: Example) -> None:
    with example.connect() as client:
        for path, status, body in (("/", b"200 OK", b"Hello, World!\r\n"), ("/a", b"404", b"Not ")):
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert head(client).startswith(b"HTTP/1.1 " + status)
            read(client, body)
    assert "wsgi exiting" in example.interrupt()


@of_example("websocket_chat.py", 7000)
def test_websocket_chat(example: Example) -> None:
    with example.connect() as first, example.connect() as second, example.connect() as reader:
        for client in (first, second):
            client.sendall(UPGRADE.format("/chat").encode())
            answer = head(client)
            assert answer.startswith(b"HTTP/1.1 101 ")
            assert KEY_TAKEN in answer
        first.sendall(b"\x81\x83\0\0\0\0hey")  # masked by zeros
        read(first, b"\x81\x03hey")
        read(second, b"\x81\x03hey")
        reader.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert head(reader).startswith(b"HTTP/1.1 200 OK")
        read(reader, f"port {example.port}".encode())
    assert "wsgi exited" in example.interrupt()
