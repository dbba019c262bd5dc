"""What ``eventlet.wsgi.server`` still answers once it is killed, as services kill it to stop.

Clients that the kernel has connected are told by no error that their server ends: what they have
sent is answered. Rules: docs/eventlet.md, "The server"; the native server's drain for the bounds.
"""

from __future__ import annotations

import contextlib
import io
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from waiting import wait_until

from osloxide import green
from osloxide.green import event, wsgi

WITHIN = 45.0
"""Seconds after which a connection counts as hung."""
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine is late with a client's request."""
    monkeypatch.setattr(wsgi, "FIRST_REQUEST_SECONDS", 10 * WITHIN)  # no end of a wait here


class Serving:
    """A server with a pool of *size*, whose application waits for ``leave``."""

    def __init__(self, size: int) -> None:
        self.entered, self.leave = event.Event(), event.Event()
        self.pool = green.GreenPool(size)
        self.log = io.StringIO()
        self.listener = green.listen(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.thread = green.spawn(
            wsgi.server,
            self.listener,
            lambda *request: self.site(*request),
            log=self.log,
            custom_pool=self.pool,
        )

    def site(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if not self.entered.ready():
            self.entered.send()
        self.leave.wait()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    def accepted(self, count: int) -> None:
        """Wait until *count* connections are accepted."""

        def are() -> bool:
            green.sleep(0)
            return self.log.getvalue().count(" accepted ") >= count

        wait_until(are, f"{count} are accepted", WITHIN)

    def stop(self) -> None:
        """As services do: no room for new requests, then the end."""
        self.pool.resize(0)
        self.thread.kill()

    def wait(self) -> None:
        """Wait for its end."""
        with green.Timeout(WITHIN), contextlib.suppress(green.greenthread.greenlet.GreenletExit):
            self.thread.wait()


@contextlib.contextmanager
def serving(size: int = 10) -> Iterator[Serving]:
    server = Serving(size)
    try:
        yield server
    finally:
        if not server.leave.ready():
            server.leave.send()
        server.thread.kill()
        server.wait()


def answer(client: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    with green.Timeout(WITHIN):
        return b"".join(iter(lambda: client.recv(4096), b""))


def test_what_waits_for_the_pool_and_in_the_queue_is_answered() -> None:
    with serving(size=1) as server, contextlib.ExitStack() as clients:
        connected = []
        for number in range(4):
            client = clients.enter_context(contextlib.closing(green.connect(server.address)))
            client.sendall(REQUEST)
            connected.append(client)
            if number == 0:
                server.entered.wait()
        server.accepted(2)  # the second waits for room, the others are in the kernel's queue
        server.stop()
        server.leave.send()
        answers = [answer(client) for client in connected]
        server.wait()
    for text in answers:
        assert text.startswith(b"HTTP/1.1 200"), answers
        assert b"\r\nConnection: close\r\n" in text, answers


def test_the_first_request_of_a_connection_may_come_after_the_stop() -> None:
    with serving() as server, contextlib.closing(green.connect(server.address)) as client:
        server.accepted(1)
        server.leave.send()
        server.stop()
        client.sendall(REQUEST)
        text = answer(client)
        server.wait()
    assert text.startswith(b"HTTP/1.1 200")
    assert b"\r\nConnection: close\r\n" in text


def test_a_connection_that_stays_silent_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wsgi, "FIRST_REQUEST_SECONDS", 0.05)
    with serving() as server, contextlib.ExitStack() as clients:
        silent, begun = (
            clients.enter_context(contextlib.closing(green.connect(server.address)))
            for _ in range(2)
        )
        begun.sendall(b"GET / HT")
        server.accepted(2)
        server.stop()
        server.wait()
        assert answer(silent) == answer(begun) == b""


def test_a_connection_that_is_idle_after_an_answer_is_closed_at_once() -> None:
    with serving() as server, contextlib.closing(green.connect(server.address)) as client:
        server.leave.send()
        client.sendall(REQUEST)
        with green.Timeout(WITHIN):
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        # The log's line is written just before the connection is idle.
        green.sleep(0)
        server.stop()
        server.wait()
        assert answer(client) == b""


def test_a_connection_that_its_application_releases_is_closed_at_once() -> None:
    ended = event.Event()

    def site(environ: dict[str, Any], _: Any) -> list[bytes]:
        environ["eventlet.set_idle"]()
        taken = environ["eventlet.input"].get_socket()
        server.entered.send()
        with green.Timeout(WITHIN):
            ended.send(taken.recv(1))
        return wsgi.ALREADY_HANDLED

    with serving() as server, contextlib.closing(green.connect(server.address)) as client:
        server.site = site  # type: ignore[method-assign]
        client.sendall(REQUEST)
        server.entered.wait()
        server.stop()
        server.wait()
        assert ended.wait() == b""
