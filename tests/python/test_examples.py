"""Each file under examples/ runs and keeps the promise of its first line; the README shows one.

The examples run the way their docstrings say, as processes below ``osloxide``. Cinder is not here:
``make demo`` is its test.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from _children import environment
from procfs import session_members

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
OSLOXIDE = Path(sys.executable).with_name("osloxide")
DEADLINE = 20.0


class Example:
    """A running example; its standard output can be awaited line by line."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            [OSLOXIDE, *command],
            cwd=EXAMPLES,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.errors: list[str] = []
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines.put)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors.append)),
        ]
        for reader in self.readers:
            reader.start()

    @staticmethod
    def _read(stream: object, store: Callable[[str], object]) -> None:
        with stream:
            for line in stream:
                store(line.rstrip("\n"))

    def pids_that_print(self, pattern: str, count: int) -> set[int]:
        """Read output until *count* processes have printed a line like *pattern* (group 1: pid)."""
        seen: set[int] = set()
        deadline = time.monotonic() + DEADLINE
        while len(seen) < count:
            try:
                line = self.lines.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(
                    f"only {seen} printed {pattern!r} in {DEADLINE} s\n" + "\n".join(self.errors)
                ) from None
            if match := re.fullmatch(pattern, line):
                seen.add(int(match[1]))
        return seen

    def end(self) -> int:
        """SIGTERM; prove that no process is left; return the exit status."""
        self.process.terminate()
        status = self.process.wait(DEADLINE)
        assert session_members(self.process.pid) == []
        return status


@pytest.fixture
def example() -> Iterator[Callable[..., Example]]:
    running: list[Example] = []

    def start(*command: str) -> Example:
        running.append(Example(*command))
        return running[-1]

    yield start
    for one in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait()
        for reader in one.readers:
            reader.join()


def test_minimal_service_ticks_in_two_workers_until_sigterm(
    example: Callable[..., Example],
) -> None:
    ticker = example("run", sys.executable, "minimal_service.py")

    pids = ticker.pids_that_print(r"worker (\d+) ticks", 2)

    assert ticker.process.pid not in pids
    assert ticker.end() == 0


def test_readme_shows_the_minimal_service() -> None:
    shown = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

    code = (EXAMPLES / "minimal_service.py").read_text().partition('"""\n\n')[2]

    assert shown is not None
    assert shown[1] == code


def test_sighup_changes_the_greeting_in_the_same_workers(
    example: Callable[..., Example], tmp_path: Path
) -> None:
    config = tmp_path / "greeter.conf"
    config.write_text("[DEFAULT]\ngreeting = hello\n")
    command = (sys.executable, "reload_on_sighup.py", "--config-file", str(config))
    greeter = example("run", *command)
    workers = greeter.pids_that_print(r"worker (\d+) says hello", 2)

    config.write_text("[DEFAULT]\ngreeting = goodbye\n")
    greeter.process.send_signal(signal.SIGHUP)

    # The supervisor resets its own copy of the service too, and so may print the greeting.
    seen: set[int] = set()
    while not workers <= seen:
        seen |= greeter.pids_that_print(r"worker (\d+) says goodbye", 1)
    assert seen <= workers | {greeter.process.pid}
    assert greeter.end() == 0


def test_wsgi_app_is_served_over_http(example: Callable[..., Example]) -> None:
    server = example("serve", "--bind", "127.0.0.1:0", "wsgi_app:application")

    url = listening_url(server)
    with urllib.request.urlopen(f"{url}/some/where", timeout=DEADLINE) as answer:
        text = answer.read().decode()

    assert re.fullmatch(r"pid \d+ answers /some/where\n", text)
    assert server.end() == 0


def listening_url(server: Example) -> str:
    """The address that ``osloxide serve`` reports once it listens."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        for line in list(server.errors):
            if match := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
                return f"http://{match[1]}"
        time.sleep(0.01)
    raise AssertionError("no address reported\n" + "\n".join(server.errors))
