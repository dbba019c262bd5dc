"""The PROXY protocol in front of requests: who may speak it, and what the application sees."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _children import run_command
from conftest import wait_until
from support.serving import OSLOXIDE, Running, starter, uwsgi_packet

SITE = """
def application(environ, start_response):
    start_response("200 OK", [])
    keys = ("REMOTE_ADDR", "REMOTE_PORT", "SERVER_NAME", "SERVER_PORT", "wsgi.url_scheme")
    return [" ".join(environ[key] for key in keys).encode()]
"""
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
VERSION_1 = b"PROXY TCP4 192.0.2.9 198.51.100.1 4660 443\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
CERTIFICATES = Path(__file__).parents[1] / "certificates"


def version_2(command: int = 0x21, *, tlvs: bytes = b"") -> bytes:
    block = socket.inet_aton("192.0.2.9") + socket.inet_aton("198.51.100.1")
    block += struct.pack(">HH", 4660, 443) + tlvs
    return SIGNATURE + struct.pack(">BBH", command, 0x11, len(block)) + block


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "mysite.py").write_text(SITE)
    with starter(tmp_path) as start:
        yield lambda *options: start("serve", "mysite", "-b", "127.0.0.1:0", *options)


def exchange(port: int, *pieces: bytes) -> bytes:
    """What comes back for *pieces*, each in a segment of its own."""
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            client.sendall(piece)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while more := client.recv(65536):
                received += more
    return received


def seen(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), answer
    return body.decode()


TOLD = "192.0.2.9 4660 198.51.100.1 443 http"


LONG = version_2(tlvs=b"\x20\x4e\x20" + b"x" * 20_000)


@pytest.mark.parametrize("header", [VERSION_1, version_2(), version_2(tlvs=b"\1\0\2h2"), LONG])
def test_the_application_sees_the_client_that_the_proxy_tells(
    start: Callable[..., Running], header: bytes
) -> None:
    server = start("--proxy-protocol")
    port = server.port()

    assert seen(exchange(port, header + REQUEST)) == TOLD
    assert seen(exchange(port, header, REQUEST)) == TOLD
    cut = [header[at : at + 1] for at in range(min(len(header), 50))] + [header[50:]]
    assert seen(exchange(port, *cut, REQUEST)) == TOLD
    assert server.stop() == 0, server.log


def test_the_proxys_own_connections_have_its_address(start: Callable[..., Running]) -> None:
    server = start("--proxy-protocol")
    for header in (version_2(0x20), b"PROXY UNKNOWN\r\n"):
        address, _, name, port, _ = seen(exchange(server.port(), header + REQUEST)).split()
        assert (address, name, port) == ("127.0.0.1", "127.0.0.1", str(server.port()))
    assert server.stop() == 0, server.log


@pytest.mark.parametrize(
    "wrong",
    [REQUEST, b"PROXY TCP4 a b c d\r\n" + REQUEST, version_2(0x2F) + REQUEST, b"\x16\x03\x01"],
)
def test_a_connection_without_a_header_is_closed_and_told(
    start: Callable[..., Running], wrong: bytes
) -> None:
    server = start("--proxy-protocol")

    assert exchange(server.port(), wrong) == b""
    wait_until(lambda: "does not begin with a PROXY header" in server.log, "the line")
    assert seen(exchange(server.port(), VERSION_1 + REQUEST)) == TOLD
    assert server.stop() == 0, server.log


HALVES = [VERSION_1[:16], version_2()[:20]]


@pytest.mark.parametrize("half", HALVES, ids=["version 1", "version 2"])
def test_a_header_that_breaks_off_is_told(start: Callable[..., Running], half: bytes) -> None:
    server = start("--proxy-protocol")
    with socket.create_connection(("127.0.0.1", server.port()), 30) as client:
        client.sendall(half)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""

    wait_until(lambda: "does not begin with a PROXY header" in server.log, "the line")
    assert server.stop() == 0, server.log


@pytest.mark.parametrize("half", HALVES, ids=["version 1", "version 2"])
def test_a_header_of_which_no_more_comes_is_told(
    start: Callable[..., Running], half: bytes
) -> None:
    server = start("--proxy-protocol", "--client-timeout", "1")

    assert exchange(server.port(), half) == b""
    wait_until(lambda: "does not begin with a PROXY header" in server.log, "the line")
    assert server.stop() == 0, server.log


def test_a_check_that_only_connects_is_not_told(start: Callable[..., Running]) -> None:
    server = start("--proxy-protocol", "--client-timeout", "1")
    socket.create_connection(("127.0.0.1", server.port()), 30).close()

    assert exchange(server.port()) == b""  # its time is up
    assert seen(exchange(server.port(), VERSION_1 + REQUEST)) == TOLD
    assert server.stop() == 0, server.log
    assert "PROXY header" not in server.log


def test_only_proxies_may_connect(start: Callable[..., Running]) -> None:
    server = start("--proxy-protocol", "--proxy-allow-from", "10.0.0.0/8,::1")

    assert exchange(server.port(), VERSION_1 + REQUEST) == b""
    wait_until(lambda: "closed a connection from an address that is no proxy's" in server.log, "it")
    assert server.stop() == 0, server.log


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--proxy-allow-from", "10.0.0.0/8"], ["10.0.0.0/8", "--proxy-protocol", "give both"]),
        (["--proxy-protocol", "--proxy-allow-from", ","], ["','", "names no proxy", "* for all"]),
        (["--proxy-protocol", "--proxy-allow-from", "lb"], ["'lb'", "10.0.0.0/8"]),
    ],
)
def test_a_list_of_proxies_that_cannot_be_meant_is_refused(
    tmp_path: Path, options: list[str], named: list[str]
) -> None:
    (tmp_path / "mysite.py").write_text(SITE)
    serve = [*OSLOXIDE, "serve", "mysite", "-b", "127.0.0.1:0"]
    result = run_command([*serve, *options], cwd=tmp_path)

    assert result.returncode != 0
    assert [text for text in ("--proxy-allow-from", *named) if text not in result.stderr] == []


def test_without_the_option_the_header_is_no_request(start: Callable[..., Running]) -> None:
    server = start()

    assert exchange(server.port(), VERSION_1 + REQUEST).startswith(b"HTTP/1.1 400 ")
    assert server.stop() == 0, server.log


def test_the_header_comes_before_tls(start: Callable[..., Running]) -> None:
    server = start(
        "--proxy-protocol",
        *("--certfile", str(CERTIFICATES / "server.crt")),
        *("--keyfile", str(CERTIFICATES / "server.key")),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for header in (VERSION_1, version_2()):
        plain = socket.create_connection(("127.0.0.1", server.port()), 30)
        plain.sendall(header)
        with context.wrap_socket(plain) as client:
            client.sendall(REQUEST)
            received = b""
            while more := client.recv(65536):
                received += more
        assert seen(received) == "192.0.2.9 4660 198.51.100.1 443 https"
    assert server.stop() == 0, server.log


def test_half_a_header_does_not_hold_up_a_stop(start: Callable[..., Running]) -> None:
    server = start("--proxy-protocol")
    with socket.create_connection(("127.0.0.1", server.port()), 30) as client:
        client.sendall(VERSION_1[:20])
        assert seen(exchange(server.port(), VERSION_1 + REQUEST)) == TOLD
        assert server.stop() == 0, server.log


def test_proxies_that_speak_uwsgi_send_no_header(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    server = start("-b", f"uwsgi://unix:{tmp_path}/socket", "--proxy-protocol")
    assert seen(exchange(server.port(), VERSION_1 + REQUEST)) == TOLD

    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(f"{tmp_path}/socket")
        client.sendall(uwsgi_packet(REMOTE_ADDR="192.0.2.7"))
        received = b""
        while more := client.recv(65536):
            received += more
    assert b"192.0.2.7" in received
    assert server.stop() == 0, server.log


def test_a_header_that_no_address_takes_is_refused(tmp_path: Path) -> None:
    command = [*OSLOXIDE, "serve", "mysite", "-b", "uwsgi://127.0.0.1:0", "--proxy-protocol"]
    (tmp_path / "mysite.py").write_text(SITE)
    result = run_command(command, cwd=tmp_path)

    assert result.returncode == 1
    assert "every --bind is uwsgi://" in result.stderr
