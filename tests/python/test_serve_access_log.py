"""The access log that ``osloxide serve`` writes natively."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.raw_http import DEADLINE, Connection
from waiting import until

SITE = """
def application(environ, start_response):
    start_response("200 OK", [])
    return [b"hello"]
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
    return [line for line in path.read_text().splitlines() if "/start" not in line]


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


def test_lines_of_probes_are_left_out(serve: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    program = serve(
        *("--access-log", str(log), "--access-logformat", "%(request_line)s"),
        *("--access-log-skip-agent", "kube-probe/*", "--access-log-skip-path", "/health*"),
    )

    program.get("/", "kube-probe/1.29")
    program.get("/healthcheck?full")
    program.get("/other")
    program.close()

    assert lines(log) == ["GET /other HTTP/1.1"]


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


def test_no_line_is_lost_when_a_worker_is_killed(serve: Any, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    program = serve("--access-log", str(log), "--access-logformat", "%(request_line)s")

    for number in range(50):
        program.get(f"/{number}")
    # A line is written right behind the answer: with the kernel it is before the next request.
    assert until(lambda: len(lines(log)) == 50)
    program.process.kill()
    program.close()

    assert lines(log) == [f"GET /{number} HTTP/1.1" for number in range(50)]


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
        (("--access-log-skip-path", "/x"), "needs --access-log"),
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
