"""What proxies say of the client, and whom ``osloxide serve`` believes."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _children import run_command
from support.raw_http import Connection
from support.serving import OSLOXIDE, Running, starter, uwsgi_packet

from osloxide.server.forwarded import Trusted, believed

KEYS = ("REMOTE_ADDR", "wsgi.url_scheme", "HTTP_HOST", "SERVER_PORT")


def seen(
    trusted: str, headers: dict[str, str], kind: str = "x-forwarded", peer: str = "10.0.0.1"
) -> dict[str, Any]:
    """The environ that an application gets."""
    found: dict[str, Any] = {}
    environ = {
        "REMOTE_ADDR": peer,
        "REMOTE_PORT": "1",
        "SERVER_PORT": "80",
        "HTTP_HOST": "inner",
        "wsgi.url_scheme": "http",
    }
    for name, value in headers.items():
        environ["HTTP_" + name.upper().replace("-", "_")] = value

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        found.update(environ)
        return []

    believed(application, Trusted(trusted), kind)(environ, lambda *_: None)
    return found


def addresses(trusted: str, text: str, **more: str) -> str:
    return seen(trusted, {"X-Forwarded-For": text}, **more)["REMOTE_ADDR"]


def test_a_peer_that_is_not_trusted_is_not_believed() -> None:
    headers = {
        "X-Forwarded-For": "192.0.2.9",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil",
        "X-Forwarded-Port": "1",
    }
    found = seen("10.0.0.2", headers)

    assert [found[key] for key in KEYS] == ["10.0.0.1", "http", "inner", "80"]
    assert "HTTPS" not in found


def test_a_trusted_peer_is_believed() -> None:
    headers = {
        "X-Forwarded-For": "192.0.2.9",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "api.example.org",
        "X-Forwarded-Port": "443",
    }
    found = seen("10.0.0.0/8", headers)

    assert [found[key] for key in KEYS] == ["192.0.2.9", "https", "api.example.org", "443"]
    assert found["HTTPS"] == "on"


@pytest.mark.parametrize(
    ("text", "client"),
    [
        ("192.0.2.9", "192.0.2.9"),
        ("6.6.6.6, 192.0.2.9", "192.0.2.9"),  # what a client claims stands in front
        ("6.6.6.6, 192.0.2.9, 10.0.0.7", "192.0.2.9"),
        ("10.0.0.8, 10.0.0.7", "10.0.0.8"),  # a client inside
        ("192.0.2.9:4711", "192.0.2.9"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:192.0.2.9", "192.0.2.9"),
        ("192.0.2.9, unknown", "10.0.0.1"),
        ("192.0.2.9, garbage, 10.0.0.7", "10.0.0.7"),
        ("", "10.0.0.1"),
        (",,", "10.0.0.1"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxy_of_ours(text: str, client: str) -> None:
    assert addresses("10.0.0.0/8", text) == client


def test_a_star_believes_every_peer_and_the_whole_list() -> None:
    assert addresses("*", "192.0.2.9, 198.51.100.1") == "192.0.2.9"


@pytest.mark.parametrize(("trusted", "client"), [("unix", "192.0.2.9"), ("127.0.0.1", "unix")])
def test_the_peers_of_unix_sockets_are_trusted_by_name(trusted: str, client: str) -> None:
    assert addresses(trusted, "192.0.2.9", peer="unix") == client


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Forwarded-Proto", "javascript"),
        ("X-Forwarded-Host", "a/b"),
        ("X-Forwarded-Host", "a b"),
        ("X-Forwarded-Port", "0"),
        ("X-Forwarded-Port", "65536"),
        ("X-Forwarded-Port", "http"),
        ("X-Forwarded-Port", "9" * 5000),
        ("X-Forwarded-Port", "\xb2"),
    ],
)
def test_values_that_cannot_be_are_left_out(header: str, value: str) -> None:
    found = seen("*", {header: value})

    assert [found[key] for key in KEYS[1:]] == ["http", "inner", "80"]


@pytest.mark.parametrize("address", ["fe80::1%eth0", "::1%<b>", "[fe80::1%\xb2]:80"])
def test_a_zone_of_an_address_is_no_part_of_it(address: str) -> None:
    assert addresses("*", address) == "10.0.0.1"


@pytest.mark.parametrize("port", ["\xb2", "9" * 5000, "0", "65536", "-1", ""])
def test_a_port_of_the_client_that_cannot_be_is_left_out(port: str) -> None:
    found = seen("*", {"X-Forwarded-For": f"192.0.2.9:{port}"})

    assert (found["REMOTE_ADDR"], found["REMOTE_PORT"]) == ("192.0.2.9", "")


def test_of_a_list_the_nearest_proxy_is_believed() -> None:
    headers = {"X-Forwarded-Proto": "http, https", "X-Forwarded-Host": "evil, good"}
    found = seen("*", headers)

    assert (found["wsgi.url_scheme"], found["HTTP_HOST"]) == ("https", "good")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("for=192.0.2.9;proto=https;host=api", ["192.0.2.9", "https", "api"]),
        ('For="[2001:db8::1]:4711" ; Proto=HTTPS', ["2001:db8::1", "https", "inner"]),
        ('for=6.6.6.6;host="a,b", for=192.0.2.9;host=api', ["192.0.2.9", "http", "api"]),
        ("for=192.0.2.9;host=api, for=10.0.0.7;host=mid", ["192.0.2.9", "http", "api"]),
        ("for=_hidden;proto=https", ["10.0.0.1", "https", "inner"]),
        ("for=unknown", ["10.0.0.1", "http", "inner"]),
        ("for=6.6.6.6;;=, for=192.0.2.9", ["192.0.2.9", "http", "inner"]),
        ("for=192.0.2.9, nonsense", ["10.0.0.1", "http", "inner"]),
        ('for="192.0.2.9', ["10.0.0.1", "http", "inner"]),
        ("", ["10.0.0.1", "http", "inner"]),
    ],
)
def test_the_standard_header_is_read_as_rfc_7239_says(text: str, expected: list[str]) -> None:
    found = seen("10.0.0.0/8", {"Forwarded": text}, "forwarded")

    assert [found[key] for key in KEYS[:3]] == expected


def test_headers_that_were_not_chosen_are_not_read() -> None:
    """A proxy that sets one kind passes the other on as the client sent it."""
    both = {"Forwarded": "for=6.6.6.6;proto=https", "X-Forwarded-For": "192.0.2.9"}

    assert seen("*", both)["REMOTE_ADDR"] == "192.0.2.9"
    assert seen("*", both)["wsgi.url_scheme"] == "http"
    assert seen("*", both, "forwarded")["REMOTE_ADDR"] == "6.6.6.6"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "mysite.py").write_text(
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [(environ['wsgi.url_scheme'] + ' ' + environ['REMOTE_ADDR']).encode()]\n"
    )
    with starter(tmp_path) as start:
        yield start


def test_serve_believes_whom_it_is_told_to(start: Callable[..., Running]) -> None:
    headers = {"X-Forwarded-For": "192.0.2.9", "X-Forwarded-Proto": "https"}

    def ask(*options: str) -> str:
        server = start("serve", "mysite", "-b", "127.0.0.1:0", *options)
        connection = http.client.HTTPConnection("127.0.0.1", server.port(), timeout=30)
        connection.request("GET", "/", headers=headers)
        text = connection.getresponse().read().decode()
        connection.close()
        assert server.stop() == 0
        return text

    assert ask() == "http 127.0.0.1"
    assert ask("--forwarded-allow-ips", "127.0.0.1") == "https 192.0.2.9"


def test_what_is_no_address_is_a_usage_error(tmp_path: Path) -> None:
    command = [*OSLOXIDE, "serve", "mysite", "--forwarded-allow-ips", "127.0.0.1,proxy"]
    result = run_command(command, cwd=tmp_path)

    assert result.returncode == 2
    assert "'proxy' is no address, network, unix or *" in result.stderr


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ('for="192.0.2.9, 192.0.2.8', "10.0.0.1"),
        ('x="a, for=192.0.2.9', "192.0.2.9"),
        ('x="a\\", for=192.0.2.9', "192.0.2.9"),
        ('x="a, for=192.0.2.8";for=192.0.2.9', "192.0.2.9"),
        (r'x="a\", for=192.0.2.8";for=192.0.2.9', "192.0.2.9"),
        ("for=192.0.2.9,", "192.0.2.9"),
        (", for=192.0.2.9 , ,", "192.0.2.9"),
        # What a client may make a proxy pass on: no time is lost over it.
        ('"' + r"\"" * 30_000 + ", for=192.0.2.9", "192.0.2.9"),
        ('"' * 60_001 + ", for=192.0.2.9", "192.0.2.9"),
    ],
)
def test_quotation_marks_that_close_nothing_hide_no_later_proxy(text: str, address: str) -> None:
    found = seen("10.0.0.1", {"Forwarded": text}, "forwarded")

    assert found["REMOTE_ADDR"] == address


def test_a_packet_of_uwsgi_that_names_no_client_does_not_pass_for_a_trusted_unix_socket(
    tmp_path: Path,
) -> None:
    (tmp_path / "mysite.py").write_text(
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [environ['REMOTE_ADDR'].encode()]\n"
    )
    with starter(tmp_path) as start:
        server = start(
            *("serve", "mysite", "-b", "uwsgi://127.0.0.1:0", "-b", f"unix:{tmp_path}/http"),
            *("--forwarded-allow-ips", "unix"),
        )
        answers = []
        for named in ({}, {"REMOTE_ADDR": "192.0.2.7"}):
            packet = uwsgi_packet(HTTP_X_FORWARDED_FOR="192.0.2.66", **named)
            with Connection(("127.0.0.1", server.port())) as client:
                client.send(packet)
                answers.append(client.answer().body)
        assert server.stop() == 0, server.log
    assert answers == [b"127.0.0.1", b"192.0.2.7"]
