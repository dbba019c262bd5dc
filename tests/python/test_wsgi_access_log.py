"""The access log: true, complete, and not to be written by clients."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from support.raw_http import Connection, configuration, connect, serving
from waiting import until

from osloxide import wsgi

EVERY_KEY = (
    "%(client_ip)s|%(client_port)s|%(date_time)s|%(request_line)s|"
    "%(status_code)d|%(body_length)d|%(wall_seconds).7f"
)


def app(environ: dict[str, Any], start_response: Any) -> Any:
    if environ["PATH_INFO"] == "/raise":
        raise RuntimeError("bad")
    start_response("201 Made", [("X-Long", "x" * 500)])
    if environ["PATH_INFO"] == "/stream":
        return iter([b"12", b"345"])
    return [b"12345"]


@pytest.fixture(autouse=True)
def info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "eventlet.wsgi.server")


@pytest.fixture
def connection() -> Iterator[Connection]:
    with (
        serving(app, options={"wsgi_log_format": EVERY_KEY}) as server,
        connect(server) as connection,
    ):
        yield connection


def lines(caplog: pytest.LogCaptureFixture, count: int) -> list[str]:
    """The *count* lines; they are written after the answer."""

    def found() -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.name == "eventlet.wsgi.server" and record.levelno == logging.INFO
        ]

    assert until(lambda: len(found()) >= count)
    assert len(found()) == count
    return found()


def test_every_key_is_true(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    connection.request("GET", "/a%20b?c")
    address, port = connection.socket.getsockname()

    (line,) = lines(caplog, 1)
    client, client_port, date, request, status, length, wall = line.split("|")
    assert (client, client_port) == (address, str(port))
    assert re.fullmatch(r"\d\d/[A-Z][a-z]{2}/\d{4} \d\d:\d\d:\d\d", date)
    assert request == "GET /a%20b?c HTTP/1.1"
    assert (status, length) == ("201", "5")
    assert 0 < float(wall) < 10


def test_the_default_format_is_that_of_oslo_service(caplog: pytest.LogCaptureFixture) -> None:
    with serving(app) as server, connect(server) as connection:
        connection.request("GET", "/x")
        (line,) = lines(caplog, 1)

    pattern = r'127\.0\.0\.1 "GET /x HTTP/1\.1" status: 201  len: 5 time: \d+\.\d{7}'
    assert re.fullmatch(pattern, line)


@pytest.mark.parametrize(
    ("method", "path", "status", "length"),
    [("GET", "/stream", 201, 5), ("HEAD", "/", 201, 0), ("GET", "/raise", 500, 0)],
)
def test_streams_heads_and_failures_are_counted(
    connection: Connection,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    status: int,
    length: int,
) -> None:
    connection.request(method, path)

    (line,) = lines(caplog, 1)
    assert line.split("|")[4:6] == [str(status), str(length)]


def test_forwarded_addresses_stand_before_the_peer(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    connection.request(headers=[("X-Forwarded-For", "10.0.0.1, 10.0.0.2")])

    assert lines(caplog, 1)[0].startswith("10.0.0.1,10.0.0.2,127.0.0.1|")


def test_no_client_can_forge_a_line_or_reach_a_terminal(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    connection.send(
        b'GET /"%0d%0aforged?\xc2\x9b2J HTTP/1.1\r\nHost: x\r\n'
        b'X-Forwarded-For: 1.1.1.1"\t\xc2\x85\x9b2J\\forged\r\n\r\n'
    )
    head = connection.head()

    if head.status == 201:  # otherwise the server has refused it
        (line,) = lines(caplog, 1)
        assert all(32 <= ord(character) < 127 for character in line)
        assert re.search(r'(?<!\\)"', line) is None


def test_methods_are_escaped_too(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    connection.send(b"G!#$%&'*+-.^_`|~ET / HTTP/1.1\r\nHost: x\r\n\r\n")

    assert connection.answer().status == 201
    assert "G!#$%&'*+-.^_`|~ET / HTTP/1.1" in lines(caplog, 1)[0]


def test_nothing_is_prepared_when_the_level_is_off(
    connection: Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("eventlet.wsgi.server")
    caplog.set_level(logging.WARNING, "eventlet.wsgi.server")
    called: list[Any] = []
    monkeypatch.setattr(logger, "_log", lambda *args, **kwargs: called.append(args))

    assert connection.request().status == 201
    assert connection.request().status == 201
    assert called == []


def test_a_log_that_fails_does_not_break_a_request(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise OSError("disk full")

    unraisable: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)
    logger = logging.getLogger("eventlet.wsgi.server")
    handler = Failing()
    logger.addHandler(handler)
    try:
        with serving(app) as server, connect(server) as connection:
            assert connection.request().body == b"12345"
            assert connection.request().body == b"12345"
            assert until(lambda: len(unraisable) == 2)
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("log_format", "complaint"),
    [
        ("%(client_ip)s %(nonsense)s", "unknown key 'nonsense'"),
        ("%(client_ip)d", "cannot be applied"),
        ("%s %s", "cannot be applied"),
        ("%(client_ip", "cannot be applied"),
    ],
)
def test_an_impossible_format_is_refused_at_construction(log_format: str, complaint: str) -> None:
    with pytest.raises(ValueError, match="wsgi_log_format") as refused:
        wsgi.Server(configuration(wsgi_log_format=log_format), "test", app, host="127.0.0.1")

    assert complaint in str(refused.value)
    assert "client_ip, client_port, date_time" in str(refused.value)


def test_what_an_application_writes_to_wsgi_errors_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def complaining(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        errors = environ["wsgi.errors"]
        errors.write("one %s\ntw")
        errors.writelines(["o\n", "three"])
        print("four", file=errors)
        errors.write("five")
        errors.flush()
        start_response("200 OK", [])
        return [b""]

    with serving(complaining) as server, connect(server) as connection:
        connection.request()

    logged = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert logged == ["one %s", "two", "threefour", "five"]


REFUSED = {
    "malformed": (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400, "GET / HTTP/1.1"),
    "smuggling": (
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        "POST /x HTTP/1.1",
    ),
    "too long": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414, "GET /" + "a" * 1019),
    "headers": (
        b"GET /h HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        431,
        "GET /h HTTP/1.1",
    ),
    "coding": (
        b"GET /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        501,
        "GET /c HTTP/1.1",
    ),
    "version": (b"GET /v HTTP/2.0\r\nHost: a\r\n\r\n", 505, "GET /v HTTP/2.0"),
    "broken body": (
        b"PUT /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        400,
        "PUT /b HTTP/1.1",
    ),
    "forged": (b'\r\n\x1b[2J"\xe9\n', 400, '\\x1b[2J\\"\\xe9'),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_request_that_the_server_refuses_has_a_line(
    kind: str, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    request, status, expected = REFUSED[kind]
    address, port = connection.socket.getsockname()
    connection.send(request)
    answer = connection.answer()
    connection.assert_closed()

    assert answer.status == status
    (line,) = lines(caplog, 1)
    client, client_port, _, request_line, *rest = line.split("|")
    assert (client, client_port) == (address, str(port))
    assert request_line == expected
    assert rest[:2] == [str(status), str(len(answer.body))]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"GET /slow HTTP/1.1\r\nHost", "GET /slow HTTP/1.1"),
        (b"GE", "GE"),
        (b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx", "POST /body HTTP/1.1"),
    ],
)
def test_a_request_that_does_not_come_in_time_has_a_line(
    sent: bytes, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"wsgi_log_format": EVERY_KEY, "client_socket_timeout": 1}
    with serving(app, options=options) as server, connect(server) as connection:
        connection.send(sent)
        assert connection.answer().status == 408
        (line,) = lines(caplog, 1)

    assert line.split("|")[3:5] == [expected, "408"]
    assert float(line.split("|")[6]) > 0.5


def test_a_connection_without_a_request_has_no_line(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    connection.request()
    connection.close()

    lines(caplog, 1)
