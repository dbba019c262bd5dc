"""A million requests of all kinds: no memory, thread or descriptor is left behind.

Takes minutes, so ``make test`` sends 30,000; ``OSLOXIDE_LONG=1`` sends the million. Either way the
figures are printed and go into docs/server.md.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from pathlib import Path

import pytest
from conftest import wait_until
from procfs import open_fds, resident_bytes, threads
from support.serving import starter

from osloxide import _native

IS_LONG = os.environ.get("OSLOXIDE_LONG") == "1"
REQUESTS = 1_000_000 if IS_LONG else 30_000
#: Requests before the first look: pools, caches and the allocator have what they need by then.
WARM_UP = REQUESTS // 5
CLIENTS = 8
#: What the allocator may keep more than it did at the first look.
SLACK_KIB = 2048

SITE = """
import os

def application(environ, start_response):
    path = environ["PATH_INFO"]
    body = environ["wsgi.input"].read()
    if path == "/raise":
        raise OSError("on purpose")
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/stream":
        return iter([b"one", b"two"])
    if path == "/file":
        return environ["wsgi.file_wrapper"](open("large", "rb"))
    return [b"hello", body]
"""

# Sixteen requests that are pipelined; the file is longer than what is sent with its head.
GET = b"GET / HTTP/1.1\r\nHost: a\r\nX-Auth-Token: 0123456789abcdef\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12345"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
HEAD = b"HEAD /file HTTP/1.1\r\nHost: a\r\n\r\n"
STREAM = b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n"
BATCH = GET * 8 + POST * 2 + CHUNKED * 2 + HEAD * 2 + STREAM
#: Ends a connection each: a file, an error, a refusal, a client that vanishes.
LAST = (
    b"GET /file HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"GET /raise HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf",
)


def batches(port: int, count: int, problems: list[str]) -> None:
    """Send *count* batches, on a new connection after each twenty."""
    answered = len(re.findall(rb"HTTP/1\.1", BATCH))
    for turn in range(0, count, 20):
        try:
            with socket.create_connection(("127.0.0.1", port), 60) as client:
                for _ in range(min(20, count - turn)):
                    client.sendall(BATCH)
                    seen = b""
                    # The last answer is a stream, and its last chunk the end of the batch.
                    while not seen.endswith(b"\r\n0\r\n\r\n"):
                        piece = client.recv(65536)
                        assert piece, "the server closed the connection"
                        seen += piece
                    statuses = re.findall(rb"HTTP/1\.1 (\d+) ", seen)
                    assert statuses == [b"200"] * answered, statuses
                last = LAST[turn // 20 % len(LAST)]
                client.sendall(last)
                if b"half" not in last:
                    while client.recv(1 << 20):
                        pass
        except (OSError, AssertionError) as error:
            problems.append(repr(error))
            return


def figures(pid: int) -> tuple[int, int, int]:
    """Resident memory in KiB, threads and descriptors of a process."""
    return resident_bytes(pid) // 1024, threads(pid), open_fds(pid)


@pytest.mark.timeout(1800 if IS_LONG else 180)
def test_requests_leave_no_memory_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "mysite.py").write_text(SITE)
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    with starter(tmp_path) as start:
        server = start(
            *("serve", "mysite", "-b", "127.0.0.1:0", "--access-logformat", "%(status_code)d")
        )
        where = server.port()
        per_batch = len(re.findall(rb"HTTP/1\.1", BATCH))

        def send(requests: int) -> None:
            problems: list[str] = []
            count = requests // per_batch // CLIENTS
            clients = [
                threading.Thread(target=batches, args=(where, count, problems))
                for _ in range(CLIENTS)
            ]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            assert not problems, problems

        def is_alone() -> bool:
            rows = _native.Scoreboard.attach(server.pid).read()
            return all(row["connections"] == 0 for row in rows)

        send(WARM_UP)
        wait_until(is_alone, "the end of the connections")
        base = figures(server.pid)
        send(REQUESTS - WARM_UP)
        wait_until(is_alone, "the end of the connections")
        end: list[int] = []

        def settled() -> bool:
            end[:] = figures(server.pid)
            return end[1] <= base[1] and end[2] <= base[2]

        wait_until(settled, f"as many threads and descriptors as before: {base}, {end}", 60)
        print(f"{REQUESTS} requests: KiB, threads, descriptors {base} -> {tuple(end)}")
        assert end[0] <= base[0] + SLACK_KIB
        assert server.stop() == 0, server.log
