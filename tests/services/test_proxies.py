"""Behind the proxies that deployments use, as Debian ships them.

The uwsgi protocol of nginx and Apache, and the PROXY protocol of haproxy.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from services.conftest import Start
from services.processes import accepts_connections, free_port
from services.subject import IS_STOCK, clean_environment

pytestmark = [
    pytest.mark.skipif(IS_STOCK, reason="oslo.service has no such command"),
    pytest.mark.timeout(180),
]

APPLICATION = """
import json

def application(environ, start_response):
    body = environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (b"x" * 1000 for _ in range(1000))
    if environ["PATH_INFO"] == "/large":
        start_response("200 OK", [("Content-Length", "3000000")])
        return [b"y" * 3000000]
    keys = ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "REQUEST_URI",
            "REMOTE_ADDR", "HTTP_X_TOKEN", "HTTP_HOST", "CONTENT_TYPE", "SERVER_PROTOCOL",
            "wsgi.url_scheme", "REMOTE_USER", "HTTP_PROXY")
    facts = {key: environ.get(key) for key in keys}
    facts["body"] = len(body)
    start_response("200 OK", [("Content-Type", "application/json"), ("X-Answer", "yes")])
    return [json.dumps(facts).encode()]
"""

NGINX = """
daemon off;
user root;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/t1; proxy_temp_path {directory}/t2;
    fastcgi_temp_path {directory}/t3; uwsgi_temp_path {directory}/t4; scgi_temp_path {directory}/t5;
    client_max_body_size 10m;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            include /etc/nginx/uwsgi_params;
            uwsgi_param REMOTE_USER someone;
            uwsgi_param REQUEST_SCHEME https;  # again, after that of the file
            uwsgi_pass {upstream};
        }}
    }}
}}
"""

APACHE = """
ServerRoot {directory}
PidFile {directory}/apache.pid
Listen 127.0.0.1:{port}
ServerName localhost
ErrorLog {directory}/apache-error.log
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_uwsgi_module /usr/lib/apache2/modules/mod_proxy_uwsgi.so
User nobody
Group nogroup
ProxyPass "/compute" "{upstream}" retry=0 acquire=1
"""


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path, start: Start) -> Iterator[str]:
    """An application on the uwsgi protocol; its address as ``osloxide uwsgi`` takes it."""
    (tmp_path / "told.py").write_text(APPLICATION)
    tmp_path.chmod(0o755)
    # pytest keeps its directories to root; the proxies' workers are not root.
    for parent in tmp_path.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    where = str(tmp_path / "told.sock") if request.param == "unix" else f"127.0.0.1:{free_port()}"
    service = start(
        [sys.executable, "-m", "osloxide", "uwsgi", "--socket", where, "--chmod-socket=666",
         "--module", "told", "--chdir", str(tmp_path), "--master", "--processes", "2",
         "--buffer-size", "65535", "--threads", "4"],
        tmp_path / "told.log", clean_environment(),
    )  # fmt: skip
    service.wait_workers(2)
    yield where
    service.stop()


def needs(program: str) -> str:
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        pytest.skip(f"{program} is not installed; tools/debian.sh nginx-light apache2-bin haproxy")
    return found


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[[str, str], int]]:
    """Start nginx or Apache in front of an address; returns its port."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(kind: str, where: str) -> int:
        port = free_port()
        is_file = where.startswith("/")
        facts = {"directory": tmp_path, "port": port}
        config = tmp_path / f"{kind}.conf"
        if kind == "nginx":
            upstream = f"unix:{where}" if is_file else where
            config.write_text(NGINX.format(upstream=upstream, **facts))
            command = [needs("nginx"), "-c", str(config)]
        else:
            upstream = f"unix:{where}|uwsgi://told" if is_file else f"uwsgi://{where}"
            config.write_text(APACHE.format(upstream=upstream, **facts))
            command = [needs("apache2"), "-f", str(config), "-DFOREGROUND"]
        running.append(subprocess.Popen(command))
        wait_until(lambda: accepts_connections(port) or None, f"{kind} listens", 30)
        return port

    yield begin
    for process in running:
        process.terminate()
        process.wait(30)


