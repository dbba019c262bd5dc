"""Answers that break off: their clients get what was sent, and never take it for the whole.

Rules: RFC 9112 section 8 (what is complete) and 9.8 (TLS), PEP 3333 "Buffering and Streaming" (a
piece that was yielded is sent, whatever comes after it).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.raw_http import Connection, Incomplete, configuration, serving
from support.serving import Running, starter
from support.tls import TLSConnection, tls_configuration
from waiting import until, wait_until

from osloxide import wsgi

WHOLE = bytes(30_000)
#: More than the kernel takes for a client that does not read.
LARGE = bytes(range(256)) * 12_000
SCHEMES = ["http", "https"]


def breaking(path: Path) -> Callable[..., Any]:
    """An application that breaks its answers off as the target says; *path* is of a file."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        way = environ["PATH_INFO"]
        if way == "/whole":
            start_response("200 OK", [])
            return [WHOLE]
        declares = way not in ("/raises", "/raises-behind-much")
        length = [("Content-Length", str(2 * len(LARGE)))] if declares else []
        start_response("200 OK", length)
        if way in ("/file", "/shrinks"):
            return environ["wsgi.file_wrapper"](path.open("rb"))
        return pieces(b"some" if not way.endswith("much") else LARGE, "short" in way)

    def pieces(piece: bytes, is_short: bool) -> Iterator[bytes]:
        yield piece
        if not is_short:
            raise RuntimeError("on purpose")

    return application


@contextlib.contextmanager
def talking(
    application: Any, scheme: str, **options: object
) -> Iterator[tuple[wsgi.Server, Connection]]:
    """A server of *application*, and a client that takes little at a time."""
    is_tls = scheme == "https"
    conf = tls_configuration() if is_tls else configuration()
    for name, value in options.items():
        conf.set_override(name, value)
    kind = TLSConnection if is_tls else Connection
    with (
        serving(application, conf=conf, use_ssl=is_tls) as server,
        kind((server.host, server.port), 4096) as client,
    ):
        yield server, client


def pipeline(*paths: str, version: str = "HTTP/1.1") -> str:
    """Requests, and behind them the beginning of one whose body nobody will read."""
    head = f"{version}\r\nHost: x\r\nConnection: keep-alive\r\n"
    last = f"POST /never {head}Content-Length: 60000\r\n\r\n" + "x" * 60_000
    return "".join(f"GET {path} {head}\r\n" for path in paths) + last


def served(server: wsgi.Server) -> int:
    return sum(engine.stats()["served"] for engine in server._engines)


def connections(server: wsgi.Server) -> int:
    return sum(engine.stats()["connections"] for engine in server._engines)


def take_all(client: Connection) -> tuple[bytes, str]:
    """What comes to the end of the connection; how that is announced."""
    received = bytearray(client._take(len(client._received)))
    while True:
        try:
            piece = client.socket.recv(65536)
        except ConnectionResetError:
            return bytes(received), "reset"
        except ssl.SSLEOFError:
            return bytes(received), "cut"
        if not piece:
            return bytes(received), "in order"
        received += piece


def announced(version: str, path: str, scheme: str) -> set[str]:
    """How the end of an answer that is not whole may be announced."""
    if scheme == "https":
        return {"cut", "reset"}  # without close_notify; some versions of OpenSSL tell of a reset
    is_reset = version == "HTTP/1.0" and path in ("/raises", "/raises-behind-much")
    return {"reset" if is_reset else "in order"}


def chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize(
    "path",
    ["/raises", "/declared", "/short", "/file", "/raises-behind-much", "/declared-behind-much",
     "/short-behind-much"],
)  # fmt: skip
def test_what_was_given_before_the_cut_and_earlier_answers_reach_the_client(
    path: str, version: str, scheme: str, tmp_path: Path
) -> None:
    # Most of it is not with the client when the connection is to end: a reset takes it back, and so
    # does a close beside requests that are unread.
    file = tmp_path / "file"
    file.write_bytes(LARGE)
    with talking(breaking(file), scheme) as (server, client):
        client.send(pipeline("/whole", path, version=version))
        assert until(lambda: served(server) == 2)

        assert client.answer().body == WHOLE
        head = client.head()
        body, end = take_all(client)

    given = LARGE if path == "/file" or path.endswith("much") else b"some"
    assert body == (chunked(given) if head.one("Transfer-Encoding") else given)
    assert end in announced(version, path, scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_what_was_sent_of_a_file_that_shrinks_and_earlier_answers_reach_the_client(
    version: str, scheme: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_bytes(2 * LARGE)
    with talking(breaking(file), scheme) as (server, client):
        client.send(pipeline("/whole", "/shrinks", version=version))
        assert until(lambda: served(server) == 2)
        os.truncate(file, 1)

        assert client.answer().body == WHOLE
        assert client.head().one("Content-Length") == str(2 * len(LARGE))
        body, end = take_all(client)

        assert until(lambda: "gave " in caplog.text)
    assert end in announced(version, "/shrinks", scheme)
    # Its bytes are no longer those that were there: the kernel sends the file's own pages.
    assert 0 < len(body) < len(LARGE) * 2
    assert f"gave {len(body)} of the {2 * len(LARGE)} bytes" in caplog.text


def test_a_client_that_takes_nothing_of_what_is_left_for_it_is_given_up(tmp_path: Path) -> None:
    with talking(breaking(tmp_path), "http", client_socket_timeout=1) as (server, client):
        client.send(pipeline("/whole", "/raises", version="HTTP/1.0"))
        assert until(lambda: served(server) == 2)

        assert until(lambda: connections(server) == 0)


def test_a_client_that_leaves_before_it_has_taken_what_is_left_for_it_is_noticed(
    tmp_path: Path,
) -> None:
    with talking(breaking(tmp_path), "http") as (server, client):
        client.send(pipeline("/whole", "/raises", version="HTTP/1.0"))
        assert until(lambda: served(server) == 2)

        client.reset()

        assert until(lambda: connections(server) == 0)


SITE = """
import os, time

def application(environ, start_response):
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/whole":
        return [bytes(30_000)]
    return stream(b"some" if environ["PATH_INFO"] != "/much" else bytes(range(256)) * 12_000)

def stream(piece):
    yield piece
    while not os.path.exists("release"):
        time.sleep(0.01)
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "streaming_site.py").write_text(SITE)
    with starter(tmp_path) as start:
        try:
            yield lambda *options: start(
                "serve", "streaming_site", "--bind", "127.0.0.1:0", *options
            )
        finally:
            (tmp_path / "release").touch()


def test_an_answer_that_only_its_end_delimits_does_not_look_whole_when_its_worker_is_killed(
    site: Callable[..., Running],
) -> None:
    server = site("--master")
    (pid,) = server.running(1)
    with Connection(("127.0.0.1", server.port())) as client:
        client.send("GET / HTTP/1.0\r\n\r\n")
        client.head()
        assert client.exactly(4) == b"some"
        os.kill(pid, signal.SIGKILL)

        assert take_all(client) == (b"", "reset")
    assert server.stop() == 0, server.log


@pytest.mark.parametrize(
    ("path", "given"), [("/", b"some"), ("/much", LARGE)], ids=["some", "much"]
)
def test_a_request_that_is_given_up_takes_nothing_of_what_was_given_before(
    site: Callable[..., Running], path: str, given: bytes
) -> None:
    server = site("--request-timeout", "1")
    with Connection(("127.0.0.1", server.port()), 4096) as client:
        client.send(pipeline("/whole", path, version="HTTP/1.0"))
        wait_until(lambda: "has run for" in server.log, "the end of its time")

        assert client.answer().body == WHOLE
        client.head()
        assert take_all(client) == (given, "reset")
    assert server.stop() == 0, server.log


@pytest.mark.parametrize(
    ("path", "version"),
    [("/raises", "HTTP/1.1"), ("/declared", "HTTP/1.0"), ("/declared", "HTTP/1.1")],
)
def test_a_cut_is_seen_without_a_reset_where_more_than_the_end_delimits_the_answer(
    path: str, version: str, tmp_path: Path
) -> None:
    file = str(tmp_path / "socket")
    unix: dict[str, Any] = {"socket_family": socket.AF_UNIX, "socket_file": file}
    with serving(breaking(tmp_path), host=None, **unix), Connection(file) as client:
        client.send(f"GET {path} {version}\r\nHost: x\r\n\r\n")
        declared = client.head().one("Content-Length")
        with pytest.raises(Incomplete):
            client.exactly(int(declared)) if declared else list(client.chunks())


def test_a_unix_socket_keeps_earlier_answers_too(tmp_path: Path) -> None:
    file = str(tmp_path / "socket")
    unix: dict[str, Any] = {"socket_family": socket.AF_UNIX, "socket_file": file}
    with serving(breaking(tmp_path), host=None, **unix) as server, Connection(file) as client:
        client.send(pipeline("/whole", "/raises", version="HTTP/1.0"))
        assert until(lambda: served(server) == 2)

        assert client.answer().body == WHOLE
        client.head()
        assert take_all(client)[0] == b"some"
