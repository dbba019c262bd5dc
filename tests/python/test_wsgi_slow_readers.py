"""Clients that take or send slowly hold no thread that others need, and get what they asked for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.raw_http import Connection, configuration, connect, serving
from support.tls import TLSConnection, tls_configuration
from waiting import until

from osloxide import wsgi

POOL = 4
BODY = bytes(range(256)) * 12_000  # 3 MB: more than kernels buffer for a client that does not read


def app(environ: dict[str, Any], start_response: Any) -> Any:
    path = environ["PATH_INFO"]
    length = [("Content-Length", str(len(BODY)))]
    if path == "/ok":
        start_response("200 OK", [])
        return [b"ok"]
    if path == "/whole":
        start_response("200 OK", [])
        return [BODY]
    if path == "/pieces":
        start_response("200 OK", [])
        return [BODY[:1000], BODY[1000:2_000_000], BODY[2_000_000:]]
    if path == "/iterator":  # as Django's answers: one item, no length
        start_response("200 OK", [])
        return iter([BODY])
    if path == "/declared":  # as Flask's: one item, its length declared
        start_response("200 OK", length)
        return iter([BODY])
    if path == "/write":
        start_response("200 OK", length)(BODY)
        return []
    if path == "/read":
        size = len(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return [str(size).encode()]
    if path == "/two":
        start_response("200 OK", [])
        return iter([BODY, BODY])
    start_response("200 OK", [])
    return iter(lambda: BODY, None)  # for ever


@contextlib.contextmanager
def serving_over(
    scheme: str, kind: type[wsgi.Server] = wsgi.Server, **options: object
) -> Iterator[wsgi.Server]:
    conf = tls_configuration() if scheme == "https" else configuration()
    for name, value in options.items():
        conf.set_override(name, value)
    with serving(app, conf=conf, kind=kind, use_ssl=scheme == "https", pool_size=POOL) as server:
        yield server


def kind_with(**attributes: object) -> type[wsgi.Server]:
    """A server of which *attributes* of the class are different."""
    return type("Server", (wsgi.Server,), attributes)


def slow(server: wsgi.Server, scheme: str) -> Connection:
    kind = TLSConnection if scheme == "https" else Connection
    return kind((server.host, server.port), 4096)


def assert_others_are_served(server: wsgi.Server, scheme: str) -> None:
    kind = TLSConnection if scheme == "https" else Connection
    for _ in range(3 * POOL):
        with kind((server.host, server.port)) as other:
            assert other.request("GET", "/ok").body == b"ok"


def busy(server: wsgi.Server) -> int:
    return sum(engine.stats()["busy"] for engine in server._engines)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize("path", ["/whole", "/pieces", "/iterator", "/declared", "/write"])
def test_a_finished_answer_needs_no_thread(path: str, version: str, scheme: str) -> None:
    with serving_over(scheme) as server, ExitStack() as stack:
        clients = [stack.enter_context(slow(server, scheme)) for _ in range(3 * POOL)]
        for client in clients:
            client.send(f"GET {path} {version}\r\nHost: x\r\n\r\n")
            assert client.head().status == 200
        assert_others_are_served(server, scheme)

        assert until(lambda: busy(server) == 0), "threads wait for clients"
        if path != "/pieces":
            assert sum(engine.stats()["unsent"] for engine in server._engines) > 0
        for client in clients[:3]:
            if version == "HTTP/1.0" or path in ("/whole", "/pieces", "/declared", "/write"):
                body = client.exactly(len(BODY))
            else:
                body = b"".join(client.chunks())
            assert body == BODY


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_more_slow_readers_than_there_is_memory_for_hold_no_thread_that_others_need(
    scheme: str,
) -> None:
    # Thirty of these answers fit into it, and there are three hundred.
    most = 30 * len(BODY)
    with serving_over(scheme, kind=kind_with(max_unsent=most)) as server, ExitStack() as stack:
        for _ in range(300):
            client = stack.enter_context(slow(server, scheme))
            client.send("GET /whole HTTP/1.1\r\nHost: x\r\n\r\n")

        assert_others_are_served(server, scheme)

        assert 0 < sum(engine.stats()["unsent"] for engine in server._engines) <= most


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_slow_readers_beyond_the_memory_for_them_are_kept_while_no_other_needs_a_thread(
    scheme: str,
) -> None:
    with serving_over(scheme, kind=kind_with(max_unsent=len(BODY))) as server, ExitStack() as stack:
        clients = [stack.enter_context(slow(server, scheme)) for _ in range(POOL)]
        for client in clients:
            client.send("GET /whole HTTP/1.1\r\nHost: x\r\n\r\n")
            client.head()

        assert [client.exactly(len(BODY)) for client in clients] == [BODY] * POOL


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_streams_to_slow_readers_hold_no_more_than_their_share_of_the_pool(scheme: str) -> None:
    with serving_over(scheme) as server, ExitStack() as stack:
        for _ in range(3 * POOL):
            client = stack.enter_context(slow(server, scheme))
            client.send("GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")

        assert_others_are_served(server, scheme)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_slow_senders_hold_no_more_than_their_share_of_the_pool(scheme: str) -> None:
    with serving_over(scheme) as server, ExitStack() as stack:
        clients = [stack.enter_context(slow(server, scheme)) for _ in range(3 * POOL)]
        for client in clients:
            client.send("POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n")
            client.send(b"x" * 70_000)

        assert_others_are_served(server, scheme)

        assert until(lambda: busy(server) == POOL // 2)
        for client in clients:  # the first hold threads, and none was cut off for the others
            client.send(b"x" * 130_000)
            assert client.answer().body == b"200000"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("path", ["/whole", "/iterator"])
def test_a_reader_that_pauses_gets_everything(path: str, scheme: str) -> None:
    with serving_over(scheme) as server, slow(server, scheme) as client:
        client.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = client.head()
        received = bytearray()
        if answer.one("Content-Length"):
            # A little at a time, so that the server finds the kernel's buffer full again and again.
            while len(received) < len(BODY):
                received += client.exactly(min(7_000, len(BODY) - len(received)))
        else:
            for chunk in client.chunks():
                received += chunk

        assert received == BODY
        assert client.request("GET", "/ok").body == b"ok"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("path", "length"), [("/whole", len(BODY)), ("/two", 2 * len(BODY))])
def test_a_reader_that_takes_little_for_longer_than_the_timeout_gets_everything(
    path: str, length: int, scheme: str
) -> None:
    # So little that the kernel never asks the server for more in that time; over TLS nothing leaves
    # the kernel's buffer until a whole record (16 KiB) has been asked for.
    little = 16_000 if scheme == "https" else 2_000
    pace = threading.Event()
    with (
        serving_over(scheme, client_socket_timeout=2) as server,
        slow(server, scheme) as client,
    ):
        client.send(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n")
        client.head()
        received = bytearray()
        for _ in range(30):
            received += client.exactly(little)
            pace.wait(0.1)
        while len(received) < length:
            received += client.exactly(min(100_000, length - len(received)))

        assert received == BODY * (length // len(BODY))


def test_a_slow_reader_holds_its_memory_only_until_it_is_gone() -> None:
    with serving_over("http") as server:
        client = slow(server, "http")
        client.send("GET /whole HTTP/1.1\r\nHost: x\r\n\r\n")
        client.head()
        engine = server._engines[0]
        assert until(lambda: engine.stats()["unsent"] > 1_000_000)

        client.reset()

        assert until(lambda: engine.stats()["unsent"] == 0)
        assert until(lambda: engine.stats()["connections"] == 0)


def test_requests_behind_an_answer_that_is_taken_slowly_are_answered_in_order() -> None:
    with serving_over("http") as server, slow(server, "http") as client:
        client.send("GET /whole HTTP/1.1\r\nHost: x\r\n\r\nGET /ok HTTP/1.1\r\nHost: x\r\n\r\n" * 3)

        for _ in range(3):
            assert client.answer().body == BODY
            assert client.answer().body == b"ok"


def test_one_pipeline_does_not_keep_others_waiting() -> None:
    request = b"GET /ok HTTP/1.1\r\nHost: x\r\n\r\n"
    stop = threading.Event()

    def pipeline(server: wsgi.Server) -> None:
        with connect(server) as client:
            while not stop.is_set():
                client.send(request * 200)
                for _ in range(200):
                    client.answer()

    with serving_over("http") as server:
        threads = [threading.Thread(target=pipeline, args=(server,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                with connect(server) as other:
                    assert other.request("GET", "/ok").body == b"ok"
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("size", [100, 200_000, 8_000_000])
@pytest.mark.parametrize("framing", ["counted", "chunked"])
def test_an_answer_is_seen_by_a_client_that_sends_its_whole_body_first(
    framing: str, size: int, scheme: str
) -> None:
    # As http.client does, and nginx in front: what arrives at a closed socket would reset it.
    head = f"Content-Length: {size}" if framing == "counted" else "Transfer-Encoding: chunked"
    body = b"x" * size
    if framing == "chunked":
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (size, body)
    kind = TLSConnection if scheme == "https" else Connection
    with serving_over(scheme) as server, kind((server.host, server.port)) as client:
        client.send(f"POST /ok HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n")
        client.send(body)

        assert client.answer().body == b"ok"
