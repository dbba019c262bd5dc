"""A bound on requests that wait: what comes beyond it is told so at once."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from support.raw_http import Connection, connect, serving
from support.serving import starter, uwsgi_packet

from osloxide import wsgi

POOL = 2

SITE = """
import os, time

def application(environ, start_response):
    while environ["PATH_INFO"] == "/wait" and not os.path.exists("go"):
        time.sleep(0.01)
    start_response("200 OK", [])
    return [b"done"]
"""


class Held:
    """An application whose requests last until they are let go."""

    def __init__(self) -> None:
        self.inside = 0
        self.let_go = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        with self._lock:
            self.inside += 1
        self.let_go.wait(120)
        start_response("200 OK", [])
        return [b"done"]


@contextlib.contextmanager
def held(waiting: int | None) -> Iterator[tuple[wsgi.Server, Held]]:
    app = Held()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wsgi.Server, "max_waiting", waiting)
        with serving(app, pool_size=POOL) as server:
            try:
                yield server, app
            finally:
                app.let_go.set()


def ask(connection: Connection) -> None:
    connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")


def fill(
    server: wsgi.Server, app: Held, count: int, stack: contextlib.ExitStack
) -> list[Connection]:
    """*count* requests that are being answered or wait."""
    clients = [stack.enter_context(connect(server)) for _ in range(count)]
    for client in clients:
        ask(client)

    def are_taken() -> bool:
        stats = server._engines[-1].stats()
        return app.inside == min(count, POOL) and stats["in_flight"] == count

    wait_until(are_taken, "all requests are taken")
    return clients


class Bounded(wsgi.Server):
    """A server with all of its bounds."""

    max_waiting = 0
    max_body = 100
    max_connections = 10


Crowded = tuple[wsgi.Server, list[Connection]]


@pytest.fixture(scope="module")
def crowded() -> Iterator[Crowded]:
    """A server whose threads are all busy, for as long as the module's tests run."""
    app = Held()
    options = {"client_socket_timeout": 1}
    with contextlib.ExitStack() as stack:
        serve = serving(app, options=options, pool_size=POOL, kind=Bounded)
        server = stack.enter_context(serve)
        stack.callback(app.let_go.set)
        yield server, fill(server, app, POOL, stack)