def ask(port: int, path: str, body: object = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST" if body else "GET", path, body, names)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("kind", ["nginx", "apache"])
def test_requests_and_answers_pass_a_proxy_whole(
    address: str, proxy: Callable[[str, str], int], kind: str
) -> None:
    port = proxy(kind, address)
    mount = "/compute" if kind == "apache" else ""

    status, answer = ask(port, f"{mount}/a%20b?c=d", X_Token="t", Proxy="http://evil")
    facts = json.loads(answer)

    assert status == 200
    assert facts["SCRIPT_NAME"] + facts["PATH_INFO"] == f"{mount}/a b"
    assert (facts["QUERY_STRING"], facts["HTTP_X_TOKEN"]) == ("c=d", "t")
    assert facts["REMOTE_ADDR"] == "127.0.0.1"
    assert facts["HTTP_HOST"].split(":")[0] == "127.0.0.1"
    assert facts["SERVER_PROTOCOL"] == "HTTP/1.1"
    set_by_nginx = (facts["wsgi.url_scheme"], facts["REMOTE_USER"])
    assert set_by_nginx == (("https", "someone") if kind == "nginx" else ("http", None))
    assert facts["HTTP_PROXY"] is None
    assert json.loads(ask(port, f"{mount}/", b"z" * 2_000_000)[1])["body"] == 2_000_000
    assert ask(port, f"{mount}/large") == (200, b"y" * 3_000_000)
    assert ask(port, f"{mount}/stream") == (200, b"x" * 1_000_000)
    if kind == "nginx":
        pieces = iter([b"a" * 1000, b"b" * 2000])
        assert json.loads(ask(port, "/", pieces)[1])["body"] == 3000


HAPROXY = """
defaults
    mode {mode}
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend in
    bind 127.0.0.1:{port}
    default_backend out
backend out
    server one 127.0.0.1:{upstream} {send} check inter 100ms
"""


@pytest.mark.parametrize("mode", ["tcp", "http"])
@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
def test_haproxy_tells_whose_connection_it_is(
    tmp_path: Path, start: Start, mode: str, send: str
) -> None:
    (tmp_path / "told.py").write_text(APPLICATION)
    upstream, port = free_port(), free_port()
    service = start(
        [sys.executable, "-m", "osloxide", "serve", "told", "--bind", f"127.0.0.1:{upstream}",
         "--chdir", str(tmp_path), "--workers", "2", "--proxy-protocol"],
        tmp_path / "told.log", clean_environment(),
    )  # fmt: skip
    service.wait_workers(2)
    config = tmp_path / "haproxy.cfg"
    config.write_text(HAPROXY.format(mode=mode, port=port, upstream=upstream, send=send))
    with subprocess.Popen([needs("haproxy"), "-db", "-f", str(config)]) as proxy:
        try:
            wait_until(lambda: accepts_connections(port) or None, "haproxy listens", 30)
            for client in ("127.0.0.7", "127.0.0.8"):
                connection = http.client.HTTPConnection(
                    "127.0.0.1", port, timeout=30, source_address=(client, 0)
                )
                for _ in range(2):
                    connection.request("GET", "/")
                    assert json.loads(connection.getresponse().read())["REMOTE_ADDR"] == client
                connection.close()
        finally:
            proxy.terminate()
    # Health checks are connections as well: they have a header and are not told off.
    assert "PROXY header" not in service.text()
    service.stop()


def connect(address: str) -> socket.socket:
    if address.startswith("/"):
        peer = socket.socket(socket.AF_UNIX)
        peer.settimeout(30)
        peer.connect(address)
        return peer
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), 30)


def everything(peer: socket.socket) -> bytes:
    """What comes until the end of the stream."""
    answer = b""
    while piece := peer.recv(65536):
        answer += piece
    return answer


GOOD = b"".join(
    struct.pack("<H", len(text)) + text
    for text in (b"REQUEST_METHOD", b"GET", b"REQUEST_URI", b"/", b"SERVER_PROTOCOL", b"HTTP/1.1")
)


@pytest.mark.parametrize(
    "packet",
    [
        struct.pack("<BHB", 0, len(GOOD) - 1, 0) + GOOD,
        struct.pack("<BHB", 0, len(GOOD), 0) + GOOD.replace(b"\x0e\0", b"\xff\xff", 1),
        struct.pack("<BHB", 5, len(GOOD), 0) + GOOD,
        struct.pack("<BHB", 0, 0, 0),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_a_packet_that_lies_is_refused_and_the_next_one_is_served(
    address: str, packet: bytes
) -> None:
    with connect(address) as peer:
        peer.sendall(packet)
        assert everything(peer).startswith(b"HTTP/1.0 400 ")
    with connect(address) as peer:
        peer.sendall(struct.pack("<BHB", 0, len(GOOD), 0) + GOOD)
        assert everything(peer)[8:].startswith(b" 200 ")
