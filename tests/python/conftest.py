"""Fixtures that start real programs and prove that nothing of them is left.

Owns starting a program of apps/, waiting for its lines with a deadline, and the check that every
process of its session has ended. Never sleeps a fixed time: everything is polled for.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from procfs import children, context_switches
from waiting import DEADLINE, wait_until, whole_lines

APPS = Path(__file__).parent / "apps"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control ignores it for what runs in its background, and children inherit
    # that: tests of interrupts would have none.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Program:
    """A running program of apps/ in a session of its own.

    :param prefix: a command that runs the program, such as ``unshare``; ``pid`` is its own then.
    """

    def __init__(
        self, directory: Path, app: str, *args: str, prefix: Sequence[str] = (), **environ: str
    ) -> None:
        directory.mkdir()
        self._stdout = directory / "stdout"
        self._stderr = directory / "stderr"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OSLO", "NOTIFY"))}
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, str(APPS / app), *args],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                env={**kept, "PYTHONUNBUFFERED": "1", **environ},
                start_new_session=True,
            )
        self.pid = self.process.pid

    @property
    def output(self) -> str:
        return "".join(f"{line}\n" for line in whole_lines(self._stdout))

    @property
    def log(self) -> str:
        return self._stderr.read_text(errors="replace")

    def __repr__(self) -> str:
        return f"pid {self.pid}\n--- stdout\n{self.output}\n--- log\n{self.log}"

    def events(self, event: str, pid: int | None = None) -> list[tuple[int, str]]:
        """Pid and detail of each event of that name, of one process or of all."""
        found = re.findall(rf"^(\d+) {re.escape(event)} (.*)$", self.output, re.MULTILINE)
        return [(int(p), detail) for p, detail in found if pid is None or int(p) == pid]

    def expect(self, event: str, count: int = 1, pid: int | None = None) -> list[tuple[int, str]]:
        """Wait until the event was seen *count* times."""

        def seen() -> bool:
            return len(self.events(event, pid)) >= count

        try:
            wait_until(lambda: seen() or self.process.poll() is not None, f"{count} x {event}")
            assert seen(), f"the program ended without {count} x {event}"
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self!r}") from None
        return self.events(event, pid)

    def expect_log(self, pattern: str) -> re.Match[str]:
        """Wait until the log matches."""
        try:
            found = wait_until(
                lambda: re.search(pattern, self.log, re.MULTILINE), f"{pattern!r} in the log"
            )
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self!r}") from None
        assert isinstance(found, re.Match)
        return found

    def workers(self) -> list[int]:
        """Live direct children, oldest first."""
        return children(self.pid)

    def switches(self, pid: int | None = None) -> int:
        """Context switches of all threads of the parent, or of another process, so far."""
        return context_switches(self.pid if pid is None else pid)

    def send(self, signo: int, pid: int | None = None) -> None:
        os.kill(self.pid if pid is None else pid, signo)

    def ended(self) -> int:
        """Wait for the program's end; its exit status, negative for a signal."""
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {DEADLINE} s\n{self!r}") from None

    def members(self) -> list[int]:
        """Processes of the program's session that have not ended."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _ppid, _pgrp, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.pid and state not in "ZX":
                    found.append(int(stat.parent.name))
        return found

    def close(self) -> None:
        """Assert that no process is left; those that are, are killed first."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        ended_by_itself = self.process.poll() is not None
        try:
            if ended_by_itself:
                wait_until(lambda: not self.members(), f"processes left: {self.members()}", 10)
        finally:
            for pid in self.members():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
        wait_until(lambda: not self.members(), f"immortal processes: {self.members()}", 10)
        assert ended_by_itself, f"the test did not end its program\n{self!r}"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start programs: ``running("probe.py", "--workers", "2")``; each must have ended."""
    started: list[Program] = []

    def start(app: str, *args: str, **environ: Any) -> Program:
        program = Program(tmp_path / f"program{len(started)}", app, *args, **environ)
        started.append(program)
        return program

    yield start
    failures = []
    for program in started:
        try:
            program.close()
        except AssertionError as exc:
            failures.append(str(exc))
    assert not failures, "\n".join(failures)


@pytest.fixture(params=["eventlet", "threading"])
def flavour(request: pytest.FixtureRequest) -> str:
    """Each of the two backend types."""
    name: str = request.param
    return name


UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.fixture(scope="session")
def namespace() -> tuple[str, ...]:
    """A command that makes the program process 1."""
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare(1) may not make a PID namespace here (needs CAP_SYS_ADMIN)")
    return UNSHARE
