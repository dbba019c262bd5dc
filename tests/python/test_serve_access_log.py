"""The access log that ``osloxide serve`` writes natively."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.raw_http import DEADLINE, Connection
from support.serving import fetch, starter
from waiting import until, whole_lines

LARGE = 8_000_000

SITE = f"""
import os, time

def application(environ, start_response):
    path = environ["PATH_INFO"]
    start_response("404 Not Found" if path == "/missing" else "200 OK", [])
    if path == "/hold":
        while not os.path.exists("release"):
            time.sleep(0.01)
    return [b"x" * {LARGE} if path.endswith("/large") else b"hello"]
"""


class Program:
    """``osloxide serve`` on a port of its own."""

    def __init__(self, directory: Path, *options: str) -> None:
        (directory / "logged_site.py").write_text(SITE)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "osloxide", "serve", "logged_site"),
                *("--bind", f"127.0.0.1:{self.port}", *options),
            ],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def get(self, target: str = "/", agent: str = "test") -> None:
        with Connection(("127.0.0.1", self.port)) as connection:
            answer = connection.request("GET", target, {"User-Agent": agent})
            assert answer.body == b"hello"

    def is_listening(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()
        try:
            self.get("/start", "start")
        except OSError:
            return False
        return True

    def close(self) -> tuple[str, str]:
        if self.process.poll() is None:
            self.process.terminate()
        output = self.process.communicate(timeout=DEADLINE * 3)
        assert self.process.returncode is not None
        return output


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    programs: list[Program] = []

    def start(*options: str) -> Program:
        program = Program(tmp_path, *options)
        programs.append(program)
        assert until(program.is_listening)
        return program

    yield start
    for program in programs:
        program.close()


def lines(path: Path) -> list[str]:
    return [line for line in whole_lines(path) if "/start" not in line]


def test_every_request_has_a_line_in_the_combined_format(serve: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    program = serve("--access-log", str(log))

    for number in range(20):
        program.get(f"/page?n={number}", 'agent "x"')
    with Connection(("127.0.0.1", program.port)) as refused:
        refused.send("BROKEN\r\n\r\n")
        assert refused.answer().status == 400
    program.close()

    found = lines(log)
    assert len(found) == 21
    assert re.fullmatch(
        r"127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "
        r'"GET /page\?n=0 HTTP/1\.1" '
        r'200 5 "-" "agent \\"x\\""',
        found[0],
    ), found[0]
    assert ' "BROKEN" 400 ' in found[20]


TO_FILE = ("--access-log", "access.log", "--access-logformat", "%(request_line)s")


def found_lines(program: Program, directory: Path, options: tuple[str, ...]) -> list[str]:
    """The request lines that were logged, once the program has ended."""
    _, errors = program.close()
    if options:
        return lines(directory / "access.log")
    found = re.findall(r'"((?:GET|POST|BROKEN)[^"]*)" status', errors)
    return [line for line in found if "/start" not in line]


@pytest.mark.parametrize("log", [TO_FILE, ()], ids=["file", "logger"])
def test_lines_of_probes_are_left_out_of_both_logs(
    serve: Any, tmp_path: Path, log: tuple[str, ...]
) -> None:
    program = serve(
        *log,
        *("--no-access-log-for", "user-agent=^kube-probe/", "--no-access-log-for", "path=^/health"),
        *("--no-access-log-for", r"uri=^/(?!kept|other|start)\w+\?quiet"),
    )

    program.get("/", "kube-probe/1.29")
    program.get("/healthcheck?full")
    program.get("/%68ealthcheck")
    program.get("/page?quiet=1")
    program.get("/kept?quiet=1")
    program.get("/other")

    assert found_lines(program, tmp_path, log) == [
        "GET /kept?quiet=1 HTTP/1.1",
        "GET /other HTTP/1.1",
    ]


@pytest.mark.parametrize("log", [TO_FILE, ()], ids=["file", "logger"])
def test_only_wanted_statuses_have_lines_those_of_refused_requests_too(
    serve: Any, tmp_path: Path, log: tuple[str, ...]
) -> None:
    program = serve(*log, "--access-log-status", "4xx,5xx")

    program.get("/fine")
    with Connection(("127.0.0.1", program.port)) as connection:
        assert connection.request("GET", "/missing").status == 404
    with Connection(("127.0.0.1", program.port)) as refused:
        refused.send("BROKEN\r\n\r\n")
        assert refused.answer().status == 400

    assert found_lines(program, tmp_path, log) == ["GET /missing HTTP/1.1", "BROKEN"]


@pytest.mark.parametrize("log", [TO_FILE, ()], ids=["file", "logger"])
def test_the_line_of_a_slow_reader_is_judged_by_its_own_request(
    serve: Any, tmp_path: Path, log: tuple[str, ...]
) -> None:
    """Its line is written when the client has taken the answer, by whatever thread that is on."""
    program = serve(*log, "--no-access-log-for", "path=^/quiet")
    readers = []
    for target in ("/quiet/large", "/loud/large"):
        reader = Connection(("127.0.0.1", program.port), receive_buffer=4096)
        reader.send(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        readers.append(reader)

    # Requests of the other kind run on the threads that had those, before they are taken.
    for _ in range(20):
        program.get("/loud/small")
        program.get("/quiet/small")
    for reader in readers:
        reader.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        assert len(reader.answer().body) == LARGE
        reader.close()

    found = found_lines(program, tmp_path, log)
    assert found.count("GET /loud/large HTTP/1.1") == 1
    assert found.count("GET /loud/small HTTP/1.1") == 20
    assert len(found) == 21


def test_lines_of_many_clients_at_once_are_all_written_whole(serve: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    program = serve(
        *("--access-log", str(log), "--access-logformat", "%(request_line)s", "--workers", "2")
    )

    def ask(client: int) -> None:
        with Connection(("127.0.0.1", program.port)) as connection:
            for number in range(200):
                assert connection.request("GET", f"/{client}/{number}").status == 200

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    program.close()

    expected = sorted(f"GET /{client}/{n} HTTP/1.1" for client in range(8) for n in range(200))
    assert sorted(lines(log)) == expected


def test_lines_come_while_a_request_keeps_its_thread_busy(serve: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    program = serve("--access-log", str(log), "--access-logformat", "%(request_line)s")
    with Connection(("127.0.0.1", program.port)) as busy:
        # Pipelined: the line of the first is put off while the second one runs.
        head = "HTTP/1.1\r\nHost: a\r\n\r\n"
        busy.send(f"GET /first {head}GET /hold {head}")
        assert busy.answer().body == b"hello"

        assert until(lambda: lines(log) == ["GET /first HTTP/1.1"])
        (tmp_path / "release").touch()
        assert busy.answer().status == 200


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_renamed_log_is_opened_again_by_usr1(serve: Any, tmp_path: Path, workers: str) -> None:
    log, old = tmp_path / "access.log", tmp_path / "access.log.1"
    program = serve(
        *("--access-log", str(log), "--access-logformat", "%(request_line)s"),
        *("--workers", workers),
    )
    program.get("/before")
    assert until(lambda: lines(log) == ["GET /before HTTP/1.1"])
    log.rename(old)

    program.process.send_signal(signal.SIGUSR1)

    assert until(log.exists)

    def is_moved() -> bool:
        program.get("/after")
        return lines(log) != []

    assert until(is_moved)
    program.close()
    assert lines(old)[0] == "GET /before HTTP/1.1"
    assert "GET /after HTTP/1.1" in lines(log)


def test_a_log_that_cannot_be_opened_again_is_not_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "logged_site.py").write_text(SITE)
    log, old = tmp_path / "access.log", tmp_path / "access.log.1"
    with starter(tmp_path) as start:
        site = start("serve", "logged_site", "--bind", "127.0.0.1:0", "--access-log", str(log))
        port = site.port()
        log.rename(old)
        log.mkdir()

        site.process.send_signal(signal.SIGUSR1)

        assert until(lambda: f"cannot open {log} again: Is a directory" in site.log)
        fetch(port, "/after")
        assert site.stop() == 0, site.log
        assert "log files opened again" not in site.log
    assert "GET /after " in old.read_text()


def test_no_line_is_lost_when_a_worker_is_killed(serve: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    program = serve("--access-log", str(log), "--access-logformat", "%(request_line)s")

    for number in range(50):
        program.get(f"/{number}")
    assert until(lambda: len(lines(log)) == 50)
    program.process.kill()
    program.close()

    # Written behind the answer: a line may come after that of the request that follows.
    assert sorted(lines(log)) == sorted(f"GET /{number} HTTP/1.1" for number in range(50))


def test_a_full_disk_is_told_once_and_requests_are_answered(serve: Any) -> None:
    program = serve("--access-log", "/dev/full")
    for _ in range(20):
        program.get()

    _, errors = program.close()

    assert errors.count("cannot write the access log") == 1, errors


def test_standard_output_is_a_file_too(serve: Any) -> None:
    program = serve("--access-log", "-", "--access-logformat", "%(request_line)s")
    program.get("/out")

    output, _ = program.close()

    assert "GET /out HTTP/1.1" in output.splitlines()


def test_no_access_log_writes_none(serve: Any) -> None:
    program = serve("--no-access-log")
    program.get("/silent")

    output = "".join(program.close())

    assert "/silent" not in output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--access-log", "/nonexistent/a.log"),
            "--access-log /nonexistent/a.log cannot be opened",
        ),
        (("--access-log", "a.log", "--no-access-log"), "exclude each other"),
        (("--no-access-log-for", "path=("), "--no-access-log-for path=("),
        (("--no-access-log-for", "cookie=x"), "user-agent, client, host, path, uri"),
        (("--access-log-status", "6xx"), "1xx to 5xx"),
        (("--access-log", "-", "--access-logformat", "%(user)s"), "unknown key"),
        (("--access-log", "-", "--access-logformat", "%(client_ip)d"), "--access-logformat"),
    ],
)
def test_what_cannot_work_is_said_at_the_start(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    program = Program(tmp_path, *options)

    _, errors = program.process.communicate(timeout=DEADLINE * 3)

    assert program.process.returncode not in (0, None)
    assert said in errors, errors
