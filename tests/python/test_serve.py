"""``osloxide serve`` and ``osloxide run`` with real services: clients, signals, counters."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _children import environment, run_command
from conftest import wait_until
from procfs import session_members
from support.serving import LOGGING, OSLOXIDE, Running, fetch, starter

SITE = """
import os, threading

loaded_in = os.getpid()
release = threading.Event()

def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        with open(environ["QUERY_STRING"], "rb") as fifo:
            fifo.read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {loaded_in} {environ['wsgi.url_scheme']}".encode()]

def make():
    return application

number = 3

class Nested:
    app = staticmethod(application)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start ``osloxide ...`` beside a module ``mysite``; nothing of it may be left."""
    (tmp_path / "mysite.py").write_text(SITE)
    with starter(tmp_path) as begin:
        yield begin


def serve(start: Callable[..., Running], *arguments: str, **variables: str) -> Running:
    return start("serve", *arguments, "--bind", "127.0.0.1:0", **variables)


def test_one_worker_serves_in_the_process_itself(start: Callable[..., Running]) -> None:
    site = serve(start, "mysite")

    assert fetch(site.port()) == [str(site.pid), str(site.pid), "http"]
    assert site.stop() == 0, site.log


@pytest.mark.parametrize("name", ["mysite:application", "mysite:make()", "mysite:Nested.app"])
def test_applications_are_found(start: Callable[..., Running], name: str) -> None:
    site = serve(start, name)

    assert fetch(site.port())[2] == "http"
    assert site.stop() == 0, site.log


def test_each_worker_loads_the_application(start: Callable[..., Running]) -> None:
    site = serve(start, "mysite", "--workers", "2")
    pids = site.running(2)

    pid, loaded_in, _ = fetch(site.port())

    assert int(pid) in pids
    assert loaded_in == pid
    assert site.stop() == 0, site.log


def test_preload_loads_it_before_the_fork(start: Callable[..., Running]) -> None:
    site = serve(start, "mysite", "--workers", "2", "--preload")

    pid, loaded_in, _ = fetch(site.port())

    assert loaded_in == str(site.pid) != pid
    assert site.stop() == 0, site.log


def test_several_addresses_are_served(start: Callable[..., Running], tmp_path: Path) -> None:
    site = serve(start, "mysite", "-b", "127.0.0.1:0", "-b", f"unix:{tmp_path}/socket")

    first, second = site.port(0), site.port(1)
    assert first != second
    assert fetch(first) == fetch(second)
    wait_until((tmp_path / "socket").exists, "the unix socket")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/socket")
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
    assert site.stop() == 0, site.log


def test_hangup_replaces_the_workers(start: Callable[..., Running]) -> None:
    site = serve(start, "mysite", "--workers", "2")
    before = set(site.running(2))

    site.process.send_signal(signal.SIGHUP)

    wait_until(
        lambda: len(now := set(site.running(2))) == 2 and not now & before, "replaced workers"
    )
    assert fetch(site.port())
    assert site.stop() == 0, site.log


def test_a_request_in_flight_is_counted_and_answered_during_the_stop(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    site = serve(start, "mysite", "--workers", "2")
    site.running(2)
    connection = http.client.HTTPConnection("127.0.0.1", site.port(), timeout=30)
    connection.request("GET", f"/slow?{fifo}")
    writer = os.open(fifo, os.O_WRONLY)  # returns when the application has opened it
    wait_until(lambda: sum(w["in_flight"] for w in site.workers()) == 1, "one request in flight")

    site.process.send_signal(signal.SIGTERM)
    wait_until(lambda: len(session_members(site.pid)) == 2, "the idle worker to leave")
    os.close(writer)

    assert connection.getresponse().status == 200
    connection.close()
    assert site.process.wait(30) == 0, site.log


def test_the_installed_command_forks_workers(
    start: Callable[..., Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Started by its own name, and not as python -m: the kernel calls the main thread by it.
    command = tmp_path / "osloxide"
    command.write_text(
        f"#!{sys.executable}\nimport osloxide.cli as c\nraise SystemExit(c.main())\n"
    )
    command.chmod(0o755)
    monkeypatch.setitem(globals(), "OSLOXIDE", [str(command)])

    site = serve(start, "mysite", "--workers", "2")

    assert site.pid not in site.running(2)
    assert site.stop() == 0, site.log


def test_served_requests_are_shown(start: Callable[..., Running]) -> None:
    site = serve(start, "mysite", "--workers", "2")
    site.running(2)
    for _ in range(3):
        fetch(site.port())

    wait_until(lambda: sum(w["served"] for w in site.workers()) == 3, "3 served requests")
    assert site.stop() == 0, site.log


def test_a_process_that_serves_alone_is_shown(start: Callable[..., Running]) -> None:
    site = serve(start, "mysite")
    assert site.running(1) == [site.pid]
    for _ in range(2):
        fetch(site.port())

    wait_until(lambda: [w["served"] for w in site.workers()] == [2], "2 served requests")
    assert site.stop() == 0, site.log


def test_tls_is_served(start: Callable[..., Running], tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    options = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    )
    subprocess.run(["openssl", *options.split()], check=True, capture_output=True)
    site = serve(start, "mysite", "--certfile", str(certificate), "--keyfile", str(key))
    context = ssl.create_default_context(cafile=str(certificate))

    with (
        socket.create_connection(("127.0.0.1", site.port()), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = client.makefile("rb").read()

    assert answer.endswith(b" https")
    assert site.stop() == 0, site.log


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        (["nowhere.app"], 1, "cannot find module nowhere.app"),
        (["mysite:"], 1, "'mysite:' names no application; give MODULE:APP"),
        (["my-site"], 1, "'my-site' names no application; give MODULE:APP"),
        (["mysite:absent", "--preload"], 1, "mysite has no attribute 'absent'"),
        (["mysite:number", "--preload"], 1, "mysite:number is of type int, which cannot be called"),
        (["mysite", "-b", "localhost"], 2, "'localhost' is no address; give HOST:PORT"),
        (["mysite", "-b", "x:70000"], 2, "'x:70000' is no address"),
        (["mysite", "-b", "::1:80"], 2, "write an IPv6 address in brackets, [::1]:8000"),
        (["mysite", "-b", "unix:"], 2, "unix: needs a path"),
        (["mysite", "-w", "0"], 2, "'0' is no whole number of at least 1"),
        (["mysite", "-w", "two"], 2, "'two' is no whole number of at least 1"),
        (["mysite", "-t", "-1"], 2, "--timeout"),
        (["mysite", "-b", "fd://"], 2, "fd:// needs a number or a name"),
        (["mysite", "-e", "NAME"], 2, "'NAME' is no NAME=VALUE"),
        (["mysite", "--reload", "--preload"], 1, "--reload cannot replace what --preload loads"),
        (["mysite", "--pid", "/nowhere/pid"], 1, "--pid /nowhere/pid: No such file or directory"),
        (["mysite", "--umask", "9"], 2, "'9' is no octal mode from 0 to 777"),
        (["mysite", "--chdir", "/nowhere"], 1, "--chdir /nowhere: No such file or directory"),
        (["mysite", "--log-config", "/nowhere"], 1, "--log-config /nowhere: no such file"),
        (["mysite", "--certfile", "/nowhere"], 1, "/nowhere"),
        (["mysite", "-b", "unix:/nowhere/s"], 1, "cannot listen on /nowhere/s"),
        (["mysite", "--access-logformat", "%(user)s"], 1, "names the unknown key 'user'"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: Path, arguments: list[str], status: int, error: str
) -> None:
    (tmp_path / "mysite.py").write_text(SITE)

    result = run_command([*OSLOXIDE, "serve", *arguments], environ=environment(), cwd=tmp_path)

    assert result.returncode == status, result.stderr
    assert error in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use_is_refused(tmp_path: Path, workers: int) -> None:
    (tmp_path / "mysite.py").write_text(SITE)
    with socket.create_server(("127.0.0.1", 0)) as owner:
        address = f"127.0.0.1:{owner.getsockname()[1]}"
        result = run_command(
            [*OSLOXIDE, "serve", "mysite", "-b", address, "-w", str(workers)],
            environ=environment(),
            cwd=tmp_path,
        )

    assert result.returncode == 1
    assert f"osloxide: mysite cannot listen on {address}: Address already in use" in result.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_an_application_that_never_loads_ends_the_command(tmp_path: Path, workers: int) -> None:
    (tmp_path / "broken.py").write_text("raise LookupError('no database')\n")

    result = run_command(
        [*OSLOXIDE, "serve", "broken", "-b", "127.0.0.1:0", "-w", str(workers)],
        environ=environment(),
        cwd=tmp_path,
    )

    assert result.returncode == 3, result.stderr
    assert "LookupError: no database" in result.stderr


def test_a_worker_that_cannot_load_any_more_is_retried_while_others_serve(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    (tmp_path / "fragile.py").write_text(
        "import os\n"
        "if os.path.exists('broken'):\n"
        "    raise LookupError('no database')\n"
        "from mysite import application\n"
    )
    site = serve(start, "fragile", "--workers", "2")
    first, second = site.running(2)
    (tmp_path / "broken").touch()

    os.kill(first, signal.SIGKILL)
    wait_until(lambda: "LookupError: no database" in site.log, "the failure in the log")
    assert fetch(site.port())[0] == str(second)
    (tmp_path / "broken").unlink()

    assert second in site.running(2)
    assert site.stop() == 0, site.log


SERVICE = """
import sys
from oslo_config import cfg
from oslo_service import service

