"""The console of a server: nova-novncproxy between a browser's websocket and a VNC server.

nova 31 as it is released, which monkey-patches: nova-compute with the driver that it brings for
tests, nova-conductor, and nova-novncproxy, which is websockify and forks a process for each
connection. The VNC server and the browser are a few lines of this file.
Rules: RFC 6143 (RFB), RFC 6455 (websockets).
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from services.conftest import Start
from services.infra import Broker, Database
from services.nova import LOCK_31, Nova
from services.processes import RunningService, accepts_connections, free_port
from services.subject import APPS
from services.test_eventlet_nova import PatchingEnvironment

pytestmark = pytest.mark.timeout(900)

WITHIN = 180.0
CONSOLE_PORT = 6969
"""Where nova's driver for tests says that all consoles are."""
VERSION = b"RFB 003.008\n"
NAME = b"a server of the tests"


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """Read *count* bytes.

    :raises EOFError: the connection ended before.
    """
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise EOFError(f"{len(data)} of {count} bytes")
        data += piece
    return data


class Placement(http.server.ThreadingHTTPServer):
    """As much of placement as nova-compute asks for before it starts: its versions."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Versions)
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Versions(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer with the versions, or that nothing else is there."""
        known = self.path == "/"
        version = {"id": "v1.0", "min_version": "1.0", "max_version": "1.39", "status": "CURRENT"}
        version["links"] = [{"rel": "self", "href": ""}]  # type: ignore[assignment]
        body = json.dumps({"versions": [version]} if known else {}).encode()
        self.send_response(200 if known else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - names of http.server

    def log_message(self, *_args: object) -> None:
        """Log nothing."""


class VncServer:
    """Greets as RFB 3.8 wants it, without a password, and then sends back what it gets."""

    def __init__(self) -> None:
        number = os.getpid()
        self.host = f"127.69.{number >> 8 & 255}.{number % 254 + 1}"
        self.ended = threading.Semaphore(0)
        self._listener = socket.create_server((self.host, CONSOLE_PORT))
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=[connection]))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), connection:
            connection.sendall(VERSION)
            assert read_exactly(connection, len(VERSION)) == VERSION
            connection.sendall(b"\x01\x01")  # one kind of security: none
            assert read_exactly(connection, 1) == b"\x01"
            connection.sendall(struct.pack("!I", 0))  # and that is enough
            read_exactly(connection, 1)  # whether others may look too
            screen = struct.pack("!HH16xI", 640, 480, len(NAME))
            connection.sendall(screen + NAME)
            while data := connection.recv(65536):
                connection.sendall(data)
        self.ended.release()

    def close(self) -> None:
        for sock in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join()


