"""What an application may answer, and what a client gets when the application does it wrong."""

from __future__ import annotations

import io
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest
from support.raw_http import DEADLINE, Incomplete, connect, serving

from osloxide import wsgi


class Body:
    """A body that counts how often it was closed, and may fail on the way."""

    def __init__(self, *pieces: Any) -> None:
        self.pieces = iter(pieces)
        self.closed = 0
        self.was_closed = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        piece = next(self.pieces)
        if isinstance(piece, BaseException):
            raise piece
        return piece() if callable(piece) else piece

    def close(self) -> None:
        self.closed += 1
        self.was_closed.set()


def answering(body: Any, status: str = "200 OK", headers: Any = None) -> Callable[..., Any]:
    """An application that always gives this answer."""

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, [] if headers is None else list(headers))
        return body

    return app


def routed(**apps: Any) -> Callable[..., Any]:
    """An application that lets the first part of the path choose."""

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        return apps[environ["PATH_INFO"].strip("/") or "ok"](environ, start_response)

    apps.setdefault("ok", answering([b"ok"]))
    return app


# ---- bodies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [[b"hello"], [b"he", b"", b"llo"], (b"hel", b"lo"), [], ()],
    ids=["one", "several", "tuple", "empty list", "empty tuple"],
)
def test_a_body_that_is_there_as_a_whole_gets_a_length(body: Any) -> None:
    with serving(answering(body)) as server, connect(server) as connection:
        answer = connection.request()

        assert answer.one("Content-Length") == str(len(b"".join(body)))
        assert answer.body == b"".join(body)
        connection.assert_open()


def test_a_list_too_long_to_join_still_gets_a_length() -> None:
    body = [bytes([number]) * 100_000 for number in range(8)]
    with serving(answering(body)) as server, connect(server) as connection:
        answer = connection.request()

        assert answer.one("Content-Length") == "800000"
        assert answer.body == b"".join(body)
        connection.assert_open()


def test_a_list_of_single_bytes_costs_no_hundred_bytes_for_each() -> None:
    count = 1_000_000

    def peak() -> int:
        """Bytes that were resident at most since it was asked for the last time."""
        (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        Path("/proc/self/clear_refs").write_text("5")
        return int(line) * 1024

    bodies = [[b"x"] * count, [b"a", *[b"b" * 20_000] * 20, *[b"c"] * count]]
    app = routed(single=answering(bodies[0]), mixed=answering(bodies[1]))
    with serving(app) as server, connect(server) as client:
        client.request(target="/ok")
        peak()
        before = peak()
        single, mixed = (client.request(target=path).body for path in ("/single", "/mixed"))
        grown = peak() - before

    assert single == b"x" * count
    assert mixed == b"a" + b"b" * 400_000 + b"c" * count
    assert grown < 30 * count


def test_an_iterator_is_chunked_for_http_11_and_ends_the_connection_for_http_10() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"a"
        yield b"b"

    with serving(app) as server:
        with connect(server) as connection:
            answer = connection.request()
            assert answer.one("Transfer-Encoding") == "chunked"
            assert answer.body == b"ab"
            connection.assert_open()
        with connect(server) as connection:
            answer = connection.request(version="HTTP/1.0", headers={"Connection": "keep-alive"})
            assert answer.one("Transfer-Encoding") is None
            assert answer.body == b"ab"
            connection.assert_closed()


def test_each_piece_is_sent_before_the_next_one_is_asked_for() -> None:
    go_on = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        yield b"a"
        assert go_on.wait(DEADLINE)
        yield b"b"

    with serving(app) as server, connect(server) as connection:
        connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.head().status == 200
        assert connection.exactly(1) == b"a"  # while the application still waits
        go_on.set()
        assert connection.exactly(1) == b"b"
        connection.assert_open()


def test_nothing_is_sent_before_the_first_byte_of_the_body() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b""
        yield b""
        start_response("503 Later", [], (ValueError, ValueError("x"), None))
        yield b"sorry"

    with serving(app) as server, connect(server) as connection:
        answer = connection.request()

    assert (answer.status, answer.reason, answer.body) == (503, "Later", b"sorry")


def test_an_iterator_without_a_byte_is_an_empty_answer() -> None:
    body = Body(b"", b"")
    with serving(routed(it=answering(body))) as server, connect(server) as connection:
        answer = connection.request("GET", "/it")

        assert (answer.status, answer.one("Content-Length")) == (200, "0")
        assert connection.request("GET", "/ok").body == b"ok"
    assert body.closed == 1


def test_write_sends_before_the_returned_body() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [])
        write(b"a")
        write(b"")
        write(b"b")
        return [b"c"]

    with serving(validator(app_with_type(app))) as server, connect(server) as connection:
        assert connection.request().body == b"abc"
        connection.assert_open()


