"""What the demo stands on: progress lines, polling with a deadline, and one child process.

Nothing here knows cinder. A child runs in a session of its own, so that every process it ever
started can be found, waited for and, when the demo is interrupted, ended.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
POLL_SECONDS = 0.02


class Failure(Exception):
    """A step did not do what it promises; the text says which and how."""


class Progress:
    """One line for each step, with its time; on a terminal the running step is shown at once."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.step_name = ""
        self.live = sys.stdout.isatty()

    def title(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step. Text appended to the yielded list is shown behind its name."""
        self.step_name = name
        since = time.monotonic()
        if self.live:
            print(f"   ...   {name}", end="", flush=True)
        notes: list[str] = []
        result = "FAIL"
        try:
            yield notes
            result = "ok"
        finally:
            note = f": {'; '.join(notes)}" if notes else ""
            start = "\r\033[K" if self.live else ""
            seconds = time.monotonic() - since
            print(f"{start}{result:>4} {seconds:6.2f} s  {name}{note}", flush=True)

    def elapsed(self) -> float:
        return time.monotonic() - self.started


def eventually(
    what: str, seconds: float, probe: Callable[[], T | None], child: "Child | None" = None
) -> T:
    """Poll *probe* until it returns something true; give up after *seconds* or when *child* ends.

    An OSError from the probe counts as "not yet".

    :raises Failure: the deadline passed or the child ended, with the last thing seen.
    """
    deadline = time.monotonic() + seconds
    last: object = None
    while True:
        try:
            answer = probe()
        except OSError as error:
            last, answer = error, None
        if answer:
            return answer
        if child is not None and child.process.poll() is not None:
            status = child.process.returncode
            raise Failure(f"{child.name} ended with status {status} before {what}")
        if time.monotonic() > deadline:
            seen = f" (last: {last})" if last else ""
            raise Failure(f"waited {seconds:g} s in vain for: {what}{seen}")
        time.sleep(POLL_SECONDS)


class Child:
    """A command in a session of its own, its output in a log file."""

    def __init__(self, name: str, command: list[str], log: Path, env: dict[str, str]) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def members(self) -> list[int]:
        """Every live process of the session, the first one included."""
        return [pid for pid, _, session in _processes() if session == self.pid]

    def workers(self) -> list[int]:
        """Direct children of the first process that are alive."""
        return sorted(pid for pid, parent, _ in _processes() if parent == self.pid)

    def ended(self, seconds: float) -> int:
        """Wait for the end of the whole session after a SIGTERM and return the exit status.

        :raises Failure: something of the session is still there after *seconds*.
        """
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(
                f"{self.name} (pid {self.pid}) still runs {seconds:g} s after SIGTERM"
            ) from None
        eventually(
            f"the processes that {self.name} left behind to end: {self.members()}",
            2,
            lambda: not self.members(),
        )
        return status

    def kill(self) -> None:
        """End whatever is left of the session, without asking."""
        for _ in range(3):  # a supervisor may be forking while it is being looked at
            for pid in self.members():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def tail(self, lines: int = 25, columns: int = 240) -> str:
        last = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(line[:columns] for line in last)


def started(pid: int) -> float:
    """When a process was forked: seconds on CLOCK_BOOTTIME, cut to the kernel's ticks."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def _processes() -> Iterator[tuple[int, int, int]]:
    """``(pid, parent, session)`` of every process that is not a zombie."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # ended meanwhile
            state, parent, _, session = stat.rpartition(")")[2].split()[:4]
            if state not in "ZX":
                yield int(entry.name), int(parent), int(session)
