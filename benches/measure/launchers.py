"""The supervisor beside oslo.service's launchers: respawn, idle cost, shutdown, memory.

Every flavour runs programs/service.py. Times are CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from measure import machine
from measure.peers import BENCHES, until

WORKERS = 4
IDLE_SECONDS = 5.0
FLAVOURS = ("osloxide", "eventlet", "threading")

Tables = Iterator[tuple[str, str, list[dict[str, Any]]]]


class Launched:
    """One launcher with WORKERS workers that have started."""

    def __init__(self, flavour: str, interpreter: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bench-"))
        self.out = self.directory / "out"
        began = time.monotonic()
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [interpreter, str(BENCHES / "programs" / "service.py"), flavour, str(WORKERS)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=(self.directory / "log").open("wb"),
                start_new_session=True,
            )
        if not until(lambda: len(self.started()) >= WORKERS, 30):
            log = (self.directory / "log").read_text()[-2000:]
            self.close()
            raise RuntimeError(f"{flavour}: {WORKERS} workers did not start within 30 s:\n{log}")
        self.start_seconds = max(when for _, when in self.started()) - began

    def started(self) -> list[tuple[int, float]]:
        """(pid, instant) of every start() so far."""
        lines = [line.split() for line in self.out.read_text().splitlines()]
        return [(int(x[1]), float(x[2])) for x in lines if len(x) == 3 and x[0] == "started"]

    def respawn(self) -> float:
        """Kill the newest worker; seconds until its successor's start() ran."""
        seen = self.started()
        killed = time.monotonic()
        os.kill(seen[-1][0], signal.SIGKILL)
        if not until(lambda: len(self.started()) > len(seen), 30, 0.001):
            raise RuntimeError("the worker was not replaced within 30 s")
        return self.started()[-1][1] - killed

    def idle(self) -> tuple[float, float]:
        """Wake-ups a second of the parent, and of one worker, while nothing happens."""
        worker = self.started()[-1][0]
        before = machine.switches(self.process.pid), machine.switches(worker)
        time.sleep(IDLE_SECONDS)  # the thing measured: what idling costs
        after = machine.switches(self.process.pid), machine.switches(worker)
        return (after[0] - before[0]) / IDLE_SECONDS, (after[1] - before[1]) / IDLE_SECONDS

    def stop(self) -> float:
        """SIGTERM; seconds until the parent and every worker have left."""
        began = time.monotonic()
        self.process.terminate()
        if not until(lambda: self.process.poll() is not None, 90, 0.001):
            raise RuntimeError("still there 90 s after SIGTERM")
        until(lambda: not machine.members(self.process.pid), 30, 0.001)
        return time.monotonic() - began

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run(python: str, rounds: int) -> Tables:
    """One table: medians over *rounds*, every flavour in each round."""
    found: dict[str, list[dict[str, float]]] = {flavour: [] for flavour in FLAVOURS}
    for _ in range(rounds):
        for flavour in FLAVOURS:
            interpreter = sys.executable if flavour == "osloxide" else python
            with Launched(flavour, interpreter) as launched:
                parent, worker = launched.idle()
                pss = machine.pss(machine.members(launched.process.pid)) / 1024
                # The first kill only: what follows is the back-off's business.
                seconds = launched.respawn()
                found[flavour].append(
                    {
                        "start ms": launched.start_seconds * 1000,
                        "respawn ms": seconds * 1000,
                        "parent wake-ups/s": parent,
                        "worker wake-ups/s": worker,
                        "PSS MiB": pss,
                        "stop ms": launched.stop() * 1000,
                    }
                )
    rows: list[dict[str, Any]] = []
    for flavour, measured in found.items():
        medians = {key: statistics.median(x[key] for x in measured) for key in measured[0]}
        rows.append({"launcher": flavour, **medians})
    yield (
        "Launchers",
        f"One parent and {WORKERS} idle workers, medians of {rounds} rounds. Start: from exec to "
        "the last worker's start(). Respawn: from kill -9 of a worker to the start() of its "
        "successor. Wake-ups: voluntary context switches while idle. PSS: the whole tree. Stop: "
        "from SIGTERM until the last process left.",
        rows,
    )
