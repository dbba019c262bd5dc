"""Each keyword of ``eventlet.wsgi.server`` has its effect, and any other is refused by name."""

from __future__ import annotations

import contextlib
import inspect
import io
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from osloxide import green
from osloxide.green import event, wsgi

WITHIN = 45.0
"""Seconds after which a connection counts as hung."""

# eventlet 0.41.3
PARAMETERS = (
    "sock", "site", "log", "environ", "max_size", "max_http_version", "protocol", "server_event",
    "minimum_chunk_size", "log_x_forwarded_for", "custom_pool", "keepalive", "log_output",
    "log_format", "url_length_limit", "debug", "socket_timeout", "capitalize_response_headers",
)  # fmt: skip


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("x-of", environ.get("of", "no"))])
    return [b"hello"]


def fail(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    raise LookupError("on purpose")


def pieces(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield from (b"aa", b"bb", b"cc", b"dd")


@contextlib.contextmanager
def serving(site: Any = hello, **keywords: Any) -> Iterator[tuple[Any, io.StringIO]]:
    """The address of a server with *keywords*, and its log."""
    log = io.StringIO()
    listener = green.listen(("127.0.0.1", 0))
    address = listener.getsockname()
    server = green.spawn(wsgi.server, listener, site, **{"log": log, **keywords})
    try:
        yield address, log
    finally:
        server.kill()
        with contextlib.suppress(green.greenthread.greenlet.GreenletExit), green.Timeout(WITHIN):
            server.wait()


def send(sock: Any, text: str) -> None:
    sock.sendall(text.replace("\n", "\r\n").encode())


def asked(address: Any, text: str = "GET / HTTP/1.1\nHost: a\nConnection: close\n\n") -> str:
    """What the server answers until it closes the connection."""
    with green.Timeout(WITHIN), contextlib.closing(green.connect(address)) as sock:
        send(sock, text)
        return b"".join(iter(lambda: sock.recv(4096), b"")).decode()


def test_the_keywords_are_those_of_eventlet() -> None:
    assert tuple(inspect.signature(wsgi.server).parameters) == PARAMETERS


def test_another_keyword_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="no_such_keyword"):
        wsgi.server(None, hello, no_such_keyword=1)  # type: ignore[call-arg]


def test_environ_is_in_each_request() -> None:
    with serving(environ={"of": "all"}) as (address, _):
        assert "X-Of: all\r\n" in asked(address)


def test_log_may_be_a_logger_or_a_file() -> None:
    class Logger:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def info(self, line: str, *arguments: object) -> None:
            self.lines.append(line % arguments if arguments else line)

        debug = error = info

    logger = Logger()
    with serving(log=logger) as (address, _):
        asked(address)
    assert any('"GET / HTTP/1.1" 200' in line for line in logger.lines), logger.lines
    with serving() as (address, log):
        asked(address)
    assert '"GET / HTTP/1.1" 200' in log.getvalue()


def test_log_output_false_logs_nothing() -> None:
    with serving(log_output=False) as (address, log):
        asked(address)
    assert log.getvalue() == ""


def test_log_format_is_the_format_of_a_line() -> None:
    with serving(log_format="<%(request_line)s %(status_code)d>") as (address, log):
        asked(address)
    assert "<GET / HTTP/1.1 200>" in log.getvalue()


@pytest.mark.parametrize(
    ("wanted", "begin"), [(True, "10.9.8.7,127.0.0.1 "), (False, "127.0.0.1 ")]
)
def test_log_x_forwarded_for_names_the_client(wanted: bool, begin: str) -> None:
    forwarded = "GET / HTTP/1.1\nHost: a\nX-Forwarded-For: 10.9.8.7\nConnection: close\n\n"
    with serving(log_x_forwarded_for=wanted) as (address, log):
        asked(address, forwarded)
    (line,) = [line for line in log.getvalue().splitlines() if "GET /" in line]
    assert line.startswith(begin)


@pytest.mark.parametrize("keyword", ["max_size", "custom_pool"])
def test_a_pool_bounds_the_connections(keyword: str) -> None:
    value: Any = 1 if keyword == "max_size" else green.GreenPool(1)
    with serving(**{keyword: value}) as (address, _), green.Timeout(WITHIN):
        first = green.connect(address)
        send(first, "GET / HTTP/1.1\nHost: a\n\n")
        assert first.recv(4096).startswith(b"HTTP/1.1 200")
        second = green.connect(address)
        send(second, "GET / HTTP/1.1\nHost: a\n\n")
        second.settimeout(0.2)
        with pytest.raises(socket.timeout):
            second.recv(4096)
        first.close()
        second.settimeout(WITHIN)
        assert second.recv(4096).startswith(b"HTTP/1.1 200")
        second.close()


def test_a_pool_without_spawn_is_refused() -> None:
    listener = green.listen(("127.0.0.1", 0))
    with contextlib.closing(listener), pytest.raises(AttributeError, match="waitall"):
        wsgi.server(listener, hello, log=io.StringIO(), custom_pool=object())


def test_max_http_version_1_0_keeps_no_connection() -> None:
    with serving(max_http_version="HTTP/1.0") as (address, _):
        answer = asked(address, "GET / HTTP/1.1\nHost: a\n\n")
    assert answer.startswith("HTTP/1.0 200 OK\r\n")


def test_protocol_serves_the_connections() -> None:
    class Shouting(wsgi.HttpProtocol):
        def get_environ(self) -> dict[str, Any]:
            return super().get_environ() | {"of": "protocol"}

    with serving(protocol=Shouting) as (address, _):
        assert "X-Of: protocol\r\n" in asked(address)


def test_server_event_gets_the_server() -> None:
    told = event.Event()
    warned = pytest.warns(DeprecationWarning, match="server_event")
    with warned, serving(server_event=told), green.Timeout(WITHIN):
        assert isinstance(told.wait(), wsgi.Server)


def test_minimum_chunk_size_collects_bytes() -> None:
    with serving(pieces, minimum_chunk_size=4) as (address, _):
        assert asked(address).endswith("4\r\naabb\r\n4\r\nccdd\r\n0\r\n\r\n")
    with serving(pieces, minimum_chunk_size=1) as (address, _):
        assert "2\r\naa\r\n2\r\nbb\r\n" in asked(address)


@pytest.mark.parametrize("keepalive", [False, 0, 0.2])
def test_keepalive_ends_a_connection(keepalive: Any) -> None:
    with serving(keepalive=keepalive) as (address, _):
        assert asked(address, "GET / HTTP/1.1\nHost: a\n\n").startswith("HTTP/1.1 200")


def test_url_length_limit_bounds_the_request_line() -> None:
    with serving(url_length_limit=50) as (address, _):
        assert " 414 " in asked(address, f"GET /{'a' * 60} HTTP/1.1\nHost: a\n\n")
        assert " 200 " in asked(address)


def test_debug_says_whether_clients_see_tracebacks() -> None:
    with serving(fail, debug=True) as (address, _):
        assert "LookupError: on purpose" in asked(address)
    with serving(fail, debug=False) as (address, log):
        assert "LookupError" not in asked(address)
    assert "LookupError: on purpose" in log.getvalue()


def test_socket_timeout_ends_a_silent_connection() -> None:
    with serving(socket_timeout=0.1) as (address, _):
        assert asked(address, "GET / HTTP/1.1\nHo") == ""


def test_capitalize_response_headers_false_leaves_them() -> None:
    warned = pytest.warns(DeprecationWarning, match="capitalize_response_headers")
    with warned, serving(capitalize_response_headers=False) as (address, _):
        assert "x-of: no\r\n" in asked(address)
