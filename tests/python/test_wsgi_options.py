"""Options of group ``[osloxide]`` that a service's configuration file sets for its server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg
from support.raw_http import Connection

from osloxide import wsgi
from osloxide.launch import configuration
from osloxide.server import options

Make = Callable[..., wsgi.Server]


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    told = environ["REMOTE_ADDR"], environ["HTTP_HOST"], environ["wsgi.url_scheme"]
    return [" ".join(told).encode()]


def configured(path: Path, text: str) -> cfg.ConfigOpts:
    path.write_text(text)
    conf = cfg.ConfigOpts()
    conf(["--config-file", str(path)], project="service")
    return conf


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A server of a service whose configuration file has these lines in ``[osloxide]``."""
    servers = []

    def make(*lines: str) -> wsgi.Server:
        conf = configured(tmp_path / "service.conf", "\n".join(["[osloxide]", *lines, ""]))
        servers.append(wsgi.Server(conf, "api", application, host="127.0.0.1"))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()
        server.wait()
        server._close_sockets()


def test_every_option_is_one_of_the_server(make: Make) -> None:
    lines = (
        "max_connections = 50", "keep_alive_timeout = 75", "max_request_body = 114688",
        "max_request_headers = 60", "max_waiting_requests = 0", "request_timeout = 30",
        "max_stuck_threads = 4", "slow_client_share = 25", "max_unsent = 1000000",
        "proxy_protocol = true", "proxy_allow_from = 192.0.2.0/24",
        "forwarded_allow_ips = 10.0.0.0/8, unix", "forwarded_headers = forwarded",
    )  # fmt: skip
    server = make(*lines)

    assert {line.split()[0] for line in lines} == {option.name for option in options.OPTIONS}
    assert (server.max_connections, server.keep_alive_timeout) == (50, 75)
    assert (server.max_body, server.max_headers, server.max_waiting) == (114688, 60, 0)
    assert (server.request_timeout, server.max_stuck_threads) == (30, 4)
    assert (server.slow_client_share, server.max_unsent) == (25, 1000000)
    assert server.proxies is not None
    assert [str(end) for end in server.proxies[0]] == ["192.0.2.0", "192.0.2.255"]
    assert server.forwarded_from is not None
    assert server.forwarded_from.has_peer("10.1.2.3")
    assert server.forwarded_headers == "forwarded"
    server.start()


def test_an_option_that_is_not_set_leaves_the_servers_own(make: Make) -> None:
    own = {name: getattr(wsgi.Server, name) for name in options._ATTRIBUTES.values()}
    for lines in ((), ("max_connections =", "proxy_allow_from =", "max_request_body = 0")):
        server = make(*lines)
        assert {name: getattr(server, name) for name in own} == own
        assert (server.proxies, server.forwarded_from) == (None, None)


def test_the_options_are_honoured(make: Make) -> None:
    server = make(
        "max_request_body = 1000", "max_request_headers = 3", "forwarded_allow_ips = 127.0.0.1"
    )
    server.start()
    connection = Connection((server.host, server.port))
    connection.send(
        "GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.9\r\n"
        "X-Forwarded-Proto: https\r\n\r\n"
    )
    assert connection.answer().body == b"192.0.2.9 x https"
    connection.send("GET / HTTP/1.1\r\nHost: x\r\nA: 1\r\nB: 2\r\nC: 3\r\n\r\n")
    assert connection.answer().status == 431
    connection.close()

    # Below what is collected before an application is called, and not a byte of it is sent.
    connection = Connection((server.host, server.port))
    connection.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n")
    answer = connection.answer()
    assert (answer.status, answer.one("Connection")) == (413, "close")
    connection.close()


def test_a_proxys_header_is_expected_where_the_file_says_so(make: Make) -> None:
    server = make("proxy_protocol = true")
    server.start()
    connection = Connection((server.host, server.port))
    connection.send("PROXY TCP4 192.0.2.7 198.51.100.1 4660 443\r\n")
    connection.send("GET / HTTP/1.1\r\nHost: y\r\n\r\n")
    assert connection.answer().body == b"192.0.2.7 y http"
    connection.close()


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["max_connections = 0"], ["max_connections", "'0'", "from 1"]),
        (["max_connections = many"], ["max_connections", "'many'", "whole number"]),
        (["max_request_body = -1"], ["max_request_body", "'-1'", "from 0"]),
        (["max_request_body = 10M"], ["max_request_body", "'10M'", "whole number"]),
        (["keep_alive_timeout = 1e9"], ["keep_alive_timeout", "'1e9'"]),
        (["keep_alive_timeout = 99999999999"], ["keep_alive_timeout", "to 3155760000"]),
        (["max_waiting_requests = 9" + "9" * 30], ["max_waiting_requests", "whole number"]),
        (["slow_client_share = 101"], ["slow_client_share", "'101'", "from 1 to 100"]),
        (["proxy_protocol = maybe"], ["proxy_protocol", "maybe", "true or false"]),
        (
            ["proxy_protocol = true", "proxy_allow_from = lb.example"],
            ["proxy_allow_from", "'lb.example'", "10.0.0.0/8"],
        ),
        (["proxy_protocol = true", "proxy_allow_from = ,"], ["proxy_allow_from", "','", "* for"]),
        (["proxy_allow_from = *"], ["proxy_allow_from", "*", "proxy_protocol"]),
        (["forwarded_allow_ips = 10.0.0.0/33"], ["forwarded_allow_ips", "'10.0.0.0/33'"]),
        (["forwarded_headers = forwarded"], ["forwarded_headers", "forwarded_allow_ips"]),
        (
            ["forwarded_allow_ips = *", "forwarded_headers = x-real-ip"],
            ["forwarded_headers", "'x-real-ip'", "x-forwarded"],
        ),
        (["max_stuck_threads = 3"], ["max_stuck_threads", "3", "request_timeout"]),
        (
            ["request_timeout = 60", "worker_timeout = 30"],
            ["worker_timeout", "30", "request_timeout", "larger"],
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_option_value_and_remedy(
    make: Make, lines: list[str], named: list[str]
) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is looked at below
        make(*lines)

    assert [text for text in ("[osloxide]", *named) if text not in str(raised.value)] == []


def test_an_application_that_hangs_is_answered_504_by_a_service_of_a_file(make: Make) -> None:
    server = make("request_timeout = 1")
    end = time.monotonic() + 60

    def hang(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        while time.monotonic() < end:
            time.sleep(0.01)
        return []

    server.app = hang
    server.start()
    connection = Connection((server.host, server.port))
    connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.answer().status == 504
    connection.close()


def test_the_generator_lists_them_under_a_namespace_of_their_own(tmp_path: Path) -> None:
    sample = subprocess.run(
        [
            sys.executable, "-m", "oslo_config.generator",
            "--namespace", "osloxide", "--namespace", "osloxide.wsgi",
        ],
        check=True, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=os.environ,
    ).stdout  # fmt: skip
    for option in (*configuration.OPTIONS, *options.OPTIONS):
        assert f"#{option.name} = " in sample, sample
    ((group, listed),) = options.list_opts()
    assert group == "osloxide"
    assert listed[0] is not options.OPTIONS[0], "must be a copy"
