"""The executor under oslo.messaging beside futurist's, which it replaces, and the stdlib's."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from measure.peers import BENCHES

WORKERS = 64  # oslo.messaging's default executor_thread_pool_size
EXECUTORS = ("osloxide", "futurist", "concurrent")


def run(python: str, rounds: int) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """One table: medians over *rounds*, every executor in each round, in fresh processes."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in EXECUTORS}
    for _ in range(rounds):
        for name in EXECUTORS:
            done = subprocess.run(
                [
                    python if name == "futurist" else sys.executable,
                    str(BENCHES / "programs" / "jobs.py"),
                    name,
                    str(WORKERS),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
            found[name].append(json.loads(done.stdout))
    rows: list[dict[str, Any]] = []
    for name, measured in found.items():
        medians = {key: statistics.median(x[key] for x in measured) for key in measured[0]}
        rows.append({"executor": name, **medians})
    yield (
        "Executors",
        f"{WORKERS} workers, jobs that do nothing, medians of {rounds} rounds in fresh processes; "
        "CPU of the whole process with submit(), Future and result().",
        rows,
    )
