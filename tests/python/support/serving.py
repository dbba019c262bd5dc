"""``osloxide serve`` and its relatives as started by a test: log, port, workers, end.

Owns the processes that it starts: a test that leaves one behind fails.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from _children import environment, run_command
from conftest import wait_until
from procfs import session_members

OSLOXIDE = [sys.executable, "-m", "osloxide"]
LOGGING = """
[loggers]
keys = root
[handlers]
keys = stderr
[formatters]
keys =
[logger_root]
level = INFO
handlers = stderr
[handler_stderr]
class = StreamHandler
args = (sys.stderr,)
"""
"""A file for ``--log-config`` that changes nothing."""


class Running:
    """A command that serves; its log is read from a file."""

    prefix: tuple[str, ...] = ()
    """A command that runs it, such as unshare(1); ``pid`` is its own then."""

    def __init__(self, log: Path, *arguments: str, cwd: Path, **changes: str) -> None:
        self._log = log
        self.cwd = cwd
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [*self.prefix, *OSLOXIDE, *arguments],
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

    def launcher(self) -> dict[str, Any]:
        """What ``osloxide status`` tells of it; nothing before there is anything."""
        result = run_command([*OSLOXIDE, "status", "--json", str(self.pid)], environ=environment())
        return json.loads(result.stdout)[0] if result.returncode == 0 else {}

    def workers(self) -> list[dict[str, Any]]:
        """Its workers; none before it has any."""
        return self.launcher().get("workers", [])

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


Started = TypeVar("Started", bound=Running)


@contextmanager
def starter(
    directory: Path,
    kind: type[Started] = Running,  # type: ignore[assignment]
) -> Iterator[Callable[..., Started]]:
    """What starts ``osloxide ...`` in *directory*; nothing of it may be left at the end.

    :param kind: what the callable returns.
    """
    started: list[Started] = []

    def begin(*arguments: str, **changes: str) -> Started:
        log = directory / f"log{len(started)}"
        started.append(kind(log, *arguments, cwd=directory, **changes))
        return started[-1]

    try:
        yield begin
    finally:
        left = {}
        unended = []
        for running in started:
            if running.process.poll() is None:
                unended.append(running.log)
            if members := session_members(running.pid):
                left[running.log] = members
                os.killpg(running.pid, signal.SIGKILL)
            running.process.wait()
    assert not unended, f"the test did not end its command\n{unended[0]}"
    assert not left


def uwsgi_packet(**variables: str) -> bytes:
    """A request for ``/`` as a web server sends it by the uwsgi protocol."""
    sent = {"REQUEST_METHOD": "GET", "REQUEST_URI": "/", "PATH_INFO": "/"}
    sent |= {"SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "x", **variables}
    block = b"".join(
        struct.pack("<H", len(text)) + text.encode() for pair in sent.items() for text in pair
    )
    return struct.pack("<BHB", 0, len(block), 0) + block


def fetch(port: int, path: str = "/") -> list[str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode().split()
    finally:
        connection.close()
