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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _children import environment, run_command, session_members
from conftest import wait_until

OSLOXIDE = [sys.executable, "-m", "osloxide"]

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


class Running:
    """A command that serves; its log is read from a file."""

    def __init__(self, log: Path, *arguments: str, cwd: Path, **changes: str) -> None:
        self._log = log
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [*OSLOXIDE, *arguments],
                cwd=cwd,
                env=environment(PYTHONUNBUFFERED="1", **changes),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def port(self, number: int = 0) -> int:
        """The port of its nth address, once it listens."""
        pattern = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
        wait_until(
            lambda: len(pattern.findall(self.log)) > number or self.process.poll() is not None,
            f"listening\n{self.log}",
        )
        return int(pattern.findall(self.log)[number])

    def workers(self) -> list[dict[str, object]]:
        """Its workers as ``osloxide status`` shows them; none before it has any."""
        result = run_command([*OSLOXIDE, "status", "--json", str(self.pid)], environ=environment())
        return json.loads(result.stdout)[0]["workers"] if result.returncode == 0 else []

    def running(self, count: int) -> list[int]:
        """Wait for *count* workers that are ready; their pids."""
        found: list[int] = []

        def ready() -> bool:
            found[:] = [w["pid"] for w in self.workers() if w["state"] == "running"]
            return len(found) == count

        wait_until(ready, f"{count} workers\n{self.log}")
        return found

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start ``osloxide ...`` beside a module ``mysite``; nothing of it may be left."""
    (tmp_path / "mysite.py").write_text(SITE)
    started: list[Running] = []

    def begin(*arguments: str, **changes: str) -> Running:
        log = tmp_path / f"log{len(started)}"
        started.append(Running(log, *arguments, cwd=tmp_path, **changes))
        return started[-1]

    yield begin
    left = {}
    for running in started:
        ended = running.process.poll() is not None
        if members := session_members(running.pid):
            left[running.log] = members
            os.killpg(running.pid, signal.SIGKILL)
        running.process.wait()
        assert ended, f"the test did not end its command\n{running.log}"
    assert not left


def fetch(port: int, path: str = "/") -> list[str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode().split()
    finally:
        connection.close()


def serve(start: Callable[..., Running], *arguments: str) -> Running:
    return start("serve", *arguments, "--bind", "127.0.0.1:0")


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

    command = Path(f"/proc/{service.pid}/cmdline").read_bytes().split(b"\0")
    assert command[:2] == [sys.executable.encode(), str(script).encode()]
    assert service.stop() == 0, service.log
