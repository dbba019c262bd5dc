"""The environ that an application sees: PEP 3333, CGI, and nothing that a client can forge."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from wsgiref.validate import validator

import pytest
from support.raw_http import Connection, connect, serving


@validator
def report(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answers with its environ as JSON."""
    shown = {
        key: value if isinstance(value, (str, bool, int, tuple)) else type(value).__name__
        for key, value in environ.items()
    }
    body = json.dumps(shown).encode()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]


@pytest.fixture
def connection() -> Iterator[Connection]:
    with serving(report) as server, connect(server) as connection:
        yield connection


def environ_of(connection: Connection, *args: Any, **kwargs: Any) -> dict[str, Any]:
    answer = connection.request(*args, **kwargs)
    assert answer.status == 200
    return dict(json.loads(answer.body))


def test_environ_has_what_pep_3333_asks_for_and_tells_the_truth(connection: Connection) -> None:
    environ = environ_of(connection, "GET", "/a/b?x=1&y=%20")
    host, port = connection.socket.getpeername()
    me, my_port = connection.socket.getsockname()

    assert environ["REQUEST_METHOD"] == "GET"
    assert environ["SCRIPT_NAME"] == ""
    assert environ["PATH_INFO"] == environ["RAW_PATH_INFO"] == "/a/b"
    assert environ["QUERY_STRING"] == "x=1&y=%20"
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == (host, str(port))
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == (me, str(my_port))
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ["GATEWAY_INTERFACE"] == "CGI/1.1"
    assert environ["wsgi.version"] == [1, 0]
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["wsgi.multithread"] is True
    assert environ["wsgi.multiprocess"] is False
    assert environ["wsgi.run_once"] is False
    assert "wsgi.file_wrapper" in environ
    assert "HTTPS" not in environ


def test_absent_things_stay_absent(connection: Connection) -> None:
    environ = environ_of(connection)

    assert environ["QUERY_STRING"] == ""
    assert "CONTENT_TYPE" not in environ
    assert "CONTENT_LENGTH" not in environ
    assert "wsgi.input_terminated" not in environ


def test_nothing_of_a_request_is_left_in_the_next_one(connection: Connection) -> None:
    environ_of(connection, "POST", "/first?q", {"X-First": "1", "Content-Type": "a/b"}, b"body")
    environ = environ_of(connection, "GET", "/second")

    assert environ["QUERY_STRING"] == ""
    assert not {"HTTP_X_FIRST", "CONTENT_TYPE", "CONTENT_LENGTH"} & environ.keys()


def test_content_headers_have_no_prefix(connection: Connection) -> None:
    environ = environ_of(connection, "POST", "/", {"Content-Type": "a/b; c=d"}, b"12345")

    assert environ["CONTENT_TYPE"] == "a/b; c=d"
    assert environ["CONTENT_LENGTH"] == "5"
    assert not {"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"} & environ.keys()


def test_path_is_decoded_once_as_latin1_and_not_normalised(connection: Connection) -> None:
    environ = environ_of(connection, "GET", "//a/../%2e/%2525/%zz/caf%C3%A9")

    assert environ["PATH_INFO"] == "//a/.././%25/%zz/caf\u00c3\u00a9"
    assert environ["RAW_PATH_INFO"] == "//a/../%2e/%2525/%zz/caf%C3%A9"


def test_header_values_are_latin1(connection: Connection) -> None:
    assert environ_of(connection, headers={"X-Name": "caf\u00e9"})["HTTP_X_NAME"] == "caf\u00e9"


@pytest.mark.parametrize("name", ["X_Auth_Token", "X_Auth-Token", "Content_Length", "Proxy"])
def test_headers_that_could_shadow_others_are_dropped(connection: Connection, name: str) -> None:
    environ = environ_of(connection, headers=[(name, "evil"), ("X-Good", "1")])

    assert environ["HTTP_X_GOOD"] == "1"
    assert "evil" not in environ.values()


def test_underscore_never_replaces_the_real_header(connection: Connection) -> None:
    for headers in (
        [("X-Auth-Token", "good"), ("X_Auth_Token", "evil")],
        [("X_Auth_Token", "evil"), ("X-Auth-Token", "good")],
    ):
        assert environ_of(connection, headers=headers)["HTTP_X_AUTH_TOKEN"] == "good"


def test_repeated_headers_are_joined(connection: Connection) -> None:
    environ = environ_of(
        connection,
        headers=[("X-A", "1"), ("Cookie", "a=1"), ("X-A", "2"), ("cookie", "b=2"), ("x-a", "3")],
    )

    assert environ["HTTP_X_A"] == "1,2,3"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"


def test_absolute_target_outranks_host(connection: Connection) -> None:
    environ = environ_of(connection, "GET", "http://u:p@other:81/p?q", {"Host": "liar"})

    assert environ["HTTP_HOST"] == "other:81"
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/p", "q")


def test_options_asterisk_has_no_path(connection: Connection) -> None:
    environ = environ_of(connection, "OPTIONS", "*")

    assert (environ["PATH_INFO"], environ["RAW_PATH_INFO"]) == ("", "*")


@pytest.mark.parametrize(
    ("line", "statuses"),
    [
        ("CONNECT other:443", {400, 405, 501}),
        ("GET *", {400}),
    ],
)
def test_targets_that_mean_no_resource_are_refused(
    connection: Connection, line: str, statuses: set[int]
) -> None:
    connection.send(f"{line} HTTP/1.1\r\nHost: other:443\r\n\r\n")

    assert connection.answer("GET").status in statuses
    connection.assert_closed()


def test_protocol_is_that_of_the_request(connection: Connection) -> None:
    assert environ_of(connection, version="HTTP/1.0")["SERVER_PROTOCOL"] == "HTTP/1.0"


def test_chunked_request_has_no_length_and_its_trailers_stay_out(connection: Connection) -> None:
    environ = environ_of(
        connection,
        "POST",
        headers={"Transfer-Encoding": "chunked", "Trailer": "X-Late"},
        body=b"3\r\nabc\r\n0\r\nX-Late: evil\r\nContent-Type: evil\r\n\r\n",
    )

    assert environ["wsgi.input_terminated"] is True
    assert "CONTENT_LENGTH" not in environ
    assert "evil" not in environ.values()


def test_unix_socket_has_the_keys_that_pep_3333_wants_filled(tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    with (
        serving(report, socket_family=socket.AF_UNIX, socket_file=path) as server,
        connect(server) as connection,
    ):
        environ = environ_of(connection)

    assert environ["REMOTE_ADDR"] == "unix"
    assert environ["SERVER_NAME"]
    assert environ["SERVER_PORT"]


def test_ipv6_addresses_are_bare() -> None:
    with serving(report, host="::1") as server, connect(server) as connection:
        environ = environ_of(connection)

    assert environ["SERVER_NAME"] == environ["REMOTE_ADDR"] == "::1"


def test_an_application_may_change_its_environ_without_harm() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen = "mine" in environ or "wsgi.version" not in environ
        environ["mine"] = 1
        environ.pop("wsgi.version", None)
        start_response("200 OK", [])
        return [b"spoilt" if seen else b"fresh"]

    with serving(app) as server, connect(server) as connection:
        bodies = [connection.request().body for _ in range(3)]

    assert bodies == [b"fresh"] * 3
