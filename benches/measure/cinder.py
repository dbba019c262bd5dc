"""cinder-api under both launchers that can run it: memory, CPU, reload and stop under load.

The unmodified console script of cinder 29 with four workers on SQLite, once under ``osloxide run``
and once as it is released, on eventlet; the same interpreter, the same requests, the two taking
turns. Stock oslo.service has no WSGI server for native threads, so there is no third row.
"""

from __future__ import annotations

import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from services.load import Load, Report

import block_storage
from measure import machine
from measure.launchers import Tables
from measure.peers import ROOT
from stage import Child, eventually

WORKERS = 4
REQUESTS = 10_000
CONNECTIONS = 8
FLAVOURS = ("osloxide", "eventlet")
PATH = f"/v3/{block_storage.PROJECT}/volumes/detail"
HEADERS = {
    "X-Auth-Token": f"admin:{block_storage.PROJECT}",
    "OpenStack-API-Version": "volume 3.71",
}


def command_of(flavour: str, config: Path) -> list[str]:
    """cinder-api under *flavour*."""
    script = str(block_storage.PREFIX / "bin" / "cinder-api")
    command = [script, "--config-file", str(config)]
    if flavour == "osloxide":
        command = [sys.executable, "-m", "osloxide", "run", *command]
    return command


class Api:
    """One cinder-api with its workers, in a directory of its own."""

    def __init__(self, flavour: str) -> None:
        cache = ROOT / ".cache"
        cache.mkdir(exist_ok=True)
        self.directory = Path(tempfile.mkdtemp(prefix="bench-cinder-", dir=cache))
        config, self.port = block_storage.configure(self.directory, WORKERS)
        # osloxide's own transport for one process would not be the same on both sides.
        config.write_text(config.read_text().replace("osloxide+memory://", "fake://"))
        lock = ROOT / "requirements" / "cinder.lock"
        block_storage.migrated_schema(self.directory, config, cache, lock)
        command = command_of(flavour, config)
        began = time.monotonic()
        log = self.directory / "api.log"
        self.child = Child("cinder-api", command, log, block_storage.environment())
        eventually("an answer", 60, self._answers, self.child)
        self.start_seconds = time.monotonic() - began
        eventually("all workers", 60, lambda: len(self.child.workers()) == WORKERS, self.child)

    def _answers(self) -> bool:
        client = block_storage.Client(self.port)
        try:
            return client.request("GET", PATH)[0] == 200
        finally:
            client.close()

    def load(self) -> Load:
        return Load(self.port, connections=CONNECTIONS, path=PATH, headers=HEADERS)

    def family(self) -> list[int]:
        return [self.child.pid, *self.child.workers()]

    def close(self) -> None:
        self.child.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def measured(flavour: str) -> dict[str, float]:
    """One round of one flavour."""
    api = Api(flavour)
    try:
        found = {"start s": api.start_seconds}
        found["PSS MiB before"] = machine.pss(api.family()) / 1024
        cpu, began = machine.cpu(api.family()), time.monotonic()
        driver = api.load()
        driver.wait_answered(REQUESTS, within=600)
        found["requests/s"] = REQUESTS / (time.monotonic() - began)
        found["CPU ms/request"] = (machine.cpu(api.family()) - cpu).total / REQUESTS * 1000
        found[f"PSS MiB after {REQUESTS:,}"] = machine.pss(api.family()) / 1024
        kept = set(api.child.workers())
        api.child.process.send_signal(signal.SIGHUP)
        driver.wait_answered(300, within=60)
        found["pids kept at HUP"] = float(len(kept & set(api.child.workers())))
        before_stop = driver.stop()
        found["failed until then"] = float(len(before_stop.failures))
        stopping = api.load()
        stopping.wait_answered(100, within=60)
        began = time.monotonic()
        api.child.process.terminate()
        api.child.ended(120)
        found["stop s under load"] = time.monotonic() - began
        found["cut off at stop"] = float(cut_off(stopping.stop()))
        return found
    finally:
        api.close()


def cut_off(report: Report) -> int:
    """Requests that were under way and got no answer; refused connections are what a stop is."""
    return sum(not failure.kind.startswith("connect") for failure in report.failures)


def run(rounds: int) -> Tables:
    """One table: medians over *rounds*, each flavour in each."""
    found: dict[str, list[dict[str, float]]] = {flavour: [] for flavour in FLAVOURS}
    for _ in range(rounds):
        for flavour in FLAVOURS:
            found[flavour].append(measured(flavour))
    rows: list[dict[str, Any]] = []
    for flavour, values in found.items():
        medians = {key: statistics.median(x[key] for x in values) for key in values[0]}
        rows.append({"cinder-api": flavour, **medians})
    rows.append({"cinder-api": "threading", **dict.fromkeys(rows[0], "-"), "start s": "cannot run"})
    rows[-1]["cinder-api"] = "threading"
    yield (
        "cinder-api",
        f"cinder 29 on SQLite, one parent and {WORKERS} workers, {CONNECTIONS} keep-alive "
        f"connections asking for the list of volumes; medians of {rounds} rounds. PSS: of the "
        f"whole tree, idle before and after {REQUESTS:,} requests. Then SIGHUP (cinder mutates: "
        "every pid should be kept) and SIGTERM, both under load. Stock oslo.service refuses to "
        "serve WSGI with native threads.",
        rows,
    )
