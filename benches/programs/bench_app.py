"""The WSGI applications that the benches serve, one for each kind of work. Plain Python."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

Start = Callable[[str, list[tuple[str, str]]], Any]
MIB = b"x" * (1 << 20)


def trivial(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def blocking(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """Waits 10 ms, as for a database."""
    time.sleep(0.01)
    return trivial(environ, start)


def burning(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """Computes for about 70 microseconds, holding the interpreter."""
    total = 0
    for number in range(1200):
        total += number * number
    return trivial(environ, start)


def millisecond(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """Computes for about a millisecond."""
    for _ in range(14):
        burning(environ, lambda *_: None)
    return trivial(environ, start)


_requests = itertools.count()


def mixed(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """Of twenty requests, sixteen are trivial, three wait 5 ms and one computes for about 1 ms."""
    number = next(_requests) % 20
    if number in {3, 9, 15}:
        time.sleep(0.005)
    elif number == 7:
        for _ in range(14):
            burning(environ, lambda *_: None)
    return trivial(environ, start)


def reading(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """Reads the whole request body."""
    left = int(environ["CONTENT_LENGTH"])
    source = environ["wsgi.input"]
    while left:
        left -= len(source.read(min(left, 65536)))
    return trivial(environ, start)


def mebibyte(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(MIB)))])
    return [MIB]


HUNDRED_KB = b"x" * 100_000


def large(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """A whole answer of 100 kB, or a short one."""
    if environ["PATH_INFO"] != "/whole":
        return trivial(environ, start)
    start("200 OK", [("Content-Type", "text/plain")])
    return [HUNDRED_KB]