class Idle(service.Service):
    pass

def main():
    conf = cfg.ConfigOpts()
    conf(sys.argv[1:], project="idle", default_config_files=[], default_config_dirs=[])
    launcher = service.launch(conf, Idle(), workers=2)
    launcher.wait()

sys.exit(main())
"""


def test_run_supervises_an_unmodified_service(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    script = tmp_path / "idle-service"
    script.write_text(f"#!{sys.executable}\n{SERVICE}")
    script.chmod(0o755)

    service = start("run", str(script))
    service.running(2)

    # The title that osloxide gives it, if it does, ends with the command.
    command = Path(f"/proc/{service.pid}/cmdline").read_bytes().replace(b"\0", b" ")
    assert f"{sys.executable} {script}".encode() in command
    assert service.stop() == 0, service.log


def answer_of(client: socket.socket) -> bytes:
    """What the application says to one request on a connection of its own."""
    with client:
        client.settimeout(30)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with client.makefile("rb") as reader:
            return reader.read()


def listener(family: socket.AddressFamily = socket.AF_INET, where: object = None) -> socket.socket:
    """A listening socket that a child may inherit."""
    made = socket.socket(family, socket.SOCK_STREAM)
    made.bind(("127.0.0.1", 0) if where is None else where)
    made.listen(16)
    made.set_inheritable(True)
    return made


HAND_OVER = """
import fcntl, json, os, sys
numbers, variables, command = json.loads(sys.argv[1])
for index, number in enumerate([fcntl.fcntl(n, fcntl.F_DUPFD, 64) for n in numbers]):
    os.dup2(number, 3 + index, inheritable=True)
    os.close(number)
