"""The WSGI application under test: what it does is chosen by the path, what it saw is recorded.

Every call appends JSON lines to the file named by ``CONFORMANCE_EVENTS`` (``O_APPEND``, so several
processes may write), which the driver reads to learn what really reached an application: that
answers look right says nothing about a smuggled request. Rules: PEP 3333.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

_fd: int | None = None


def record(event: str, tag: str, **fields: Any) -> None:
    """Append one event; never fails the request."""
    global _fd
    if _fd is None:
        path = os.environ.get("CONFORMANCE_EVENTS", os.devnull)
        _fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    line = json.dumps({"event": event, "tag": tag, "pid": os.getpid(), **fields})
    os.write(_fd, line.encode() + b"\n")


class Recorded:
    """An iterable whose ``close()`` is recorded."""

    def __init__(self, items: Iterable[Any], tag: str) -> None:
        self._items = iter(items)
        self._tag = tag

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._items)

    def close(self) -> None:
        record("close", self._tag)


def app(environ: Environ, start_response: StartResponse) -> Iterable[Any]:
    query = parse_qs(environ.get("QUERY_STRING", ""))
    tag = query.get("tag", [""])[0]
    path = environ.get("PATH_INFO", "")
    record("call", tag, path=path, method=environ.get("REQUEST_METHOD"))
    name = path.split("/")[1] if "/" in path else path
    handler = HANDLERS.get(name, hello)
    return Recorded(handler(environ, start_response, tag, query), tag)


Query = dict[str, list[str]]


def hello(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    body = f"hello {tag}".encode()
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def env(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    """The environ as JSON; values that are not str are shown by type."""
    shown = {
        key: value if isinstance(value, (str, bool)) else f"<{type(value).__name__}>"
        for key, value in environ.items()
    }
    shown["wsgi.version"] = repr(environ.get("wsgi.version"))
    body = json.dumps(shown).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def body(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    """Reads the whole request body; an error is recorded and raised on."""
    source = environ["wsgi.input"]
    total = b""
    try:
        while piece := source.read(8192):
            total += piece
    except BaseException as exc:
        record("body_error", tag, error=f"{type(exc).__name__}: {exc}", got=len(total))
        raise
    record("body", tag, length=len(total), text=total[:200].decode("latin-1"))
    answer = json.dumps({"length": len(total), "text": total[:200].decode("latin-1")}).encode()
    start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]


def big(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    """A body of ``mib`` MiB with a length."""
    count = int(query.get("mib", ["8"])[0])
    start("200 OK", [("Content-Length", str(count << 20))])
    return (b"x" * 65536 for _ in range(count * 16))


def drip(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    """One small item every 50 ms for up to 60 s, without a length."""
    start("200 OK", [("Content-Type", "text/plain")])
    for number in range(1200):
        yield b"drop %d\n" % number
        time.sleep(0.05)


def hold(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    """Yields one item, then waits for the file ``release`` (at most 15 s) before the next."""
    start("200 OK", [("Content-Type", "text/plain")])
    yield b"first\n"
    release = query["release"][0]
    deadline = time.monotonic() + 15
    while not os.path.exists(release) and time.monotonic() < deadline:
        time.sleep(0.02)
    yield b"second\n"


def inject(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    """Sends what an application may not send; the server has to refuse it."""
    where = query["where"][0]
    name, value, status = "X-Ok", "fine", "200 OK"
    if where == "name":
        name = "X-Ok: 1\r\nX-Injected"
    elif where == "value":
        value = "fine\r\nX-Injected: yes"
    elif where == "lf":
        value = "fine\nX-Injected: yes"
    elif where == "cr":
        value = "fine\rX-Injected: yes"
    elif where == "nul":
        value = "fine\0X-Injected: yes"
    elif where == "status":
        status = "200 OK\r\nX-Injected: yes"
    start(status, [(name, value), ("Content-Length", "5")])
    return [b"hello"]


def hop(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    """Hop-by-hop headers, forbidden by PEP 3333; the claimed chunking is a lie."""
    start(
        "200 OK",
        [("Transfer-Encoding", "chunked"), ("Keep-Alive", "timeout=77"), ("Content-Length", "5")],
    )
    return [b"hello"]


def nobody(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    """A status without a body, and a body all the same."""
    reasons = {"204": "No Content", "205": "Reset Content", "304": "Not Modified"}
    status = f"{query['status'][0]} {reasons[query['status'][0]]}"
    start(status, [("Content-Type", "text/plain")])
    return [b"LEAKED BODY"] if query.get("body") else []


def head(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    start("200 OK", [("Content-Length", "11")])
    return [b"LEAKED BODY"]


def length(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    """Declares ``says`` bytes and sends ``sends``."""
    start("200 OK", [("Content-Length", query["says"][0])])
    return [b"A" * int(query["sends"][0])]


def nolength(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    start("200 OK", [("Content-Type", "text/plain")])
    yield b"one "
    yield b"two "
    yield b"three"


def empty_pieces(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    start("200 OK", [("Content-Type", "text/plain")])
    yield b""
    yield b"one "
    yield b""
    yield b"two"
    yield b""


def raise_before(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    raise ValueError("the application failed before start_response()")


def raise_after(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    start("200 OK", [("Content-Length", "5"), ("X-From-App", "yes")])
    raise ValueError("the application failed after start_response()")


def raise_mid(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    declared = [("Content-Length", "100000")] if query.get("length") else []
    start("200 OK", [("Content-Type", "text/plain"), *declared])
    yield b"first part " * 1000
    raise ValueError("the application failed in the middle of its body")


def double_start(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    start("200 OK", [("Content-Length", "5")])
    start("201 Created", [("Content-Length", "5")])
    return [b"hello"]


def exc_info(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    """The only legal second call: with exc_info, before anything was sent."""
    start("200 OK", [("X-First", "yes"), ("Content-Length", "3")])
    try:
        raise ValueError("changed my mind")
    except ValueError:
        start("503 Service Unavailable", [("Content-Length", "5")], sys.exc_info())
    return [b"sorry"]


def exc_info_late(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    """With exc_info after the headers were sent: start_response() must raise that exception."""
    start("200 OK", [("Content-Type", "text/plain")])
    yield b"already sent " * 1000
    try:
        raise KeyError("too late")
    except KeyError:
        try:
            start("500 Oops", [("Content-Type", "text/plain")], sys.exc_info())
        except KeyError:
            record("reraised", tag)
            raise
    yield b"not reached"


def no_start(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    return [] if query.get("empty") else [b"hello without a status"]


def str_body(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    start("200 OK", [("Content-Type", "text/plain")])
    return ["text, not bytes"]


def write(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    """The write() callable, then an iterable."""
    put = start("200 OK", [("Content-Type", "text/plain")])
    put(b"written ")
    put(b"")
    return [b"and ", b"iterated"]


def lazy_start(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    """start_response() only when the first item is asked for, after empty items."""
    start("200 OK", [("Content-Type", "text/plain")])
    yield b""
    yield b"late"


def file_wrapper(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    source = open(query["file"][0], "rb")  # noqa: SIM115 -- the server closes it
    start("200 OK", [("Content-Type", "application/octet-stream")])
    wrapper = environ.get("wsgi.file_wrapper")
    return wrapper(source, 8192) if wrapper else iter(lambda: source.read(8192), b"")


def lines(environ: Environ, start: StartResponse, tag: str, query: Query) -> Iterable[Any]:
    """readline(), readlines() with a hint and iteration over wsgi.input."""
    source = environ["wsgi.input"]
    seen = [source.readline(), source.readline(3), *source.readlines(1), *source]
    answer = json.dumps([line.decode("latin-1") for line in seen]).encode()
    start("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]


HANDLERS: dict[str, Callable[[Environ, StartResponse, str, Query], Iterable[Any]]] = {
    handler.__name__: handler
    for handler in (
        env,
        body,
        big,
        drip,
        hold,
        inject,
        hop,
        nobody,
        head,
        length,
        nolength,
        empty_pieces,
        raise_before,
        raise_after,
        raise_mid,
        double_start,
        exc_info,
        exc_info_late,
        no_start,
        str_body,
        write,
        lazy_start,
        file_wrapper,
        lines,
    )
}
