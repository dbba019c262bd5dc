"""One pytest process of another project's suite: its events, its hangs, and what it leaves behind.

Owns the process, the watch over it (no event for longer than a deadline means that the running test
hangs; the time in which it waits for a processor does not count) and the end of everything that its
tests started. Knows no suite: what a test is expected to
do, and how suites are divided into processes, are the runners' part.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from procfs import cpu_seconds, wants_cpu
from waiting import whole_lines

PASSED, FAILED, SKIPPED, HUNG = "passed", "failed", "skipped", "hung"
Events = list[list[str]]

IMPORTED_FROM = str(Path(__file__).parents[1])
"""For PYTHONPATH: where the plugin ``upstream.recorder`` is found."""
PLUGIN = ("-p", "upstream.recorder")

_VARIABLE = "OSLOXIDE_UPSTREAM_RECORD"
_UNWATCHED_SECONDS = 30.0
_STARVED = 12.0
"""How many times as long as its deadline a test may take that others keep from the processors."""


@dataclass
class Result:
    """What one test did."""

    outcome: str
    detail: str = ""


def pytest(
    arguments: Sequence[str],
    *,
    cwd: Path,
    environ: Mapping[str, str],
    deadline: Callable[[str], float] | None,
    keeps_files: bool = False,
) -> tuple[Events, str]:
    """Run pytest with the recorder.

    :param deadline: seconds without an event after which the test (its node id; blank before the
        first) counts as hung; None for a process that runs no test.
    :param keeps_files: whether TMPDIR is a directory that goes with the process.
    :returns: its events, and the last 4,000 characters that it printed.
    """
    with tempfile.TemporaryDirectory(prefix="osloxide-upstream-") as directory:
        record, output = Path(directory, "record"), Path(directory, "output")
        record.touch()
        own = {_VARIABLE: str(record)} | ({"TMPDIR": directory} if keeps_files else {})
        with output.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PLUGIN,
                 f"-c{os.devnull}", *arguments],
                cwd=cwd,
                env={**environ, **own},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            try:
                hung = deadline is not None and _watch(process, record, deadline)
                process.wait(_UNWATCHED_SECONDS)
            finally:
                _end_descendants(str(record))
                process.wait()
        events: Events = [json.loads(line) for line in whole_lines(record)]
        if hung and events:
            events.append([HUNG, events[-1][1], "nothing happened any more"])
        return events, output.read_text(encoding="utf-8", errors="replace")[-4000:]


def enter(events: Iterable[Sequence[str]], output: str, results: dict[str, Result]) -> list[str]:
    """Enter what one process did into *results*.

    :returns: the tests that it collected.
    """
    running, collected = None, []
    for kind, test, detail in events:
        if kind == "collected":
            collected.append(test)
        elif kind == "started":
            running = test
        elif kind == "finished":
            running = None
            results.setdefault(test, Result(FAILED, "no outcome was reported"))
        # Teardown may still turn a pass into a failure, never the reverse.
        elif results.get(test, Result(PASSED)).outcome == PASSED:
            results[test] = Result(kind, detail)
    if running is not None and running not in results:
        results[running] = Result(FAILED, f"the process ended during this test\n{output}")
    return collected


def _watch(
    process: subprocess.Popen[bytes], record: Path, deadline: Callable[[str], float]
) -> bool:
    """Wait for *process*; True when it had to be ended because nothing happened any more."""
    size, quiet, seconds = -1, Quiet(), deadline("")
    while True:
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            pass
        else:
            return False
        now = record.stat().st_size
        quiet.look(time.monotonic(), cpu_seconds([process.pid]), wants_cpu(process.pid))
        if now != size:
            size = now
            quiet.begin()
            last = whole_lines(record)[-1:]
            seconds = deadline(json.loads(last[0])[1] if last else "")
        elif quiet.is_longer_than(seconds):
            process.kill()
            process.wait()
            return True


class Quiet:
    """How long a process has reported nothing.

    While one of its threads runs, or waits for a processor, the CPU that it gets counts: a test
    that computes beside twenty other processes is slow, and does not hang.
    """

    def __init__(self) -> None:
        self._at: float | None = None
        self._used = 0.0
        self.begin()

    def begin(self) -> None:
        """It has reported something just now."""
        self._counted = self._passed = 0.0

    def look(self, now: float, used: float, wants: bool) -> None:
        """Count the time since the last look.

        :param used: CPU seconds of the process so far.
        :param wants: whether one of its threads runs, or waits for a processor.
        """
        if self._at is not None:
            passed = now - self._at
            self._passed += passed
            self._counted += min(passed, max(0.0, used - self._used)) if wants else passed
        self._at, self._used = now, used

    def is_longer_than(self, seconds: float) -> bool:
        """Whether *seconds* are over, or twelve times as long where it got few processors."""
        return self._counted > seconds or self._passed > _STARVED * seconds


def _end_descendants(record: str) -> None:
    """Kill what a test left running: workers whose parent was killed, their children.

    Tests give them sessions of their own, so they are known by the variable that they inherited.
    """
    mark = f"{_VARIABLE}={record}".encode()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue  # it ended just now, or is not ours
