"""Many requests at once and one after the other: no answer goes astray, nothing is left over."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.raw_http import connect, serving
from waiting import until


def app(environ: dict[str, Any], start_response: Any) -> Any:
    """Gives its path and its body back in one of the ways in which answers are sent."""
    path = environ["PATH_INFO"].encode("latin-1")
    body = environ["wsgi.input"].read()
    match path.split(b"/")[1]:
        case b"whole":
            start_response("200 OK", [("X-Path", path.decode())])
            return [path, body]
        case b"pieces":
            start_response("200 OK", [])
            return iter([path, b"", body])
        case b"write":
            write = start_response("200 OK", [("Content-Length", str(len(path + body)))])
            write(path)
            return [body]
        case b"file":
            start_response("200 OK", [])
            return environ["wsgi.file_wrapper"](Reader(path + body), 7)
        case b"raise":
            raise ValueError(path)
        case _:
            start_response("200 OK", [("X-Bad", "a\nb")])
            return []


class Reader:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, size: int) -> bytes:
        piece, self.content = self.content[:size], self.content[size:]
        return piece


WAYS = ("whole", "pieces", "write", "file")


def test_answers_reach_the_clients_that_asked() -> None:
    problems: list[str] = []

    def client(number: int) -> None:
        with connect(server) as connection:
            for turn in range(100):
                path = f"/{WAYS[(number + turn) % 4]}/{number}/{turn}"
                body = f"{number}-{turn}-".encode() * (turn * 7)
                answer = connection.request("POST", path, {}, body)
                if answer.status != 200 or answer.body != path.encode() + body:
                    problems.append(f"{path}: {answer}")

    with serving(app, pool_size=8) as server:
        threads = [threading.Thread(target=client, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (engine,) = server._engines
        assert until(lambda: engine.stats()["served"] == 24 * 100)

    assert problems == []


@pytest.fixture
def quiet() -> Iterator[None]:
    """Without the log records that pytest would keep."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("way", [*WAYS, "raise", "bad"])
def test_requests_leave_nothing_allocated(way: str, quiet: None) -> None:
    def ask(count: int) -> None:
        for _ in range(count):
            with connect(server) as connection:
                connection.request("POST", f"/{way}", {"X-Some": "header"}, b"body")

    def blocks() -> int:
        gc.collect()
        return sys.getallocatedblocks()

    with serving(app, pool_size=2) as server:
        ask(100)
        before = blocks()
        ask(1000)
        grown = blocks() - before

    assert grown < 500, f"{grown} blocks more after 1000 requests"
