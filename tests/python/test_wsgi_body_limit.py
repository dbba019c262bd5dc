"""Bodies that are longer than a server takes: 413, told before they are read where that can be."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any

import pytest
from support.raw_http import DEADLINE, connect, serving

from osloxide import wsgi

LIMIT = 100_000


def count(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    received = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [str(len(received)).encode()]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[wsgi.Server]:
    monkeypatch.setattr(wsgi.Server, "max_body", LIMIT)
    with serving(count) as server:
        yield server


def chunk(size: int) -> bytes:
    return b"%x\r\n%s\r\n" % (size, b"x" * size)


CHUNKED = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_body_of_the_longest_length_is_read(server: wsgi.Server) -> None:
    with connect(server) as connection:
        answer = connection.request("POST", body=b"x" * LIMIT)
        assert (answer.status, answer.body) == (200, str(LIMIT).encode())

        connection.send(CHUNKED)
        connection.send((chunk(LIMIT // 2) * 2 + b"0\r\n\r\n").decode())
        answer = connection.answer()
        assert (answer.status, answer.body) == (200, str(LIMIT).encode())


def test_a_client_that_asks_first_is_told_at_once(server: wsgi.Server) -> None:
    with connect(server) as connection:
        connection.send(
            f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {LIMIT + 1}\r\n"
            "Expect: 100-continue\r\n\r\n"
        )
        answer = connection.answer()

        assert (answer.status, answer.one("Connection")) == (413, "close")
        connection.assert_closed()


def test_a_client_that_sends_it_all_comes_to_read_the_answer(server: wsgi.Server) -> None:
    for _ in range(5):
        client = http.client.HTTPConnection(server.host, server.port, timeout=DEADLINE)
        client.request("POST", "/", body=b"x" * 8_000_000)
        answer = client.getresponse()

        assert answer.status == 413
        answer.read()
        client.close()


def test_a_chunked_body_is_cut_off_where_it_passes_the_limit(server: wsgi.Server) -> None:
    with connect(server) as connection:
        connection.send(CHUNKED)
        connection.send((chunk(LIMIT) + chunk(1) + b"0\r\n\r\n").decode())
        answer = connection.answer()

        assert (answer.status, answer.one("Connection")) == (413, "close")
        connection.assert_closed()


def test_a_refused_body_has_its_line_in_the_access_log(
    server: wsgi.Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with connect(server) as connection:
        connection.send(f"PUT /big?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: {LIMIT * 9}\r\n\r\n")
        assert connection.answer().status == 413
        connection.assert_closed()

    assert [text for text in caplog.messages if '"PUT /big?a=b HTTP/1.1" status: 413' in text]


def test_others_are_served_while_one_is_told(server: wsgi.Server) -> None:
    with connect(server) as greedy, connect(server) as other:
        greedy.send(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {LIMIT * 9}\r\n\r\n")
        greedy.send("x" * 50_000)
        assert other.request().status == 200
        assert greedy.answer().status == 413


def test_without_a_limit_any_length_is_read() -> None:
    with serving(count) as server, connect(server) as connection:
        answer = connection.request("POST", body=b"x" * 3_000_000)
        assert answer.body == b"3000000"


@pytest.mark.parametrize(
    "fields", ["Content-Length: {}", "Expect: 100-continue\r\nContent-Length: {}"]
)
def test_a_short_body_above_a_lower_limit_is_refused_before_a_byte_of_it(
    monkeypatch: pytest.MonkeyPatch, fields: str
) -> None:
    monkeypatch.setattr(wsgi.Server, "max_body", 1000)
    with serving(count) as server, connect(server) as connection:
        connection.send(f"POST / HTTP/1.1\r\nHost: x\r\n{fields.format(1001)}\r\n\r\n")
        answer = connection.answer()

        assert (answer.status, answer.one("Connection")) == (413, "close")
        connection.assert_closed()


def test_an_expectation_may_stand_in_a_list(server: wsgi.Server) -> None:
    with connect(server) as connection:
        connection.send(
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: x=1, 100-Continue\r\n\r\n"
        )
        assert connection.head().status == 100
        connection.send("abc")
        assert connection.answer().body == b"3"