@pytest.mark.parametrize("waiting", [0, 3])
def test_beyond_the_bound_requests_are_answered_503_at_once(waiting: int) -> None:
    with held(waiting) as (server, app), contextlib.ExitStack() as stack:
        taken = fill(server, app, POOL + waiting, stack)

        for _ in range(20):
            late = stack.enter_context(connect(server))
            ask(late)
            answer = late.answer()
            assert answer.status == 503
            assert (answer.one("Retry-After"), answer.one("Connection")) == ("1", "close")
            assert late.rest() == b"", "the end comes while all threads are busy"

        app.let_go.set()
        assert [client.answer().body for client in taken] == [b"done"] * len(taken)
        with connect(server) as connection:
            assert [connection.request().status for _ in range(5)] == [200] * 5


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (503, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        (503, "GET / HTTP/1.0\r\n\r\n"),
        (503, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost : x\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"),
        (408, "GET / HTTP/1.1\r\nHost: x\r\n"),
        (408, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx"),
        (413, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n\r\n"),
        (414, "GET /" + "x" * 8192 + " HTTP/1.1\r\nHost: x\r\n\r\n"),
        (431, "GET / HTTP/1.1\r\nHost: x\r\n" + "A: 1\r\n" * 101 + "\r\n"),
        (501, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n"),
        (505, "GET / HTTP/2.0\r\nHost: x\r\n\r\n"),
    ],
)
def test_the_end_of_a_refused_client_waits_for_no_thread(
    crowded: Crowded, status: int, sent: str
) -> None:
    server, _ = crowded
    with connect(server) as late:
        late.send(sent)
        assert late.head().status == status
        late.rest()


def test_more_clients_are_refused_than_may_be_connected(crowded: Crowded) -> None:
    server, _ = crowded
    assert server.max_connections is not None
    for _ in range(5 * server.max_connections):
        with connect(server) as late:
            ask(late)
            assert late.answer().status == 503
            late.assert_closed()


def test_connections_that_are_open_already_are_told_too() -> None:
    with held(1) as (server, app), contextlib.ExitStack() as stack:
        early = [stack.enter_context(connect(server)) for _ in range(5)]
        fill(server, app, POOL + 1, stack)

        for client in early:
            ask(client)
            assert client.answer().status == 503


def test_a_proxy_that_speaks_uwsgi_is_told_as_it_is_answered(tmp_path: Path) -> None:
    (tmp_path / "site_that_waits.py").write_text(SITE)
    packet = uwsgi_packet(PATH_INFO="/wait", REMOTE_ADDR="192.0.2.7")
    with starter(tmp_path) as start, contextlib.ExitStack() as stack:
        server = start(
            "serve", "site_that_waits", "-b", "uwsgi://127.0.0.1:0", "--threads", "1",
            "--max-waiting-requests", "0",
        )  # fmt: skip
        address = ("127.0.0.1", server.port())
        clients = [stack.enter_context(socket.create_connection(address, 60)) for _ in range(2)]
        for client in clients:
            client.sendall(packet)
        (refused,), _, _ = select.select(clients, [], [], 60)
        clients.remove(refused)
        assert refused.makefile("rb").read().startswith(b"HTTP/1.0 503 ")

        with socket.create_connection(address, 60) as wrong:
            wrong.sendall(b"\5" + packet[1:])
            assert wrong.makefile("rb").read().startswith(b"HTTP/1.0 400 ")
        (tmp_path / "go").touch()
        assert clients[0].makefile("rb").read().startswith(b"HTTP/1.0 200 ")
        assert server.stop() == 0, server.log


def test_a_body_that_is_refused_does_not_cost_the_answer() -> None:
    with held(0) as (server, app), contextlib.ExitStack() as stack:
        fill(server, app, POOL, stack)

        with connect(server) as late:
            late.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n")
            late.send(b"x" * 3_000_000)
            assert late.answer().status == 503
        with connect(server) as late:
            late.send(
                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
            )
            assert late.head().status == 503  # and no 100 before it
        app.let_go.set()


def test_the_refused_have_their_line_in_the_access_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with held(0) as (server, app), contextlib.ExitStack() as stack:
        fill(server, app, POOL, stack)
        with connect(server) as late:
            late.send("GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
            assert late.answer().status == 503
        app.let_go.set()
        wait_until(lambda: '"GET /late HTTP/1.1" status: 503' in caplog.text, "the line")


def test_without_a_bound_requests_wait() -> None:
    with held(None) as (server, app), contextlib.ExitStack() as stack:
        taken = fill(server, app, 3 * POOL, stack)
        app.let_go.set()
        assert [client.answer().status for client in taken] == [200] * len(taken)


def test_a_failed_application_gives_its_place_back() -> None:
    def fails(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise ValueError("on purpose")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wsgi.Server, "max_waiting", 0)
        with serving(fails, pool_size=1) as server:

            def fails_again() -> bool:
                with connect(server) as connection:
                    return connection.request().status == 500

            # Its place is given back behind its answer, which a client may see before.
            for _ in range(5):
                wait_until(fails_again, "its place is given back")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_tells_the_clients_of_full_workers_to_come_again(
    tmp_path: Path, workers: str
) -> None:
    (tmp_path / "site_that_waits.py").write_text(SITE)
    room = 3 * int(workers)
    with starter(tmp_path) as start, contextlib.ExitStack() as stack:
        server = start(
            "serve", "site_that_waits", "-b", "127.0.0.1:0", "--threads", "1", "-w", workers,
            "--max-waiting-requests", "2",
        )  # fmt: skip
        address = ("127.0.0.1", server.port())
        waiting: list[Connection] = []
        refused = 0

        def take_refusals() -> None:
            nonlocal refused
            answered, _, _ = select.select([client.socket for client in waiting], [], [], 0.5)
            for client in [client for client in waiting if client.socket in answered]:
                waiting.remove(client)
                answer = client.answer()
                assert (answer.status, answer.one("Retry-After")) == (503, "1")
                refused += 1

        def is_full() -> bool:
            """Other clients each time: all places are taken once some are refused while they are.
            One refusal may be that of a worker beside one that has room, or have come late."""
            before = refused
            for _ in range(3):
                client = stack.enter_context(Connection(address))
                client.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
                waiting.append(client)
            for _ in range(4):
                take_refusals()
            return len(waiting) == room and refused >= before + 3

        wait_until(is_full, "no worker has room", 60)
        (tmp_path / "go").touch()
        for client in waiting:
            client.socket.settimeout(60)
            assert client.answer().body == b"done"
        with Connection(address) as client:
            assert client.request().status == 200
        assert server.stop() == 0, server.log
        assert server.log.count('"GET /wait HTTP/1.1" status: 503') == refused
