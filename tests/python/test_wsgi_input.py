"""wsgi.input: a body arrives whole, or the application hears that it did not."""

from __future__ import annotations

import itertools
import logging
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest
from support.raw_http import DEADLINE, Connection, connect, serving
from waiting import until

LINES = b"first\nsecond\n\nlast without end"


class Reader:
    """An application that reads its input in one way and puts what came of it on record."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self.read = read
        self.seen: queue.Queue[Any] = queue.Queue()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            self.seen.put(self.read(environ["wsgi.input"]))
        except Exception as error:
            self.seen.put(error)
            raise
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"read"]

    def outcome(self) -> Any:
        return self.seen.get(timeout=DEADLINE)


WAYS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "read()": (lambda file: file.read(), LINES),
    "read(-1)": (lambda file: file.read(-1), LINES),
    "read(None)": (lambda file: file.read(None), LINES),
    "read(0)": (lambda file: file.read(0), b""),
    "read(3) twice": (lambda file: [file.read(3), file.read(3)], [b"fir", b"st\n"]),
    "read(1) to the end": (lambda file: b"".join(iter(lambda: file.read(1), b"")), LINES),
    "read beyond": (lambda file: [file.read(1000), file.read(1000)], [LINES, b""]),
    "readline()": (lambda file: [file.readline() for _ in range(5)],
                   [b"first\n", b"second\n", b"\n", b"last without end", b""]),
    "readline(3)": (lambda file: [file.readline(3) for _ in range(3)], [b"fir", b"st\n", b"sec"]),
    "readline(0)": (lambda file: [file.readline(0), file.readline()], [b"", b"first\n"]),
    "readline(-1)": (lambda file: file.readline(-1), b"first\n"),
    "readlines()": (lambda file: file.readlines(), LINES.splitlines(keepends=True)),
    "readlines(7)": (lambda file: file.readlines(7), [b"first\n", b"second\n"]),
    "iteration": (list, LINES.splitlines(keepends=True)),
    "next": (next, b"first\n"),
    "mixed": (lambda file: [file.read(2), file.readline(), next(file), file.read()],
              [b"fi", b"rst\n", b"second\n", b"\nlast without end"]),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("framing", ["length", "chunked", "small chunks", "byte by byte"])
def test_every_way_to_read_gives_the_body(way: tuple[Any, Any], framing: str) -> None:
    read, expected = way
    app = Reader(read)
    with serving(app) as server, connect(server) as connection:
        if framing == "length":
            answer = connection.request("POST", "/", {}, LINES)
        elif framing == "byte by byte":
            head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(LINES)}\r\n\r\n"
            for byte in head.encode() + LINES:
                connection.send(bytes([byte]))
            answer = connection.answer()
        else:
            size = len(LINES) if framing == "chunked" else 2
            answer = connection.request("POST", "/", CHUNKED, chunked(LINES, size))

        assert app.outcome() == expected
        assert answer.body == b"read"
        assert connection.request("POST", "/", {}, LINES).status == 200  # no byte was left behind


CHUNKED = {"Transfer-Encoding": "chunked"}


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def test_a_request_without_a_body_has_an_empty_input() -> None:
    app = Reader(lambda file: [file.read(), file.read(5), file.readline(), file.readlines(), *file])
    with serving(app) as server, connect(server) as connection:
        connection.request()
        connection.request("POST", headers={"Content-Length": "0"})

        assert app.outcome() == app.outcome() == [b"", b"", b"", []]


def test_a_validator_has_nothing_to_say_about_the_input() -> None:
    app = Reader(lambda file: [file.read(4), file.readline(), file.readlines(), file.read(1)])
    with serving(validator(app)) as server, connect(server) as connection:
        assert connection.request("POST", "/", {}, LINES).status == 200


def test_a_body_of_many_megabytes_streams_through() -> None:
    block = bytes(range(256)) * 4096

    def total(file: Any) -> tuple[int, bool]:
        size, same = 0, True
        while piece := file.read(len(block)):
            size += len(piece)
            same &= piece == block
        return size, same

    app = Reader(total)
    with serving(app) as server, connect(server) as connection:
        assert connection.request("POST", "/", {}, block * 24).status == 200
        assert app.outcome() == (24 * len(block), True)


# ---- bodies that break off ----------------------------------------------------------------------

HEAD = "POST / HTTP/1.1\r\nHost: x\r\n"
#: More than the server takes in before it calls the application.
LONG = "line\n" * 40_000
READS: dict[str, Callable[[Any], Any]] = {
    "read()": lambda file: file.read(),
    "read(n)": lambda file: file.read(len(LONG) + 100),
    "lines": lambda file: file.readlines(),
    "line by line": lambda file: list(iter(file.readline, b"")),
    "iteration": list,
}


def truncated(body: str) -> dict[str, str]:
    """Requests that announce more than *body* and end there."""
    return {
        "length": f"{HEAD}Content-Length: {len(body) + 20}\r\n\r\n{body}",
        "between chunks": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n{body}\r\n",
        "in a chunk": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n{len(body) + 20:x}\r\n{body}",
    }


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("sent", truncated(LONG).values(), ids=truncated(LONG))
def test_a_body_that_breaks_off_raises(sent: str, read: Callable[[Any], Any]) -> None:
    app = Reader(read)
    with serving(app) as server, connect(server) as connection:
        connection.send(sent)
        connection.socket.shutdown(socket.SHUT_WR)

        assert isinstance(app.outcome(), ConnectionError)
        assert connection.rest().startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("sent", truncated("short").values(), ids=truncated("short"))
def test_a_short_body_that_breaks_off_never_looks_whole(sent: str) -> None:
    app = Reader(lambda file: file.read())
    with serving(app) as server, connect(server) as connection:
        connection.send(sent)
        connection.socket.shutdown(socket.SHUT_WR)

        assert b" 200 " not in connection.rest()
    # The server may find out before it calls the application at all.
    assert app.seen.empty() or isinstance(app.outcome(), ConnectionError)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize(
    "chunk", ["xyz\r\n", "+5\r\nhello\r\n", "0x5\r\nhello\r\n", "5\r\nhelloworld\r\n", "-1\r\n"]
)
@pytest.mark.parametrize("before", ["ab\n", LONG], ids=["early", "late"])
def test_broken_chunks_raise(chunk: str, before: str, read: Callable[[Any], Any]) -> None:
    app = Reader(read)
    with serving(app) as server, connect(server) as connection:
        first = f"{len(before):x}\r\n{before}\r\n"
        connection.send(HEAD + "Transfer-Encoding: chunked\r\n\r\n" + first + chunk)

        received = connection.rest()
    assert b" 200 " not in received
    assert received == b"" or received.startswith(b"HTTP/1.1 400 ")
    if not app.seen.empty():
        assert isinstance(app.outcome(), OSError)


def test_a_client_that_stops_sending_is_a_timeout() -> None:
    app = Reader(lambda file: file.read())
    with (
        serving(app, options={"client_socket_timeout": 1}) as server,
        connect(server) as connection,
    ):
        connection.send(f"{HEAD}Content-Length: {len(LONG) + 20}\r\n\r\n{LONG}")

        assert isinstance(app.outcome(), TimeoutError)
        assert connection.rest().startswith(b"HTTP/1.1 408 ")


BROKEN = {
    "left": (truncated("x" * 100_000)["length"], 400),
    "framing": (f"{HEAD}Transfer-Encoding: chunked\r\n\r\n186a0\r\n{'x' * 100_000}y", 400),
    "silent": (truncated("x" * 100_000)["length"], 408),
}


@pytest.mark.parametrize("goes_on", ["raises", "answers", "streams for ever"])
@pytest.mark.parametrize("how", BROKEN)
def test_the_client_of_a_broken_body_is_told_so_and_the_log_says_what_it_was_told(
    how: str, goes_on: str, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        try:
            environ["wsgi.input"].read()
        except OSError:
            if goes_on == "raises":
                raise
        start_response("200 OK", [])
        return [b"read"] if goes_on == "answers" else itertools.repeat(b"on")

    caplog.set_level(logging.INFO)
    sent, status = BROKEN[how]
    with (
        serving(app, options={"client_socket_timeout": 1}) as server,
        connect(server) as connection,
    ):
        connection.send(sent)
        if how == "left":
            connection.socket.shutdown(socket.SHUT_WR)
        answer = connection.answer()
        assert (answer.status, answer.one("Connection")) == (status, "close")
        connection.assert_closed()
        assert until(lambda: f"status: {status}" in caplog.text)
    assert caplog.text.count("status: ") == 1


def test_an_answer_that_had_begun_before_its_requests_body_broke_keeps_its_status(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"begun"
        environ["wsgi.input"].read()

    caplog.set_level(logging.INFO)
    with (
        serving(app, options={"client_socket_timeout": 1}) as server,
        connect(server) as connection,
    ):
        connection.send(BROKEN["silent"][0])
        assert connection.head().status == 200
        assert connection.rest() == b"5\r\nbegun\r\n"
        assert until(lambda: "status: 200" in caplog.text)


def test_a_broken_body_stays_broken() -> None:
    def twice(file: Any) -> list[Any]:
        with pytest.raises(ConnectionError):
            file.read()
        with pytest.raises(ConnectionError):
            file.read(1)
        return ["both"]

    app = Reader(twice)
    with serving(app) as server, connect(server) as connection:
        connection.send(truncated(LONG)["length"])
        connection.socket.shutdown(socket.SHUT_WR)

        assert app.outcome() == ["both"]


# ---- an input that outlives its request ---------------------------------------------------------


def keep(kept: list[Any]) -> Callable[..., Any]:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        kept.append((environ["wsgi.input"], start_response("200 OK", []), start_response))
        return [b"kept"]

    return app


def test_an_input_kept_beyond_its_request_raises_and_harms_nobody() -> None:
    kept: list[Any] = []
    with serving(keep(kept)) as server, connect(server) as connection:
        for _ in range(3):
            assert connection.request("POST", "/", {}, LINES).body == b"kept"
        connection.send(HEAD + "Content-Length: 3\r\n\r\n")  # the next one is under way
        for file, write, start_response in kept:
            for call in (file.read, file.readline, file.readlines, lambda f=file: next(f)):
                with pytest.raises(ValueError, match="ended"):
                    call()
            with pytest.raises((ValueError, AssertionError)):
                write(b"ghost")
            with pytest.raises(AssertionError):
                start_response("200 OK", [])
        connection.send(b"abc")
        assert connection.answer().body == b"kept"
    file, write, _ = kept[0]
    del server
    with pytest.raises(ValueError, match="ended"):
        file.read()


def test_an_input_can_be_read_by_another_thread() -> None:
    def elsewhere(file: Any) -> bytes:
        read: list[bytes] = []
        thread = threading.Thread(target=lambda: read.append(file.read()))
        thread.start()
        thread.join(DEADLINE)
        return read[0]

    app = Reader(elsewhere)
    with serving(app) as server, connect(server) as connection:
        connection.send(HEAD + "Content-Length: 6\r\n\r\nabc")
        connection.send(b"def")

        assert app.outcome() == b"abcdef"
        assert connection.answer().body == b"read"


def test_a_thread_still_reading_when_the_request_ends_is_waited_for() -> None:
    outcomes: queue.Queue[Any] = queue.Queue()
    entered = threading.Event()

    def read_on(file: Any) -> None:
        entered.set()
        try:
            outcomes.put(file.read())
        except ValueError as error:
            outcomes.put(error)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        threading.Thread(target=read_on, args=(environ["wsgi.input"],)).start()
        assert entered.wait(DEADLINE)
        start_response("200 OK", [])
        return [b"done"]

    with serving(app) as server, connect(server) as connection:
        connection.send(HEAD + "Content-Length: 6\r\n\r\nabc")
        connection.send(b"def")
        answer = connection.answer()
        outcome = outcomes.get(timeout=DEADLINE)

        assert answer.body == b"done"
        assert outcome == b"abcdef" or isinstance(outcome, ValueError)


# ---- Expect -------------------------------------------------------------------------------------

EXPECTING = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"


def test_a_client_that_waits_is_told_to_go_on_when_the_body_is_read() -> None:
    app = Reader(lambda file: file.read())
    with serving(app) as server, connect(server) as connection:
        connection.send(EXPECTING)
        assert connection.head().status == 100
        connection.send(b"abc")

        assert connection.answer().body == b"read"
        assert app.outcome() == b"abc"
        connection.assert_open()


def test_a_client_that_waits_is_not_told_to_go_on_for_a_body_nobody_reads() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("403 No", [])
        return [b"no"]

    with serving(app) as server, connect(server) as connection:
        connection.send(EXPECTING)
        assert connection.head().status == 403
        assert connection.rest() == b"no"  # nobody knows whether the body will come: closed


def test_an_http_10_client_never_gets_an_interim_answer() -> None:
    app = Reader(lambda file: file.read())
    with serving(app) as server, connect(server) as connection:
        connection.send(EXPECTING.replace("HTTP/1.1", "HTTP/1.0") + "abc")

        assert connection.head().status == 200


# ---- pipelines ----------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode() + environ["wsgi.input"].read(2)]

    def post(number: int) -> str:
        return f"POST /{number} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabcd"

    with serving(app) as server, connect(server) as connection:
        connection.send("".join(map(post, range(30))))

        assert [connection.answer().body for _ in range(30)] == [
            f"/{number}ab".encode() for number in range(30)
        ]


def test_a_body_nobody_reads_is_not_taken_for_a_request() -> None:
    inner = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    paths: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        paths.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return [b""]

    with serving(app) as server, connect(server) as connection:
        request_with_body(connection, inner)
        request_with_body(connection, inner)

    assert paths == ["/outer", "/outer"]


def request_with_body(connection: Connection, body: str) -> None:
    assert connection.request("POST", "/outer", {}, body.encode()).status == 200