class Browser:
    """A websocket that carries bytes."""

    def __init__(self, port: int, token: str) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=WITHIN)
        key = base64.b64encode(os.urandom(16)).decode()
        self._sock.sendall(
            f"GET /websockify?token={token} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nOrigin: http://127.0.0.1:{port}\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: binary\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += read_exactly(self._sock, 1)
        assert head.startswith(b"HTTP/1.1 101"), head
        self._received = b""

    def send(self, data: bytes) -> None:
        """Send one frame of *data*, masked as those of browsers are."""
        mask = os.urandom(4)
        size = len(data)
        length = struct.pack("!B", 0x80 | size) if size < 126 else struct.pack("!BQ", 0xFF, size)
        whole = (mask * (size // 4 + 1))[:size]
        masked = int.from_bytes(data, "big") ^ int.from_bytes(whole, "big")
        self._sock.sendall(b"\x82" + length + mask + masked.to_bytes(size, "big"))

    def receive(self, count: int) -> bytes:
        """The next *count* bytes, whatever frames they come in.

        :raises EOFError: the other side has closed.
        """
        while len(self._received) < count:
            self._received += self._frame()
        data, self._received = self._received[:count], self._received[count:]
        return data

    def _frame(self) -> bytes:
        first, size = read_exactly(self._sock, 2)
        if size == 126:
            (size,) = struct.unpack("!H", read_exactly(self._sock, 2))
        elif size == 127:
            (size,) = struct.unpack("!Q", read_exactly(self._sock, 8))
        data = read_exactly(self._sock, size)
        if first & 0x0F == 8:
            raise EOFError(f"closed: {data!r}")
        return data

    def greet(self) -> None:
        """What noVNC does before it shows a screen."""
        assert self.receive(len(VERSION)) == VERSION
        self.send(VERSION)
        assert self.receive(2) == b"\x01\x01"
        self.send(b"\x01")
        assert self.receive(4) == struct.pack("!I", 0)
        self.send(b"\x01")
        width, height, length = struct.unpack("!HH16xI", self.receive(24))
        assert (width, height, self.receive(length)) == (640, 480, NAME)

    def exchange(self, count: int) -> None:
        """Send *count* bytes and get them back."""
        data = os.urandom(count)
        sender = threading.Thread(target=self.send, args=[data])
        sender.start()
        assert self.receive(count) == data
        sender.join()

    def close(self) -> None:
        self._sock.close()


class Console:
    """What runs: the services that a console needs, and the VNC server."""

    def __init__(
        self,
        broker: Broker,
        database: Database,
        directory: Path,
        start: Start,
        placement: Placement,
    ) -> None:
        self.port = free_port()
        environment = PatchingEnvironment("nova31", LOCK_31, "nova-api")
        self.nova = Nova(environment, broker, database, directory, f"""
[DEFAULT]
compute_driver = fake.FakeDriver
[vnc]
novncproxy_host = 127.0.0.1
novncproxy_port = {self.port}
[placement]
endpoint_override = http://127.0.0.1:{placement.server_port}
""")  # fmt: skip
        self._start, self._broker = start, broker
        self.nova.create_schema()
        self.conductor = self.nova.start_service("conductor", start)
        self.compute = self.program("nova-compute")
        wait_until(self._is_served, "nova-compute listens", WITHIN, pause=0.5)
        self.proxy = self.program("nova-novncproxy", "--web", str(directory))
        wait_until(self._accepts, "the proxy listens", WITHIN)

    def program(self, name: str, *arguments: str) -> RunningService:
        """Start one of nova's programs."""
        environment = self.nova.environment
        return self._start(
            environment.command(name, "--config-file", str(self.nova.config), *arguments),
            self.nova.directory / "logs" / f"{name}.log",
            environment.variables(),
        )

    def _is_served(self) -> bool:
        self.compute.assert_running()
        listed = self._broker.control("list_queues", "name", "consumers").splitlines()
        return any(line.split() == ["compute.osloxide-test", "1"] for line in listed)

    def _accepts(self) -> bool:
        self.proxy.assert_running()
        return accepts_connections(self.port)

    def token(self, host: str) -> str:
        """What opens the console of a new server, whose VNC server is at *host*."""
        script = str(APPS / "nova_console.py")
        done = subprocess.run(
            [self.nova.environment.python, script, str(self.nova.config), host, str(CONSOLE_PORT)],
            env=self.nova.environment.variables(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.split()[-1]


@pytest.fixture(scope="module")
def console(
    broker: Broker,
    database: Database,
    tmp_path_factory: pytest.TempPathFactory,
    shared_start: Start,
) -> Iterator[Console]:
    placement = Placement()
    try:
        directory = tmp_path_factory.mktemp("console")
        yield Console(broker, database, directory, shared_start, placement)
    finally:
        placement.close()


@pytest.fixture
def vnc() -> Iterator[VncServer]:
    server = VncServer()
    yield server
    server.close()


@contextlib.contextmanager
def opened(console: Console, vnc: VncServer) -> Iterator[Browser]:
    """A browser that shows a screen."""
    browser = Browser(console.port, console.token(vnc.host))
    try:
        browser.greet()
        yield browser
    finally:
        browser.close()


def test_a_console_carries_what_both_sides_send(console: Console, vnc: VncServer) -> None:
    with opened(console, vnc) as browser:
        browser.exchange(1)
        browser.exchange(1 << 20)
    assert vnc.ended.acquire(timeout=WITHIN), "the proxy closes the other side"
    wait_until(lambda: not console.proxy.workers(), "its process has ended", WITHIN)
    assert "Traceback" not in console.proxy.text(), console.proxy.text()[-3000:]


def test_a_token_that_nobody_gave_opens_nothing(console: Console, vnc: VncServer) -> None:
    browser = Browser(console.port, "no-such-token")
    with pytest.raises((EOFError, OSError)):
        browser.greet()
    browser.close()
    wait_until(lambda: not console.proxy.workers(), "its process has ended", WITHIN)


def test_consoles_are_open_beside_each_other_and_survive_a_reload_of_nova_compute(
    console: Console, vnc: VncServer
) -> None:
    with opened(console, vnc) as first, opened(console, vnc) as second:
        since = console.compute.mark()
        console.compute.signal(signal.SIGHUP)
        console.compute.wait_log("SIGHUP", since=since, within=WITHIN)
        wait_until(console._is_served, "nova-compute listens again", WITHIN, pause=0.5)
        first.exchange(70_000)
        second.exchange(70_000)
        with opened(console, vnc) as third:
            third.exchange(1)


def test_a_stop_closes_consoles_and_leaves_nothing(console: Console, vnc: VncServer) -> None:
    with opened(console, vnc) as browser:
        console.proxy.signal(signal.SIGTERM)
        with pytest.raises((EOFError, OSError)):
            browser.receive(1)
    assert vnc.ended.acquire(timeout=WITHIN)
    console.proxy.wait_exit(WITHIN)
    console.proxy.wait_gone()
    for service in (console.compute, console.conductor):
        service.signal(signal.SIGTERM)
        assert service.wait_exit(WITHIN) == 0, service.text()[-3000:]
        service.wait_gone()
