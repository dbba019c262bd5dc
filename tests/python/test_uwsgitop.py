"""uwsgitop, as PyPI has it, reads what ``--stats`` tells; in a terminal, as its users see it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _children import environment
from conftest import wait_until
from support.serving import Running, fetch, starter
from waiting import DEADLINE

UWSGITOP = Path(sys.executable).with_name("uwsgitop")
pytestmark = pytest.mark.skipif(
    not UWSGITOP.exists(), reason=f"no {UWSGITOP}: requirements/test.lock has it, Debian has not"
)
APPLICATION = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
_ESCAPES = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|\([A-Z0-9]|[=>])")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "site_app.py").write_text(APPLICATION)
    with starter(tmp_path) as begin:
        yield begin


class Terminal:
    """A program on a terminal of 200 columns, and what it has shown so far."""

    def __init__(self, command: list[str]) -> None:
        self._outer, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 200, 0, 0))
        self.process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
            env=environment(TERM="xterm"),
        )  # fmt: skip
        os.close(inner)
        self._shown = b""

    def press(self, key: str) -> None:
        """Press a key; what was shown before is forgotten."""
        self._shown = b""
        os.write(self._outer, key.encode())

    def wait_for(self, pattern: str) -> str:
        """Wait until what is shown matches; returns all of it."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            text = _ESCAPES.sub(b" ", self._shown).decode(errors="replace")
            if re.search(pattern, text):
                return text
            if select.select([self._outer], [], [], 0.1)[0]:
                try:
                    self._shown += os.read(self._outer, 65536)
                except OSError:
                    break  # the program has ended
        raise AssertionError(f"no /{pattern}/ in\n{text}")

    def end(self) -> None:
        self.press("q")
        assert self.process.wait(DEADLINE) == 0
        os.close(self._outer)


@pytest.mark.parametrize(("kind", "http"), [("tcp", []), ("tcp", ["--stats-http"]), ("unix", [])])
def test_uwsgitop_shows_every_worker_and_its_requests(
    start: Callable[..., Running], tmp_path: Path, kind: str, http: list[str]
) -> None:
    socket_file = tmp_path / "stats.sock"
    where = f"unix:{socket_file}" if kind == "unix" else "127.0.0.1:0"
    site = start(
        "serve", "site_app", "-b", "127.0.0.1:0", "-w", "2", "--threads", "2",
        "--stats", where, *http,
    )  # fmt: skip
    port, workers = site.port(), site.running(2)
    address = str(socket_file)
    if kind == "tcp":
        wait_until(lambda: "stats on" in site.log, "the address of the statistics")
        found = re.search(r"stats on (127\.0\.0\.1:\d+)", site.log)
        assert found is not None
        address = f"http://{found[1]}" if http else found[1]
    for _ in range(7):
        assert fetch(port) == ["ok"]

    terminal = Terminal([str(UWSGITOP), address])
    try:
        shown = terminal.wait_for(r"req: 7 (?s:.*)WID(?s:.*)ReSpwn")
        for pid in workers:
            assert str(pid) in terminal.wait_for(rf"\b{pid}\b")
        assert f"masterpid: {site.pid}" in shown
        terminal.press("a")  # cores instead of workers
        terminal.wait_for(r"\d:0\b")
        terminal.press("a")  # workers with their cores below
        terminal.wait_for(r":0\b")
        terminal.end()
    finally:
        if terminal.process.poll() is None:
            os.killpg(terminal.process.pid, signal.SIGKILL)
            terminal.process.wait()
    assert site.stop() == 0, site.log
