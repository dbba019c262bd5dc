"""Clients that vanish, stall or misbehave: nothing of them stays, and others do not notice."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from procfs import open_fds
from support.raw_http import DEADLINE, connect, serving
from waiting import until

CHUNK = b"x" * 65536


class Endless:
    """A body without end that notices when it is closed."""

    def __init__(self, piece: bytes) -> None:
        self.piece = piece
        self.was_closed = threading.Event()
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self.piece

    def close(self) -> None:
        self.closed += 1
        self.was_closed.set()


def app_of(body: Any) -> Callable[..., Any]:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/ok":
            start_response("200 OK", [])
            return [b"ok"]
        start_response("200 OK", [])
        return body

    return app


@pytest.mark.parametrize(("piece", "vanish"), [(CHUNK, "reset"), (CHUNK, "close"), (b"", "reset")])
def test_a_body_is_closed_once_its_client_is_gone(
    piece: bytes, vanish: str, caplog: pytest.LogCaptureFixture
) -> None:
    # A client that only closed may still be reading, so an idle body needs the reset.
    body = Endless(piece)
    with serving(app_of(body)) as server:
        connection = connect(server)
        connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        if piece:
            connection.head()
        getattr(connection, vanish)()

        assert body.was_closed.wait(DEADLINE)
        with connect(server) as other:
            assert other.request("GET", "/ok").body == b"ok"
    assert body.closed == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_an_application_that_writes_hears_that_its_client_is_gone() -> None:
    heard: list[BaseException] = []
    done = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        try:
            while True:
                write(CHUNK)
        except OSError as error:
            heard.append(error)
            raise
        finally:
            done.set()

    with serving(app) as server:
        connection = connect(server)
        connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.head()
        connection.reset()
        assert done.wait(DEADLINE)

    assert isinstance(heard[0], ConnectionError)


def test_a_failure_of_the_application_is_logged_although_its_client_is_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        try:
            while True:
                write(CHUNK)
        except OSError:
            raise KeyError("its own mistake") from None

    with serving(app) as server:
        connection = connect(server)
        connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.head()
        connection.reset()
        assert until(lambda: "its own mistake" in caplog.text)


def test_a_client_that_closed_its_sending_side_is_answered() -> None:
    with serving(app_of([b"x"])) as server, connect(server) as connection:
        connection.send("GET /ok HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.socket.shutdown(socket.SHUT_WR)

        assert connection.answer().body == b"ok"


def test_a_client_that_stops_reading_is_cut_off_at_the_timeout() -> None:
    body = Endless(CHUNK)
    with (
        serving(app_of(body), options={"client_socket_timeout": 1}) as server,
        connect(server) as stalled,
    ):
        stalled.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with connect(server) as other:
            assert other.request("GET", "/ok").body == b"ok"
        assert body.was_closed.wait(DEADLINE)
    assert body.closed == 1


def test_a_storm_of_resets_leaves_nothing_behind() -> None:
    with serving(app_of([b"x"])) as server:
        with connect(server) as connection:
            connection.request("GET", "/ok")
        (engine,) = server._engines
        assert until(lambda: engine.stats()["connections"] == 0)
        before = open_fds()
        for number in range(300):
            connection = connect(server)
            if number % 3:
                connection.send("GET / HTTP/1.1\r\nHost: x\r\n" + ("\r\n" if number % 2 else ""))
            connection.reset()

        with connect(server) as connection:
            assert connection.request("GET", "/ok").body == b"ok"
        assert until(lambda: engine.stats()["connections"] == 0)
        assert until(lambda: open_fds() <= before)


def test_requests_beyond_the_pool_wait_and_are_served() -> None:
    release = threading.Event()
    inside = threading.Semaphore(0)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        inside.release()
        assert release.wait(DEADLINE)
        start_response("200 OK", [])
        return [b"served"]

    with serving(app, pool_size=3) as server:
        connections = [connect(server) for _ in range(8)]
        for connection in connections:
            connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(3):
            assert inside.acquire(timeout=DEADLINE)
        assert server._pool.running() == 3
        assert server._pool.free() == 0
        assert until(lambda: server._pool.waiting() >= 1)
        assert not inside.acquire(blocking=False)  # a fourth would be a broken promise
        release.set()
        assert [connection.answer().body for connection in connections] == [b"served"] * 8
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_line_end_behind_the_last_request_costs_nothing_of_its_answer(version: str) -> None:
    # RFC 9112 section 2.2 names such clients. Unread, it would turn the close into a reset.
    has_begun, goes_on = threading.Event(), threading.Event()
    answer = CHUNK * 16

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.input"].read()
        has_begun.set()
        assert goes_on.wait(DEADLINE)
        start_response("200 OK", [("Content-Length", str(len(answer)))])
        return [answer]

    with serving(app) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(DEADLINE)
        client.connect(("127.0.0.1", server.port))
        head = f"POST / HTTP/{version}\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
        client.sendall(head.encode() + b"ok")
        assert has_begun.wait(DEADLINE)
        client.sendall(b"\r\n")
        goes_on.set()
        received = b"".join(iter(lambda: client.recv(4096), b""))

    assert received.endswith(b"\r\n\r\n" + answer)


@pytest.mark.parametrize("end", ["keep-alive is off", "an application that fails to keep its word"])
def test_a_client_that_sends_on_gets_the_whole_answer_that_ends_its_connection(end: str) -> None:
    # RFC 9112 section 9.6: what comes behind a close of both halves would be answered with a reset,
    # which costs the client what it has not read.
    answer = CHUNK * 16

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", str(len(answer)))])
        return [answer] if end == "keep-alive is off" else [answer + b"beyond"]

    options = {"wsgi_keep_alive": end != "keep-alive is off"}
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving(app, options=options) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(DEADLINE)
        client.connect(("127.0.0.1", server.port))
        client.sendall(request)
        received = b""
        while piece := client.recv(65536):
            received += piece
            client.send(request)

    assert received.endswith(b"\r\n\r\n" + answer)
