"""The supervisor beside oslo.service's launchers: respawn, reload, idle cost, shutdown, memory.

Every flavour runs programs/service.py, and those that have a WSGI server also tests/services'
small service, under load. Times are CLOCK_MONOTONIC, which all processes share.
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

from services.load import Load, Report

from measure import machine
from measure.peers import BENCHES, ROOT, until

SMALL = ROOT / "tests" / "services" / "apps" / "small.py"

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

    def reload(self) -> float:
        """SIGHUP; seconds until every worker is a new one and none of the old is left."""
        seen, began = self.started(), time.monotonic()
        old = machine.members(self.process.pid)
        old.remove(self.process.pid)
        self.process.send_signal(signal.SIGHUP)

        def is_over() -> bool:
            now = machine.members(self.process.pid)
            return len(self.started()) >= len(seen) + WORKERS and not set(old) & set(now)

        if not until(is_over, 60, 0.001):
            raise RuntimeError("the workers were not replaced within 60 s")
        return time.monotonic() - began

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
                reload_seconds = launched.reload()
                found[flavour].append(
                    {
                        "start ms": launched.start_seconds * 1000,
                        "respawn ms": seconds * 1000,
                        "reload ms": reload_seconds * 1000,
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
        "successor. Reload: from SIGHUP until only new workers are left. Wake-ups: voluntary "
        "context switches while idle. PSS: the whole tree. Stop: from SIGTERM until the last "
        "process left.",
        rows,
    )
    yield reload_under_load(rounds)


class Small:
    """The small WSGI service of the service tests, on osloxide or on eventlet."""

    def __init__(self, flavour: str, interpreter: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bench-"))
        config, self.port_file = self.directory / "small.conf", self.directory / "port"
        config.write_text(
            f"[DEFAULT]\nport_file = {self.port_file}\nworkers = {WORKERS}\n"
            "restart_method = reload\ngraceful_shutdown_timeout = 30\n"
        )
        stock = [] if flavour == "osloxide" else ["--stock"]
        self.log = self.directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [interpreter, str(SMALL), *stock, "--config-file", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        serve = b"worker serves"
        if not until(lambda: self.log.read_bytes().count(serve) >= WORKERS, 30):
            text = self.log.read_text()[-2000:]
            self.close()
            raise RuntimeError(f"{flavour}: the small service did not start:\n{text}")
        self.port = int(self.port_file.read_text())

    def workers(self) -> set[int]:
        return set(machine.members(self.process.pid)) - {self.process.pid}

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)


def reload_under_load(rounds: int) -> tuple[str, str, list[dict[str, Any]]]:
    """SIGHUP while clients ask: how long it takes, and what it costs them."""
    rows: list[dict[str, Any]] = []
    for keep_alive in (True, False):
        for flavour in ("osloxide", "eventlet"):
            seconds, answered, failed = [], 0, 0
            for _ in range(rounds):
                took, report = one_reload(flavour, keep_alive=keep_alive)
                seconds.append(took)
                answered += len(report.answers)
                failed += len(report.failures)
            rows.append(
                {
                    "launcher": flavour,
                    "connections": "8 kept alive" if keep_alive else "8 new ones at a time",
                    "reload ms": statistics.median(seconds) * 1000,
                    "answered": answered,
                    "failed": failed,
                }
            )
    nothing = {"connections": "-", "reload ms": "cannot run", "answered": "-", "failed": "-"}
    rows.append({"launcher": "threading", **nothing})
    return (
        "Reload under load",
        f"A WSGI service with {WORKERS} workers is told to reload (SIGHUP) while clients ask: time "
        "until only new workers are left (median), and requests of all rounds. Stock oslo.service "
        "refuses to serve WSGI with native threads.",
        rows,
    )


def one_reload(flavour: str, *, keep_alive: bool) -> tuple[float, Report]:
    """Seconds until only new workers were left, and what the clients saw."""
    # Both run on this interpreter: eventlet is in the environment that the tests need.
    small = Small(flavour, sys.executable)
    try:
        load = Load(small.port, connections=8, keep_alive=keep_alive)
        try:
            load.wait_answered(200)
            old, began = small.workers(), time.monotonic()
            small.process.send_signal(signal.SIGHUP)

            def is_over() -> bool:
                now = small.workers()
                return len(now) == WORKERS and not old & now

            if not until(is_over, 60, 0.001):
                raise RuntimeError(f"{flavour}: the workers were not replaced within 60 s")
            took = time.monotonic() - began
            load.wait_answered(200)
            return took, load.stop()
        finally:
            load.kill()
    finally:
        small.close()
