"""Processes under test: start one, watch its whole family, prove that nothing of it is left.

A service starts in a session of its own and carries a marker in its environment, so that every
descendant can be found again, also after the parent was killed and its workers were re-parented.
Facts come from /proc only: nothing here asks the program under test how it feels.
Never waits by sleeping for a guessed time: ``until`` polls for an event with a deadline.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from procfs import children, live_processes
from waiting import wait_until, whole_lines

T = TypeVar("T")

MARKER = "OSLOXIDE_TEST_FAMILY"


def held(what: str, condition: Callable[[], bool], seconds: float, every: float = 0.05) -> None:
    """Assert that *condition* stays true during an observation window of *seconds*."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert condition(), what
        time.sleep(every)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago. Its user retries on a clash."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def accepts_connections(port: int, host: str = "127.0.0.1") -> bool:
    """True when a TCP connection to *host*:*port* is accepted by the kernel."""
    with socket.socket() as probe:
        probe.settimeout(5)
        # Where nothing listens, the kernel may give the socket that very port: it is its own peer.
        return probe.connect_ex((host, port)) == 0 and probe.getsockname() != probe.getpeername()


def is_refused(port: int, host: str = "127.0.0.1") -> bool:
    """True when a connection to *host*:*port* is refused at once."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == errno.ECONNREFUSED


class RunningService:
    """A program under test with all its descendants.

    :param argv: the command.
    :param log: file that receives its standard output and error.
    :param env: complete environment; the marker is added.
    :param prefix: command put in front (``setpriv ...``).
    """

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        env: Mapping[str, str],
        prefix: Sequence[str] = (),
    ) -> None:
        self.log = log
        self.name = log.stem
        self.marker = uuid.uuid4().hex
        log.parent.mkdir(parents=True, exist_ok=True)
        self.started_at = time.monotonic()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*prefix, *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**env, MARKER: self.marker},
                start_new_session=True,
            )
        self.pid = self.process.pid

    # ---- family ---------------------------------------------------------------------------

    def workers(self) -> list[int]:
        """Live direct children of the parent."""
        return children(self.pid)

    def family(self) -> list[int]:
        """Every live process of this service, parent included, wherever it hangs in the tree."""
        mark = f"{MARKER}={self.marker}".encode()
        found = []
        for seen in live_processes():
            if seen.session == self.pid:
                found.append(seen.pid)
                continue
            try:
                if mark in Path(f"/proc/{seen.pid}/environ").read_bytes():
                    found.append(seen.pid)
            except OSError:
                continue
        return sorted(found)

    def wait_workers(self, count: int, within: float = 60) -> list[int]:
        """Wait for exactly *count* live workers and return their pids."""
        return wait_until(lambda: self._workers_if(count), f"{self.name}: {count} workers", within)

    def _workers_if(self, count: int) -> list[int] | None:
        self.assert_running()
        pids = self.workers()
        return pids if len(pids) == count else None

    # ---- log ------------------------------------------------------------------------------

    def mark(self) -> int:
        """The present end of the log, for the ``since`` of the calls below."""
        return self.log.stat().st_size

    def text(self, since: int = 0) -> str:
        with self.log.open("rb") as log:
            log.seek(since)
            return log.read().decode(errors="replace")

    def wait_log(
        self, pattern: str, within: float = 30, since: int = 0, times: int = 1
    ) -> list[str]:
        """Wait until at least *times* lines match *pattern* and return them."""
        expression = re.compile(pattern)

        def lines() -> list[str] | None:
            found = [line for line in whole_lines(self.log, since) if expression.search(line)]
            return found if len(found) >= times else None

        return wait_until(lines, f"{self.name}: log line /{pattern}/ x{times}", within, pause=0.02)

    # ---- life -----------------------------------------------------------------------------

    def assert_running(self) -> None:
        status = self.process.poll()
        assert status is None, f"{self.name} exited with {status}:\n{self.text()[-3000:]}"

    def signal(self, signo: signal.Signals) -> None:
        self.process.send_signal(signo)

    def wait_exit(self, within: float) -> int:
        """Wait for the parent's end; after *within* seconds, have its workers say where they are.

        :returns: its exit status, negative for a signal, as subprocess gives it.
        """
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            # faulthandler writes the stacks of all threads, and the parent puts them into its log.
            for pid in self.workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            raise AssertionError(
                f"{self.name} (pid {self.pid}) still ran {within} s later:\n{self.text()[-9000:]}"
            ) from None

    def wait_gone(self, within: float = 30) -> float:
        """Wait until no process of the family lives; return the seconds that took."""
        begin = time.monotonic()
        wait_until(lambda: not self.family(), f"{self.name}: every process gone", within)
        return time.monotonic() - begin

    def stop(self, within: float = 30) -> None:
        """End what still lives, first politely; raise when it had to be killed."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(within)
        late = self.kill()
        assert not late, f"{self.name} left processes behind: {late}\n{self.text()[-3000:]}"

    def kill(self) -> list[int]:
        """SIGKILL the whole family and return who was still alive a moment after the parent."""
        grace = time.monotonic() + (3 if self.process.poll() is not None else 0)
        while (alive := self.family()) and time.monotonic() < grace:
            time.sleep(0.02)
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if self.process.poll() is None:
            self.process.wait(10)
        wait_until(lambda: not self.family(), f"{self.name}: killed", 10)
        return alive