def app_with_type(app: Any) -> Any:
    """The validator insists on a content type."""

    def wrapped(environ: dict[str, Any], start_response: Any) -> Any:
        def start(status: str, headers: Any, *exc_info: Any) -> Any:
            return start_response(status, [*headers, ("Content-Type", "a/b")], *exc_info)

        return app(environ, start)

    return wrapped


def test_file_wrapper_sends_the_file_and_closes_it(tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(300_000))
    opened: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "300000")])
        opened.append(path.open("rb"))
        return environ["wsgi.file_wrapper"](opened[-1], 4096)

    with serving(app) as server, connect(server) as connection:
        assert connection.request().body == path.read_bytes()
        connection.assert_open()
    assert opened[0].closed


def test_file_wrapper_takes_anything_that_can_be_read() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](io.BytesIO(b"x" * 100))

    with serving(app) as server, connect(server) as connection:
        assert connection.request().body == b"x" * 100


# ---- heads -------------------------------------------------------------------------------------


def test_status_reason_and_headers_arrive_as_given() -> None:
    headers = [("X-A", "1"), ("Set-Cookie", "a"), ("Set-Cookie", "b"), ("X-L", "caf\u00e9")]
    with (
        serving(answering([b""], "299 Strange Thing", headers)) as server,
        connect(server) as connection,
    ):
        answer = connection.request()

    assert (answer.status, answer.reason) == (299, "Strange Thing")
    assert answer.all("Set-Cookie") == ["a", "b"]
    assert answer.one("X-A") == "1"
    assert answer.one("X-L") == "caf\u00e9"
    assert answer.one("Date")


BAD_HEADS: dict[str, tuple[Any, Any]] = {
    "lf in value": ("200 OK", [("X-A", "a\nSet-Cookie: evil=1")]),
    "crlf in value": ("200 OK", [("X-A", "a\r\n\r\nevil")]),
    "cr in value": ("200 OK", [("X-A", "a\revil")]),
    "nul in value": ("200 OK", [("X-A", "a\0evil")]),
    "crlf in name": ("200 OK", [("X-A\r\nevil", "a")]),
    "colon in name": ("200 OK", [("X-A:evil", "a")]),
    "empty name": ("200 OK", [("", "evil")]),
    "crlf in status": ("200 OK\r\nevil: 1", []),
    "nul in status": ("200 O\0evil", []),
    "interim status": ("100 Continue", []),
    "switching": ("101 Switching Protocols", []),
    "no status": ("evil", []),
    "long status": ("2000 OK", []),
    "status of bytes": (b"200 OK", []),
    "status of int": (200, []),
    "headers of tuple": ("200 OK", (("X-A", "a"),)),
    "headers of dict": ("200 OK", {"X-A": "a"}),
    "header of list": ("200 OK", [["X-A", "a"]]),
    "header of one": ("200 OK", [("X-A",)]),
    "value of bytes": ("200 OK", [("X-A", b"a")]),
    "value of int": ("200 OK", [("Content-Length", 1)]),
    "value outside latin-1": ("200 OK", [("X-A", "\u20ac")]),
    "connection": ("200 OK", [("Connection", "keep-alive")]),
    "transfer-encoding": ("200 OK", [("Transfer-Encoding", "chunked")]),
    "keep-alive": ("200 OK", [("keep-alive", "timeout=5")]),
    "upgrade": ("200 OK", [("UPGRADE", "h2c")]),
    "trailer": ("200 OK", [("Trailer", "X")]),
    "negative length": ("200 OK", [("Content-Length", "-1")]),
    "signed length": ("200 OK", [("Content-Length", "+1")]),
    "two lengths": ("200 OK", [("Content-Length", "1"), ("Content-Length", "2")]),
}