for name, value in variables.items():
    os.environ[name] = value.replace("$$", str(os.getpid()))
os.execv(command[0], command)
"""


def inheriting(
    tmp_path: Path, sockets: list[socket.socket], *arguments: str, **variables: str
) -> subprocess.Popen[bytes]:
    """``osloxide serve`` with *sockets* as descriptors 3 and up, as systemd passes them.

    ``$$`` in *variables* stands for the pid of the command.
    """
    (tmp_path / "mysite.py").write_text(SITE)
    numbers = [made.fileno() for made in sockets]
    handed = json.dumps([numbers, variables, [*OSLOXIDE, "serve", *arguments]])
    with (tmp_path / "log").open("wb") as sink:
        return subprocess.Popen(
            [sys.executable, "-c", HAND_OVER, handed],
            cwd=tmp_path,
            env=environment(PYTHONUNBUFFERED="1"),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=numbers,
        )


def ended(process: subprocess.Popen[bytes], log: Path) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert not session_members(process.pid)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sockets_that_systemd_passed_are_served(tmp_path: Path, workers: str) -> None:
    path = str(tmp_path / "socket")
    with listener() as first, listener(socket.AF_UNIX, path) as second:
        process = inheriting(
            tmp_path, [first, second], "mysite", "-w", workers, LISTEN_PID="$$", LISTEN_FDS="2"
        )
        try:
            tcp = answer_of(socket.create_connection(first.getsockname(), 30))
            client = socket.socket(socket.AF_UNIX)
            client.connect(path)
            unix = answer_of(client)
        finally:
            ended(process, tmp_path / "log")

    assert tcp.startswith(b"HTTP/1.1 200 OK")
    assert unix.startswith(b"HTTP/1.1 200 OK")


def test_a_connection_of_before_the_start_is_served(tmp_path: Path) -> None:
    with listener() as made:
        client = socket.create_connection(made.getsockname(), 30)
        process = inheriting(tmp_path, [made], "mysite", "-b", "fd://3")
        try:
            answer = answer_of(client)
        finally:
            ended(process, tmp_path / "log")

    assert answer.startswith(b"HTTP/1.1 200 OK")


def test_a_socket_is_found_by_the_name_that_systemd_gave(tmp_path: Path) -> None:
    with listener() as first, listener() as second:
        process = inheriting(
            tmp_path, [first, second], "mysite", "-b", "fd://api",
            LISTEN_PID="$$", LISTEN_FDS="2", LISTEN_FDNAMES="other:api",
        )  # fmt: skip
        try:
            answer = answer_of(socket.create_connection(second.getsockname(), 30))
        finally:
            ended(process, tmp_path / "log")

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert "does not name: fd://3" in (tmp_path / "log").read_text()


def test_sockets_meant_for_another_process_are_left_alone(tmp_path: Path) -> None:
    with listener() as made:
        process = inheriting(
            tmp_path, [made], "mysite", "-b", "127.0.0.1:0", LISTEN_PID="1", LISTEN_FDS="1"
        )
        log = tmp_path / "log"
        try:
            pattern = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
            wait_until(lambda: pattern.search(log.read_text()) is not None, "listening")
            found = pattern.search(log.read_text())
            assert found is not None
            assert fetch(int(found[1]))
        finally:
            ended(process, log)

    assert "inherited" not in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "variables", "error"),
    [
        (["-b", "fd://9"], {}, "fd://9 is not open; pass a listening"),
        (["-b", "fd://0"], {}, "fd://0 is no socket; pass a listening"),
        (["-b", "fd://3"], {}, "fd://3 does not listen; pass a listening"),
        (["-b", "fd://web"], {}, "fd://web: no inherited socket has that name (known: none)"),
        ([], {"LISTEN_PID": "$$", "LISTEN_FDS": "x"}, "LISTEN_FDS='x' is no number of sockets"),
        (
            [],
            {"LISTEN_PID": "$$", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"},
            "LISTEN_FDNAMES names 2 sockets, LISTEN_FDS says 1",
        ),
    ],
)
def test_descriptors_that_cannot_be_served_are_refused(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], error: str
) -> None:
    with socket.socket() as silent:
        process = inheriting(tmp_path, [silent], "mysite", *arguments, **variables)
        assert process.wait(30) == 1

    assert error in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_an_abstract_unix_socket_is_served(start: Callable[..., Running]) -> None:
    name = f"osloxide-test-{os.getpid()}-{os.urandom(4).hex()}"
    site = start("serve", "mysite", "--bind", f"unix:@{name}")
    wait_until(lambda: f"listening on @{name}" in site.log, f"listening\n{site.log}")

    client = socket.socket(socket.AF_UNIX)
    client.connect(f"\0{name}")
    assert answer_of(client).startswith(b"HTTP/1.1 200 OK")

    other = run_command([*OSLOXIDE, "serve", "mysite", "-b", f"unix:@{name}"],
                        environ=environment(PYTHONPATH=str(site.cwd)))  # fmt: skip
    assert f"cannot listen on @{name}: Address already in use" in other.stderr
    assert site.stop() == 0, site.log


def test_an_ipv6_address_is_served(start: Callable[..., Running]) -> None:
    site = start("serve", "mysite", "--bind", "[::1]:0")
    pattern = re.compile(r"listening on ::1:(\d+)")
    wait_until(lambda: pattern.search(site.log) is not None, f"listening\n{site.log}")
    found = pattern.search(site.log)
    assert found is not None

    client = socket.create_connection(("::1", int(found[1])), 30)

    assert answer_of(client).startswith(b"HTTP/1.1 200 OK")
    assert site.stop() == 0, site.log


def test_the_environment_configures_and_the_command_line_wins(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    site = start(
        "serve", "mysite", "--workers", "2", "--pid", str(tmp_path / "pid"),
        OSLOXIDE_SERVE_BIND=f"127.0.0.1:0,unix:{tmp_path}/socket",
        OSLOXIDE_SERVE_WORKERS="3",
        OSLOXIDE_SERVE_ACCESS_LOGFORMAT="seen %(status_code)d",
        OSLOXIDE_SERVE_PRELOAD="1",
    )  # fmt: skip
    site.running(2)

    assert fetch(site.port())[1] == str(site.pid)  # --preload: loaded by the parent
    wait_until(lambda: "seen 200" in site.log, "the access log")
    assert (tmp_path / "socket").exists()
    assert (tmp_path / "pid").read_text() == f"{site.pid}\n"
    assert site.stop() == 0, site.log
    assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize(
    ("variables", "options", "count"),
    [
        ({"WEB_CONCURRENCY": "2"}, [], 2),
        ({"WEB_CONCURRENCY": "2", "OSLOXIDE_SERVE_WORKERS": "3"}, [], 3),
        ({"WEB_CONCURRENCY": "2"}, ["--workers", "3"], 3),
    ],
)
def test_the_number_of_workers_comes_from_the_nearest_place(
    start: Callable[..., Running], variables: dict[str, str], options: list[str], count: int
) -> None:
    site = serve(start, "mysite", *options, **variables)

    assert len(site.running(count)) == count
    assert site.stop() == 0, site.log


def test_an_address_on_the_command_line_replaces_those_of_the_environment(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    site = start(
        "serve", "mysite", "-b", "127.0.0.1:0", OSLOXIDE_SERVE_BIND=f"unix:{tmp_path}/socket"
    )

    assert fetch(site.port())
    assert not (tmp_path / "socket").exists()
    assert site.stop() == 0, site.log


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"OSLOXIDE_SERVE_WORKRS": "2"}, "OSLOXIDE_SERVE_WORKRS: osloxide serve has no option"),
        ({"OSLOXIDE_SERVE_WORKERS": "two"}, "OSLOXIDE_SERVE_WORKERS: 'two' is no whole number"),
        ({"WEB_CONCURRENCY": "many"}, "WEB_CONCURRENCY: 'many' is no whole number of at least 1"),
        ({"OSLOXIDE_SERVE_RELOAD": "maybe"}, "OSLOXIDE_SERVE_RELOAD: 'maybe' is neither true"),
        ({"OSLOXIDE_SERVE_LOG_LEVEL": "loud"}, "OSLOXIDE_SERVE_LOG_LEVEL: 'loud' is none of debug"),
        ({"OSLOXIDE_SERVE_BIND": "::1:80"}, "OSLOXIDE_SERVE_BIND: '::1:80': write an IPv6"),
    ],
)
def test_wrong_variables_are_refused(tmp_path: Path, variables: dict[str, str], error: str) -> None:
    (tmp_path / "mysite.py").write_text(SITE)
    result = run_command(
        [*OSLOXIDE, "serve", "mysite"], environ=environment(**variables), cwd=tmp_path
    )

    assert result.returncode == 2
    assert error in result.stderr


def test_too_many_header_lines_are_refused(start: Callable[..., Running]) -> None:
    site = serve(start, "mysite", "--limit-request-fields", "5")
    port = site.port()

    def status(lines: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), 30) as client:
            client.sendall(
                b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                + b"X: y\r\n" * (lines - 2)
                + b"\r\n"
            )
            with client.makefile("rb") as reader:
                return reader.readline()

    assert status(5) == b"HTTP/1.1 200 OK\r\n"
    assert status(6) == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    assert site.stop() == 0, site.log


def test_a_worker_that_is_busy_for_too_long_is_replaced(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    site = serve(start, "mysite", "--timeout", "1")
    (before,) = site.running(1)
    assert before != site.pid
    with socket.create_connection(("127.0.0.1", site.port()), 30) as client:
        client.sendall(f"GET /slow?{fifo} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        writer = os.open(fifo, os.O_WRONLY)
        assert client.makefile("rb").read() == b""  # the end of the worker
        os.close(writer)

    wait_until(lambda: site.running(1) != [before], "another worker")
    assert fetch(site.port())
    assert site.stop() == 0, site.log


def test_a_changed_module_is_loaded_anew(start: Callable[..., Running], tmp_path: Path) -> None:
    (tmp_path / "fresh.py").write_text("text = b'one'\n")
    (tmp_path / "changing.py").write_text(
        "import fresh\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [fresh.text]\n"
    )
    site = serve(start, "changing", "--reload", "--workers", "2")
    first = set(site.running(2))
    assert fetch(site.port()) == ["one"]

    (tmp_path / "fresh.py").write_text("text = b'second'\n")
    wait_until(lambda: not set(site.running(2)) & first, "replaced workers")
    # One that leaves answers what has reached it.
    wait_until(lambda: fetch(site.port()) == ["second"], "the new code")
    assert site.log.count("reloading") == 1

    (tmp_path / "fresh.py").write_text("text = b'broken\n")
    wait_until(lambda: "SyntaxError" in site.log, "the report")
    assert fetch(site.port()) == ["second"]  # the old code goes on
    (tmp_path / "fresh.py").write_text("text = b'third!'\n")
    wait_until(lambda: fetch(site.port()) == ["third!"], "the new code", 60)
    assert site.stop() == 0, site.log


def test_a_hangup_under_tls_changes_the_certificate_and_loses_nobody(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    def certify(name: str) -> None:
        options = (
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
            f"-subj /CN={name} -keyout {tmp_path}/{name}.key -out {tmp_path}/{name}.pem"
        )
        subprocess.run(["openssl", *options.split()], check=True, capture_output=True)
        for kind in ("key", "pem"):
            os.replace(tmp_path / f"{name}.{kind}", tmp_path / f"used.{kind}")

    certify("first")
    site = serve(
        start, "mysite", "-w", "2",
        "--certfile", f"{tmp_path}/used.pem", "--keyfile", f"{tmp_path}/used.key",
    )  # fmt: skip
    before = set(site.running(2))
    port = site.port()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    failures: list[str] = []
    certificates: list[bytes | None] = []
    done = threading.Event()

    def client() -> None:
        while not done.is_set():
            try:
                with (
                    socket.create_connection(("127.0.0.1", port), 30) as plain,
                    context.wrap_socket(plain) as encrypted,
                ):
                    certificates.append(encrypted.getpeercert(binary_form=True))
                    encrypted.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                    if not encrypted.makefile("rb").read().endswith(b"https"):
                        failures.append("no answer")
            except OSError as error:
                failures.append(repr(error))

    clients = [threading.Thread(target=client) for _ in range(2)]
    for thread in clients:
        thread.start()
    try:
        wait_until(lambda: len(certificates) > 10, "load")
        certify("second")
        site.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: len(now := set(site.running(2))) == 2 and not now & before, "replaced workers"
        )
        seen = len(certificates)
        wait_until(lambda: len(certificates) > seen + 10, "load")
    finally:
        done.set()
        for thread in clients:
            thread.join(60)

    assert not failures, failures
    assert len(set(certificates)) == 2
    assert certificates[-1] != certificates[0]
    assert site.stop() == 0, site.log


def test_a_hangup_that_would_fail_leaves_a_single_process_serving(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    config = tmp_path / "logging.ini"
    config.write_text(LOGGING)
    site = serve(start, "mysite", "--log-config", str(config))
    port = site.port()
    assert fetch(port)[0] == str(site.pid)

    config.write_text("[loggers")
    site.process.send_signal(signal.SIGHUP)

    wait_until(lambda: "this program goes on with the code" in site.log, "the report")
    assert f"--log-config {config}" in site.log
    assert fetch(port)[0] == str(site.pid)
    assert site.stop() == 0, site.log
