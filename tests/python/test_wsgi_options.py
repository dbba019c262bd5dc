"""Options of group ``[osloxide]`` that a service's configuration file sets for its server."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg
from support.raw_http import Connection

from osloxide import _native, wsgi
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

    def make(*lines: str, **arguments: Any) -> wsgi.Server:
        conf = configured(tmp_path / "service.conf", "\n".join(["[osloxide]", *lines, ""]))
        servers.append(wsgi.Server(conf, "api", application, host="127.0.0.1", **arguments))
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
        (
            ["proxy_protocol = true", "proxy_allow_from = unix"],
            ["proxy_allow_from", "unix", "TCP", "add the addresses"],
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


def test_each_server_of_a_process_gives_up_its_own_requests(make: Make) -> None:
    let_go = threading.Event()

    def hold(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        let_go.wait(60)
        start_response("200 OK", [])
        return [b"in time"]

    patient, hasty = make("request_timeout = 300"), make("request_timeout = 1")
    connections = []
    for server in (patient, hasty):
        server.app = hold
        server.start()
        connections.append(Connection((server.host, server.port)))
        connections[-1].send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    try:
        assert connections[1].answer().status == 504
    finally:
        let_go.set()
    assert connections[0].answer().body == b"in time"
    for connection in connections:
        connection.close()


def test_each_server_of_a_process_replaces_its_own_threads(make: Make) -> None:
    end = time.monotonic() + 60

    def hang(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/hang":
            with contextlib.suppress(BaseException):
                while time.monotonic() < end:
                    time.sleep(0.01)
            let_go.wait(60)
        start_response("200 OK", [])
        return [b"served"]

    let_go = threading.Event()
    servers = [make("request_timeout = 1", pool_size=1) for _ in range(2)]
    try:
        for server in servers:
            server.app = hang
            server.start()
            with Connection((server.host, server.port)) as connection:
                connection.send("GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
                assert connection.answer().status == 504
            with Connection((server.host, server.port)) as connection:
                assert connection.request().body == b"served"  # its only thread is stuck
    finally:
        let_go.set()


def test_the_strictest_bound_on_stuck_threads_of_a_process_counts(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = []
    monkeypatch.setattr(_native, "limit_worker", lambda *, stuck: bounds.append(stuck))
    for bound in (5, 2, 9):
        make("request_timeout = 60", f"max_stuck_threads = {bound}").start()

    assert bounds == [5, 2, 2]


def test_a_keep_alive_timeout_without_keep_alive_is_refused(tmp_path: Path) -> None:
    text = "[DEFAULT]\nwsgi_keep_alive = false\n[osloxide]\nkeep_alive_timeout = 75\n"
    with pytest.raises(
        ValueError, match=r"keep_alive_timeout of .osloxide. is 75 .*wsgi_keep_alive"
    ):
        wsgi.Server(configured(tmp_path / "service.conf", text), "api", application)


def test_proxies_of_unix_sockets_alone_may_connect_to_a_unix_socket(tmp_path: Path) -> None:
    text = "[osloxide]\nproxy_protocol = true\nproxy_allow_from = unix\n"
    conf = configured(tmp_path / "service.conf", text)
    path = str(tmp_path / "socket")
    server = wsgi.Server(conf, "api", application, socket_family=socket.AF_UNIX, socket_file=path)
    server.start()
    with Connection(path) as connection:
        connection.send("PROXY TCP4 192.0.2.7 198.51.100.1 4660 443\r\n")
        connection.send("GET / HTTP/1.1\r\nHost: y\r\n\r\n")
        assert connection.answer().body == b"192.0.2.7 y http"
    server.stop()
    server.wait()
    server._close_sockets()


def test_more_connections_than_open_files_allow_are_told_and_not_tried(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server = make("max_connections = 1000000000")
    server.start()
    with Connection((server.host, server.port)) as connection:
        assert connection.request().status == 200
    assert "max_connections is more than the limit of open files" in caplog.text


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


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("wsgi_default_pool_size =", "pool_size is empty; give at least 1"),
        (f"wsgi_default_pool_size = {10**30}", f"pool_size is {10**30}; give at most 2147483647"),
        ("max_header_line =", "max_header_line is empty; give at least 1"),
        (f"max_header_line = {10**30}", f"max_header_line is {10**30}; give at most"),
        ("client_socket_timeout =", "client_socket_timeout is empty; give at least 0"),
        (f"client_socket_timeout = {10**30}", "or 0 to wait for ever"),
        ("tcp_keepidle =", "tcp_keepidle is empty; give 1 to 32767 seconds"),
        (f"tcp_keepidle = {10**30}", f"tcp_keepidle is {10**30}; give 1 to 32767 seconds"),
    ],
)
def test_a_number_of_oslos_own_options_that_is_none_is_named(
    tmp_path: Path, line: str, said: str
) -> None:
    conf = configured(tmp_path / "service.conf", f"[DEFAULT]\n{line}\n")

    with pytest.raises((ValueError, wsgi.InvalidInput), match=re.escape(said)):
        wsgi.Server(conf, "api", application, host="127.0.0.1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pool_size": 1.5}, "pool_size is 1.5; give a whole number"),
        ({"pool_size": "4"}, "pool_size is '4'; give a whole number"),
        ({"backlog": 2**31}, "backlog is 2147483648; give at most 2147483647"),
        ({"max_url_len": 2**63}, f"max_url_len is {2**63}; give at most {2**63 - 1}"),
    ],
)
def test_an_argument_that_is_no_number_of_its_kind_is_named(
    tmp_path: Path, arguments: dict[str, Any], said: str
) -> None:
    conf = configured(tmp_path / "service.conf", "")

    with pytest.raises((ValueError, wsgi.InvalidInput), match=re.escape(said)):
        wsgi.Server(conf, "api", application, host="127.0.0.1", **arguments)
