"""One connection for each request, beside slow readers, then through kills and reloads.

Owns the promise that nothing grows and that no request is lost but those on a worker that was
killed. ``make test`` sends a few thousand requests; ``OSLOXIDE_LONG=1`` sends a million, or as many
as ``OSLOXIDE_SOAK_REQUESTS`` says.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import wait_until
from procfs import open_fds, resident_bytes, threads
from support.serving import Running, starter

IS_LONG = os.environ.get("OSLOXIDE_LONG") == "1"
REQUESTS = int(os.environ.get("OSLOXIDE_SOAK_REQUESTS", "1000000" if IS_LONG else "4000"))
CLIENTS = 8
SLOW_READERS = 20
#: Kills and reloads, one after the other.
EVENTS = 10 if IS_LONG else 2
#: What the allocator may keep more than it did at the first look.
SLACK_KIB = 8192

SITE = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"x" * (2_000_000 if environ["PATH_INFO"] == "/large" else 1000)]
"""
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

Loss = tuple[float, float, str]


def ask(port: int) -> None:
    """One request on a connection of its own.

    :raises OSError, ValueError: the answer did not come, or not all of it.
    """
    with socket.create_connection(("127.0.0.1", port), 60) as client:
        client.sendall(REQUEST)
        received = b""
        while piece := client.recv(65536):
            received += piece
    if not received.startswith(b"HTTP/1.1 200 ") or not received.endswith(
        b"\r\n\r\n" + b"x" * 1000
    ):
        raise ValueError(f"no whole answer: {received[:100]!r}, {len(received)} bytes")


class Load:
    """Clients that ask without a pause, until as many requests as wanted were sent."""

    def __init__(self, port: int, requests: int) -> None:
        #: When each lost request began and ended, and why.
        self.lost: list[Loss] = []
        self.answered = 0
        self._port, self._left = port, requests
        self._lock = threading.Lock()
        self._clients = [threading.Thread(target=self._ask_on) for _ in range(CLIENTS)]
        for client in self._clients:
            client.start()

    def _ask_on(self) -> None:
        while True:
            with self._lock:
                if self._left <= 0:
                    return
                self._left -= 1
            began = time.monotonic()
            try:
                ask(self._port)
            except (OSError, ValueError) as error:
                self.lost.append((began, time.monotonic(), repr(error)))
            else:
                with self._lock:
                    self.answered += 1

    def has_answered(self, count: int) -> bool:
        return self.answered >= count or not self.is_running()

    def is_running(self) -> bool:
        return any(client.is_alive() for client in self._clients)

    def join(self) -> None:
        for client in self._clients:
            client.join()


@contextlib.contextmanager
def slow_readers(port: int) -> Iterator[None]:
    """Clients that have asked for more than the kernel holds for them, and read nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(SLOW_READERS):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.settimeout(60)
            client.connect(("127.0.0.1", port))
            client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        yield


def figures(pid: int) -> tuple[int, int, int]:
    """Resident memory in KiB, threads and descriptors of a process."""
    return resident_bytes(pid) // 1024, threads(pid), open_fds(pid)


def settled(pid: int, base: tuple[int, int, int]) -> tuple[int, int, int]:
    """The figures of *pid* once it has no more threads and descriptors than *base*."""
    last = [figures(pid)]

    def is_settled() -> bool:
        last[0] = figures(pid)
        return last[0][1] <= base[1] and last[0][2] <= base[2]

    wait_until(is_settled, f"as many threads and descriptors as {base}; {last}", 60)
    return last[0]


def others(server: Running, old: list[int], kept: int) -> list[int]:
    """Two workers, once only *kept* of them are among *old*."""
    found: list[int] = []

    def are_new() -> bool:
        found[:] = server.running(2)
        return len(set(found) & set(old)) == kept

    wait_until(are_new, "other workers", 120)
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "mysite.py").write_text(SITE)
    with starter(tmp_path) as start:
        yield lambda *options: start("serve", "mysite", "-b", "127.0.0.1:0", *options)


@pytest.mark.timeout(7200 if IS_LONG else 180)
def test_a_connection_for_each_request_beside_slow_readers_leaves_nothing(
    start: Callable[..., Running],
) -> None:
    server = start("--no-access-log")
    port = server.port()

    def send(requests: int) -> int:
        with slow_readers(port):
            load = Load(port, requests)
            load.join()
        assert load.lost == []
        return load.answered

    sent = send(REQUESTS // 10)
    # Slow readers' memory is given back by then, and the pool's threads have left: the main thread,
    # the control thread, the watch thread, leader and standby stay.
    wait_until(lambda: threads(server.pid) <= 5, "the end of idle threads", 60)
    base = figures(server.pid)
    sent += send(REQUESTS // 2 - sent)
    end = settled(server.pid, base)
    print(f"{sent} connections: KiB, threads, descriptors {base} -> {end}")
    assert end[0] <= base[0] + SLACK_KIB
    assert server.stop() == 0, server.log


@pytest.mark.timeout(7200 if IS_LONG else 180)
def test_no_request_is_lost_but_those_on_a_worker_that_was_killed(
    start: Callable[..., Running],
) -> None:
    server = start("--no-access-log", "--workers", "2")
    port = server.port()
    workers = server.running(2)
    base = figures(server.pid)
    requests = REQUESTS // 2
    load = Load(port, requests)
    kills: list[tuple[float, float]] = []
    for event in range(1, EVENTS + 1):
        mark = requests * event // (EVENTS + 2)
        wait_until(lambda mark=mark: load.has_answered(mark), "requests", 3600)  # type: ignore[misc]
        if event % 2:
            before = time.monotonic()
            os.kill(workers[0], signal.SIGKILL)
            wait_until(lambda gone=workers[0]: not Path(f"/proc/{gone}").exists(), "its end")  # type: ignore[misc]
            kills.append((before, time.monotonic()))
        else:
            os.kill(server.pid, signal.SIGHUP)
        workers = others(server, workers, kept=event % 2)
    load.join()

    unexplained = [
        loss for loss in load.lost if not any(loss[0] <= end and loss[1] >= begin
                                              for begin, end in kills)
    ]  # fmt: skip
    print(f"{load.answered} of {requests} answered, {len(kills)} kills, lost: {load.lost}")
    assert unexplained == []
    assert len(load.lost) <= len(kills) * CLIENTS
    assert load.answered + len(load.lost) == requests
    end = settled(server.pid, base)
    print(f"the parent: KiB, threads, descriptors {base} -> {end}")
    assert end[0] <= base[0] + SLACK_KIB
    assert server.stop() == 0, server.log
