"""What a client or an application may ask for without end, and where the server stops."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.raw_http import DEADLINE, Connection, configuration, connect, serving
from waiting import until

from osloxide import wsgi


def plain(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [environ["PATH_INFO"].encode("latin-1"), b"?", environ["QUERY_STRING"].encode("latin-1")]


def stats(server: wsgi.Server) -> dict[str, int]:
    return server._engines[0].stats()


def test_the_connection_that_is_idle_for_longest_is_closed_for_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wsgi.Server, "max_connections", 20)
    with serving(plain) as server, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(server)) for _ in range(60)]

        # Every one of these is accepted and answered, and no descriptor is taken for it in vain.
        for _ in range(5):
            with connect(server) as client:
                assert client.request("GET", "/").status == 200
        assert stats(server)["connections"] <= 20
        silent[0].assert_closed()


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nslow",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nsl",
        b"BROKEN\r\n\r\n",
    ],
    ids=["head", "body", "chunk", "ended"],
)
def test_clients_that_do_not_end_their_requests_keep_no_other_out(
    monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(wsgi.Server, "max_connections", 20)
    with serving(plain) as server, contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(server)).send(beginning)

        with connect(server) as client:
            assert client.request("GET", "/").status == 200
        assert stats(server)["connections"] <= 20


def test_what_is_told_at_the_bound_is_true_of_silent_clients(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wsgi.Server, "max_connections", 5)
    told = "as many connections are open as may be, and none of them gives way yet; new ones wait"
    with serving(plain) as server, contextlib.ExitStack() as stack:
        # They have been idle for too short a time to give way.
        for _ in range(60):
            stack.enter_context(connect(server))
        assert until(lambda: told in caplog.text)
        with connect(server) as client:
            assert client.request("GET", "/").status == 200


@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_clients_that_do_not_take_their_answers_keep_no_other_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setattr(wsgi.Server, "max_connections", 12)
    # More than the kernel holds for a client, and less than max_unsent for all of them together.
    body = b"x" * (8 << 20)
    (tmp_path / "large").write_bytes(body)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/short":
            return plain(environ, start_response)
        start_response("200 OK", [])
        if kind == "bytes":
            return [body]
        return environ["wsgi.file_wrapper"]((tmp_path / "large").open("rb"))

    with serving(app) as server, contextlib.ExitStack() as stack:
        for _ in range(12):
            address = (server.host, server.port)
            client = stack.enter_context(Connection(address, receive_buffer=2048))
            client.send("GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        assert until(lambda: stats(server)["connections"] == 12)

        with connect(server) as client:
            assert client.request("GET", "/short").status == 200
        # One of them gave way, and no more than that.
        assert until(lambda: stats(server)["connections"] == 11), stats(server)


def test_connections_are_accepted_as_they_can_be_served() -> None:
    may_end = threading.Event()

    def waits(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        may_end.wait(DEADLINE)
        return plain(environ, start_response)

    pool = 2
    with serving(waits, pool_size=pool) as server, contextlib.ExitStack() as stack:
        stack.callback(may_end.set)
        clients = []
        for _ in range(60):
            client = stack.enter_context(connect(server))
            client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            clients.append(client)
        assert until(lambda: stats(server)["busy"] == pool)
        assert until(lambda: stats(server)["queued"] >= pool)

        # The rest is the kernel's, and would be another worker's if this one died.
        assert stats(server)["connections"] <= 10 * pool
        may_end.set()
        assert {client.answer().status for client in clients} == {200}


class Yields:
    """An iterable without end that counts what it was asked for and when it was closed."""

    def __init__(self) -> None:
        self.asked = 0
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        for self.asked in itertools.count(1):
            yield b"0123456789"

    def close(self) -> None:
        self.closed.set()


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize(
    ("method", "headers"),
    [("GET", [("Content-Length", "10")]), ("HEAD", []), ("HEAD", [("Content-Length", "10")])],
)
def test_an_application_is_not_asked_on_for_what_cannot_be_sent(
    method: str, headers: list[tuple[str, str]], version: str
) -> None:
    body = Yields()

    def app(environ: dict[str, Any], start_response: Any) -> Yields:
        start_response("200 OK", headers)
        return body

    with serving(app) as server, connect(server) as client:
        answer = client.request(method, "/", version=version)

        assert answer.body == (b"0123456789" if method == "GET" else b"")
        assert body.closed.wait(DEADLINE)
        assert body.asked <= 3


@pytest.mark.parametrize(("method", "headers"), [("GET", [("Content-Length", "0")]), ("HEAD", [])])
def test_an_application_that_promises_nothing_is_not_asked_for_ever(
    method: str, headers: list[tuple[str, str]]
) -> None:
    asked = 0
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        nonlocal asked
        try:
            while True:
                asked += 1
                yield b""
        finally:
            ended.set()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", headers)
        return nothing()

    with serving(app) as server, connect(server) as client:
        assert client.request(method).body == b""
        assert ended.wait(DEADLINE)
        assert asked < 1000
        assert client.request(method).status == 200  # and the connection stays


def test_an_application_that_keeps_its_word_comes_to_its_end() -> None:
    ended = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "5")])
        yield b"hello"
        yield b""
        ended.set()

    with serving(app) as server, connect(server) as client:
        for _ in range(3):
            assert client.request("GET", "/").body == b"hello"
            assert ended.wait(DEADLINE)


def test_write_beyond_the_declared_length_raises() -> None:
    raised: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "5")])
        write(b"hello")
        try:
            write(b"more")
        except ValueError as error:
            raised.append(error)
        return []

    with serving(app) as server, connect(server) as client:
        assert client.request("GET", "/").body == b"hello"
    assert "Content-Length" in str(raised[0])


@pytest.mark.parametrize(
    "target",
    [
        '/env?metadata={"k":"v"}',
        "/a<b>c",
        "/x?`<|>^\\`",
        "/\xe9\xff\x80?\xfe",
        "/caf\xc3\xa9",
        "/a[1]?b[]=c|d",
        "/a//b/./../c?d?e",
    ],
)
def test_characters_that_clients_send_unescaped_reach_the_application_as_they_came(
    target: str,
) -> None:
    with serving(plain) as server, connect(server) as client:
        answer = client.request("GET", target)

    path, _, query = target.partition("?")
    assert answer.status == 200
    assert answer.body == f"{path}?{query}".encode("latin-1")


@pytest.mark.parametrize("target", ["http:///", "h:443", "http://a:b/", "/a#b", "/a?b#c", "x", "*"])
def test_targets_that_mean_no_resource_are_refused_and_logged(
    target: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(plain) as server, connect(server) as client:
        answer = client.request("GET", target)
        assert answer.status == 400
        assert until(lambda: f'"GET {target} HTTP/1.1" status: 400' in caplog.text)


@pytest.mark.parametrize("version", ["HTTP/1.2", "HTTP/1.9"])
def test_later_minor_versions_are_served_as_http_1_1(version: str) -> None:
    with serving(plain) as server, connect(server) as client:
        answer = client.request("GET", "/", version=version)
        assert (answer.version, answer.status) == ("HTTP/1.1", 200)
        client.assert_open()


@pytest.mark.parametrize(
    "request_bytes",
    [
        "BROKEN\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n",
        "GET /" + "a" * 9000 + " HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nX: " + "a" * 20000 + "\r\n\r\n",
        "GET / HTTP/3.0\r\nHost: x\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
def test_the_servers_own_answers_have_a_date(request_bytes: str) -> None:
    with serving(plain) as server, connect(server) as client:
        client.send(request_bytes)
        answer = client.answer()

    assert answer.status >= 400
    assert answer.one("Date")
    assert answer.one("Connection") == "close"


def test_http_1_0_is_kept_alive_only_where_a_length_delimits_the_answer() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return [b"known"] if environ["PATH_INFO"] == "/known" else iter([b"un", b"known"])

    keep = {"Connection": "keep-alive"}
    with serving(app) as server, connect(server) as client:
        known = client.request("GET", "/known", keep, version="HTTP/1.0")
        unknown = client.request("GET", "/unknown", keep, version="HTTP/1.0")

    assert (known.one("Connection"), known.body) == ("keep-alive", b"known")
    assert (unknown.one("Connection"), unknown.body) == ("close", b"unknown")


@pytest.mark.parametrize("kind", ["whole", "stream"])
def test_the_log_says_what_was_taken_of_an_answer_that_was_cut_off(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    size = 50_000_000
    body = bytes(size)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(size))])
        return [body] if kind == "whole" else (body[n : n + 65536] for n in range(0, size, 65536))

    caplog.set_level(logging.INFO)
    with serving(app) as server:
        client = connect(server)
        client.send("GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        client.head()
        client.exactly(1000)
        client.reset()

        assert until(lambda: "/big" in caplog.text)
    (line,) = [record.getMessage() for record in caplog.records if "/big" in record.getMessage()]
    taken = int(line.split("len: ")[1].split()[0])
    assert 1000 <= taken < size
    assert line.endswith("(cut off)")


def test_an_answer_with_absurdly_many_headers_is_a_failure_and_no_panic() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        count = 40_000 if environ["PATH_INFO"] == "/many" else 2
        start_response("200 OK", [(f"X-{number}", "x") for number in range(count)])
        return [b"ok"]

    with serving(app) as server:
        with connect(server) as client:
            assert client.request("GET", "/many").status == 500
        with connect(server) as client:
            assert client.request("GET", "/few").body == b"ok"


def test_start_response_takes_its_arguments_by_name() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status="200 OK", response_headers=[("X-A", "b")], exc_info=None)
        return [b"ok"]

    with serving(app) as server, connect(server) as client:
        assert client.request("GET", "/").one("X-A") == "b"


def test_a_timeout_beyond_all_clocks_is_refused_with_the_option() -> None:
    conf = configuration(client_socket_timeout=10**12)

    with pytest.raises(ValueError, match=r"client_socket_timeout is 10{12}; give at most"):
        wsgi.Server(conf, "test", plain)


@pytest.mark.parametrize("size", [100, 9_000, 65_536, 65_537, 1_000_000, 20_000_000])
def test_a_large_body_is_read_into_its_place(size: int) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        read = environ["wsgi.input"].read
        first = read(70_000)
        rest = read()
        start_response("200 OK", [])
        return [f"{len(first)} {len(rest)} {(first + rest).count(b'x')} {read()!r}".encode()]

    with serving(app) as server, connect(server) as client:
        answer = client.request("POST", "/", body=b"x" * size)

    first = min(size, 70_000)
    assert answer.body == f"{first} {size - first} {size} b''".encode()


def test_a_large_body_that_breaks_off_raises() -> None:
    raised: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(error)
        start_response("200 OK", [])
        return [b"never seen"]

    with serving(app) as server:
        client = connect(server)
        client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n")
        client.send(b"x" * 1_000_000)
        client.close()
        assert until(lambda: raised != [])
    assert isinstance(raised[0], ConnectionResetError)


def test_bodies_that_follow_each_other_are_not_mixed_up() -> None:
    sizes = [65_536, 1, 8_192, 40_000, 0, 65_537, 300_000, 20_000]

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read()
        start_response("200 OK", [])
        return [b"%d %d" % (len(body), body.count(environ["PATH_INFO"][1:].encode()))]

    with serving(app) as server, connect(server) as client:
        head = "POST /%c HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        client.send(
            b"".join(
                (head % (97 + at, size)).encode() + bytes([97 + at]) * size
                for at, size in enumerate(sizes)
            )
        )
        answers = [client.answer().body for _ in sizes]

    assert answers == [b"%d %d" % (size, size) for size in sizes]
