"""Answers of a gigabyte: little of one is in memory, whoever makes it and however it is taken.

Owns the bound on the memory of the serving process beside such an answer. The site makes all of it
of one object that it has anyway, so that whatever the process takes more is the server's.
``make test`` sends a quarter of a gigabyte each, ``OSLOXIDE_LONG=1`` a whole one.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import wait_until
from procfs import open_fds, resident_bytes
from support.serving import Running, starter
from support.tls import CERTIFICATES

MIB = 1 << 20
SIZE = (1024 if os.environ.get("OSLOXIDE_LONG") == "1" else 256) * MIB
#: What the process may take more than before, at any time: a piece that waits for its client, what
#: is read of a file, records of TLS.
SLACK = 24 * MIB

SITE = f"""
import os

SIZE, PIECE = {SIZE}, bytes({MIB})

class Pieces:
    def __init__(self):
        self.left = SIZE

    def __iter__(self):
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        self.left -= len(PIECE)
        return PIECE

    def read(self, size):  # as a file that has no descriptor
        return next(self, b"")

    def close(self):
        with open("closed", "a") as log:
            log.write("x")

def application(environ, start_response):
    path, length = environ["PATH_INFO"], [("Content-Length", str(SIZE))]
    if path == "/":
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]
    write = start_response("200 OK", length if path == "/counted" else [])
    if path == "/file":
        return environ["wsgi.file_wrapper"](open("large", "rb"))
    if path == "/object":
        return environ["wsgi.file_wrapper"](Pieces(), len(PIECE))
    if path == "/write":
        for piece in Pieces():
            write(piece)
        return []
    return Pieces()
"""
#: Answers without a length are chunked.
COUNTED = {"/counted", "/file"}


def peak_bytes(pid: int) -> int:
    """The most memory that was resident since :func:`forget_peak`."""
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(kib) * 1024


def forget_peak(pid: int) -> int:
    """Begin to count anew; what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return resident_bytes(pid)


class Site:
    """One process that serves the same plainly and encrypted."""

    def __init__(self, running: Running, directory: Path) -> None:
        self.running, self.directory = running, directory
        self.pid = running.pid
        self._ports = {"http": running.port(0), "https": running.port(1)}

    def asked(self, scheme: str, path: str, buffer: int | None = None) -> socket.socket:
        """A client that has sent its request and has taken the head of its answer, nothing more."""
        client = socket.socket()
        if buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(60)
        client.connect(("127.0.0.1", self._ports[scheme]))
        if scheme == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            client = context.wrap_socket(client)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = client.recv(1)
            assert byte, head
            head += byte
        assert head.startswith(b"HTTP/1.1 200 "), head
        chunked = b"transfer-encoding: chunked" in head.lower()
        assert path == "/" or chunked is (path not in COUNTED), head
        return client

    def assert_serves_others(self) -> None:
        for scheme in self._ports:
            with self.asked(scheme, "/") as client:
                assert client.recv(64) == b"ok"

    def has_closed(self, count: int) -> bool:
        log = self.directory / "closed"
        return log.exists() and len(log.read_text()) >= count


def take(client: socket.socket, most: int = 2 * SIZE) -> tuple[int, bytes]:
    """Take the answer to its end, or *most* bytes of it: how many came, and the last of them."""
    buffer = memoryview(bytearray(MIB))
    taken, last = 0, b""
    while taken < most and (count := client.recv_into(buffer)):
        taken += count
        last = (last + bytes(buffer[max(0, count - 8) : count]))[-8:]
    return taken, last


def assert_whole(path: str, taken: int, last: bytes) -> None:
    if path in COUNTED:
        assert taken == SIZE
    else:
        assert taken > SIZE
        assert last.endswith(b"\r\n0\r\n\r\n"), last


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("gigabytes")
    (directory / "mysite.py").write_text(SITE)
    with (directory / "large").open("wb") as large:
        large.truncate(SIZE)
    with starter(directory) as start:
        running = start(
            *("serve", "mysite", "-b", "http://127.0.0.1:0", "-b", "https://127.0.0.1:0"),
            *("--certfile", str(CERTIFICATES / "server.crt")),
            *("--keyfile", str(CERTIFICATES / "server.key"), "--threads", "4"),
        )
        made = Site(running, directory)
        made.assert_serves_others()
        yield made
        assert running.stop() == 0, running.log


@pytest.mark.parametrize(
    ("scheme", "path"),
    [
        *(("http", path) for path in ("/generated", "/counted", "/write", "/file", "/object")),
        *(("https", path) for path in ("/generated", "/file")),
    ],
)
def test_a_gigabyte_passes_through_little_memory(site: Site, scheme: str, path: str) -> None:
    before = forget_peak(site.pid)
    with site.asked(scheme, path) as client:
        assert_whole(path, *take(client))
    assert peak_bytes(site.pid) < before + SLACK


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("path", ["/generated", "/write", "/file", "/object"])
def test_a_reader_that_stops_holds_little_of_its_gigabyte_and_no_more_once_it_is_gone(
    site: Site, path: str, scheme: str
) -> None:
    closed = len((site.directory / "closed").read_text()) if site.has_closed(1) else 0
    descriptors = open_fds(site.pid)
    before = forget_peak(site.pid)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(site.asked(scheme, path, 65536)) for _ in range(2)]
        for client in clients:
            take(client, 8 * MIB)
        site.assert_serves_others()
        assert peak_bytes(site.pid) < before + 2 * SLACK
    wait_until(lambda: open_fds(site.pid) <= descriptors, "nothing is open for them any more")
    if path in ("/generated", "/object"):
        wait_until(lambda: site.has_closed(closed + 2), "their iterators are closed")