@pytest.mark.parametrize("given", BAD_HEADS.values(), ids=BAD_HEADS)
def test_a_head_that_could_mislead_is_refused_as_a_whole(
    given: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    status, headers = given

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status, headers)
        return [b"x"]

    with serving(app) as server, connect(server) as connection:
        connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        received = connection.rest()

    assert received.startswith(b"HTTP/1.1 500 ")
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"evil" not in received
    assert any(record.exc_info for record in caplog.records if record.levelno == logging.ERROR)


def test_the_application_hears_what_is_wrong_with_its_head() -> None:
    heard: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        for status, headers in BAD_HEADS.values():
            with pytest.raises((ValueError, TypeError)) as raised:
                start_response(status, headers)
            heard.append(raised.value)
        start_response("200 OK", [])
        return [b"fine"]

    with serving(app) as server, connect(server) as connection:
        assert connection.request().body == b"fine"
    assert len(heard) == len(BAD_HEADS)
    assert all(str(error) for error in heard)


# ---- bodies where none may be, and lengths that lie ----------------------------------------------


@pytest.mark.parametrize("pieces", [[b"a body"], iter([b"a ", b"body"])], ids=["list", "iterator"])
@pytest.mark.parametrize(
    ("method", "status"),
    [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Not Modified")],
)
def test_no_body_follows_where_http_allows_none(method: str, status: str, pieces: Any) -> None:
    body = Body(*pieces) if not isinstance(pieces, list) else pieces
    app = routed(it=answering(body, status))
    with serving(app) as server, connect(server) as connection:
        answer = connection.request(method, "/it")

        assert answer.status == int(status[:3])
        assert answer.one("Transfer-Encoding") is None
        assert connection.request("GET", "/ok").body == b"ok"


def test_no_content_has_no_length() -> None:
    app = answering([], "204 No Content", [("Content-Length", "0")])
    with serving(app) as server, connect(server) as connection:
        assert connection.request().one("Content-Length") is None


def test_head_tells_the_length_of_the_get() -> None:
    given = answering([], headers=[("Content-Length", "77")])
    app = routed(given=given, body=answering([b"12345"]))
    with serving(app) as server, connect(server) as connection:
        assert connection.request("HEAD", "/given").one("Content-Length") == "77"
        assert connection.request("HEAD", "/body").one("Content-Length") == "5"
        assert connection.request("GET", "/ok").body == b"ok"


@pytest.mark.parametrize("kind", ["list", "iterator", "write"])
def test_a_body_shorter_than_promised_cuts_the_connection(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = lengthy(kind, "10", b"12345")
    with serving(app) as server, connect(server) as connection:
        connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /ok HTTP/1.1\r\nHost: x\r\n\r\n")
        head = connection.head()
        rest = connection.rest()

    assert head.one("Content-Length") == "10"
    assert b"12345".startswith(rest)
    assert "5 of the 10 bytes" in caplog.text


@pytest.mark.parametrize("kind", ["list", "iterator", "write"])
def test_a_body_longer_than_promised_is_cut_and_leaks_into_nothing(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = lengthy(kind, "3", b"12345HTTP/1.1 200 OK\r\n")
    with serving(app) as server, connect(server) as connection:
        connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /ok HTTP/1.1\r\nHost: x\r\n\r\n")

        assert connection.answer().body == b"123"
        connection.assert_closed()
    assert "more than the 3 bytes" in caplog.text


def lengthy(kind: str, length: str, body: bytes) -> Callable[..., Any]:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", [("Content-Length", length)])
        if kind == "write":
            write(body[:2])
            write(body[2:])
            return []
        return [body] if kind == "list" else iter([body[:2], body[2:]])

    return app


# ---- applications that fail -------------------------------------------------------------------


class Failure(Exception):
    pass


@pytest.mark.parametrize("error", [Failure, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_failing_application_is_a_500_and_the_next_request_is_served(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("X-Half", "done")])
        raise error("secret")

    with serving(routed(bad=app)) as server:
        with connect(server) as connection:
            answer = connection.request("GET", "/bad")
            connection.assert_closed()
        with connect(server) as connection:
            assert connection.request().body == b"ok"

    assert (answer.status, answer.body) == (500, b"")
    assert answer.one("X-Half") is None
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.name == "eventlet.wsgi.server"
    assert "GET /bad" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is error


def test_the_traceback_reaches_the_client_only_when_debugging() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        raise Failure("secret")

    for is_debugging in (True, False):
        with (
            serving(app, options={"wsgi_server_debug": is_debugging}) as server,
            connect(server) as connection,
        ):
            answer = connection.request()
        assert (b"secret" in answer.body) is is_debugging
        assert (b"Traceback" in answer.body) is is_debugging


@pytest.mark.parametrize(
    "result",
    [None, 7, "text", ["text"], [b"ok", "text"], [None], [bytearray(b"x")], [7]],
    ids=repr,
)
def test_a_result_that_is_no_iterable_of_bytes_is_a_500(result: Any) -> None:
    with serving(answering(result)) as server, connect(server) as connection:
        answer = connection.request()

        assert (answer.status, answer.body) == (500, b"")
        connection.assert_closed()


@pytest.mark.parametrize("pieces", [[b"x"], [], iter([b"x"]), iter([])], ids=repr)
def test_an_application_that_never_starts_a_response_is_a_500(pieces: Any) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        return pieces

    with serving(app) as server, connect(server) as connection:
        assert connection.request().status == 500
        connection.assert_closed()


def test_start_response_may_come_with_the_first_piece() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("201 Made", [])
        yield b"late"

    with serving(app) as server, connect(server) as connection:
        answer = connection.request()

    assert (answer.status, answer.body) == (201, b"late")


def test_a_second_start_response_is_an_error() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        with pytest.raises(AssertionError):
            start_response("404 Not Found", [])
        return [b"first"]

    with serving(app) as server, connect(server) as connection:
        answer = connection.request()

    assert (answer.status, answer.body) == (200, b"first")


def test_an_error_handler_replaces_a_head_that_was_not_sent() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X-A", "1")])
        start_response("500 Oops", [("X-B", "2")], (Failure, Failure("x"), None))
        return [b"oops"]

    with serving(app) as server, connect(server) as connection:
        answer = connection.request()

        assert (answer.status, answer.reason, answer.body) == (500, "Oops", b"oops")
        assert (answer.one("X-A"), answer.one("X-B")) == (None, "2")
        connection.assert_open()


def test_an_error_handler_gets_its_error_back_once_the_head_is_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"some"
        try:
            raise Failure("original")
        except Failure as error:
            start_response("500 Oops", [], (Failure, error, error.__traceback__))
        yield b"never"

    with serving(app) as server, connect(server) as connection:
        connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.head()
        with pytest.raises(Incomplete):
            list(connection.chunks())
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert str(record.exc_info[1]) == "original"


def test_an_error_after_the_head_cuts_the_answer_recognisably() -> None:
    body = Body(b"some", Failure("x"))
    with serving(answering(body)) as server, connect(server) as connection:
        connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.head()
        with pytest.raises(Incomplete):
            list(connection.chunks())
    assert body.closed == 1


# ---- close() ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        lambda: Body(b"a"),
        lambda: Body(b"a", b"b"),
        lambda: Body(),
        lambda: Body(Failure("first")),
        lambda: Body(b"a", Failure("second")),
        lambda: Body("text"),
        lambda: Body(b"a", "text"),
        lambda: Body(b"a", SystemExit()),
    ],
    ids=["one", "two", "none", "fails", "fails late", "text", "late text", "exits"],
)
@pytest.mark.parametrize("head", ["200 OK", "204 No Content", "bad"])
def test_close_is_called_exactly_once(body: Callable[[], Body], head: str) -> None:
    made: list[Body] = []

    def app(environ: dict[str, Any], start_response: Any) -> Body:
        made.append(body())
        if head != "bad":
            start_response(head, [])
        return made[-1]

    with serving(app) as server, connect(server) as connection:
        connection.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        connection.rest()
        assert made[0].was_closed.wait(DEADLINE)
    assert [body.closed for body in made] == [1]


def test_close_of_a_single_piece_with_a_length_is_called() -> None:
    class Sized(Body):
        def __len__(self) -> int:
            return 1

    body = Sized(b"whole")
    with serving(answering(body)) as server, connect(server) as connection:
        answer = connection.request()

        assert (answer.one("Content-Length"), answer.body) == ("5", b"whole")
    assert body.closed == 1


def test_a_close_that_fails_harms_neither_answer_nor_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stubborn(Body):
        def close(self) -> None:
            raise Failure("will not close")

    with serving(routed(it=answering(Stubborn(b"fine")))) as server, connect(server) as connection:
        assert connection.request("GET", "/it").body == b"fine"
        assert connection.request("GET", "/ok").body == b"ok"
    assert "will not close" in caplog.text


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("HEAD / HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n\r\n", 413),
        ("HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ("HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        ("HEAD / HTTP/1.1\r\n\r\n", 400),
        ("HEAD / HTTP/3.1\r\nHost: x\r\n\r\n", 505),
        (f"HEAD /{'x' * 9000} HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        ("HEAD / HTTP/1.1\r\nHost: x\r\n" + "X: 1\r\n" * 101 + "\r\n", 431),
        ("HEAD /hang HTTP/1.1\r\nHost: x\r\n\r\n", 504),
        ("HEAD /fail HTTP/1.0\r\n\r\n", 500),
    ],
)
def test_an_answer_of_the_servers_own_to_head_has_no_body(
    monkeypatch: pytest.MonkeyPatch, head: str, status: int
) -> None:
    end = time.monotonic() + DEADLINE

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/fail":
            raise ValueError("as asked")
        while time.monotonic() < end:
            time.sleep(0.01)
        return []

    monkeypatch.setattr(wsgi.Server, "max_body", 100)
    monkeypatch.setattr(wsgi.Server, "request_timeout", 0.2)
    with serving(app) as server, connect(server) as connection:
        connection.send(head)

        assert connection.answer("HEAD").status == status
        assert connection.rest() == b""


@pytest.mark.parametrize("fails", ["raises", "ends_early"])
def test_an_answer_that_breaks_off_reaches_its_client_also_where_a_body_is_unread(
    fails: str,
) -> None:
    """A socket that is closed with unread bytes is reset, and what was sent is lost with it."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "10")])
        yield b"part"
        if fails == "raises":
            raise ValueError("on purpose")

    with serving(application) as server:
        for size in (1, 5_000, 60_000, 1_000_000):
            with connect(server) as connection:
                head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
                connection.send(head.encode() + size * b"x")
                # A reset would raise here.
                received = b"".join(iter(lambda: connection.socket.recv(65536), b""))
            assert received.endswith(b"\r\n\r\npart")
