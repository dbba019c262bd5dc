"""What a worker's first request costs, in time and memory: ``python benches/first_request.py``.

Starts cinder-api with four workers on SQLite, as ``run.py --parts cinder`` does, with what is made
before the fork (docs/serve.md) and without it, in turn. Prints medians: the private memory of a
worker and the proportional set size of the tree once each worker has answered, and after many
requests; and how long the first request of a worker takes that is not the first to answer.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measure import cinder, machine

import block_storage

WITHOUT = """
import runpy, sys
from osloxide.activation import before_fork
before_fork.TABLE.clear()
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CONNECTIONS = 24
"""Connections of one request each, which workers take in turn."""


def command_without(script: Path) -> list[str]:
    """``osloxide run`` with an empty table, in front of a console script and its arguments."""
    return [sys.executable, "-m", "osloxide", "run", sys.executable, str(script)]


def measured(requests: int) -> dict[str, float]:
    """One start of cinder-api."""
    api = cinder.Api("osloxide")
    try:
        slowest = []
        for _ in range(CONNECTIONS):
            client = block_storage.Client(api.port)
            began = time.monotonic()
            client.request("GET", cinder.PATH)
            slowest.append(time.monotonic() - began)
            client.close()
        # One of the four has answered the request that tells that it has started.
        first = sorted(slowest)[-(cinder.WORKERS - 1) :]
        found = {"first request ms": 1000 * statistics.median(first)}
        own = [machine.private([worker]) / 1024 for worker in api.child.workers()]
        found["private MiB of a worker"] = statistics.median(own)
        found["PSS MiB"] = machine.pss(api.family()) / 1024
        driver = api.load()
        driver.wait_answered(requests, within=600)
        driver.stop()
        found[f"PSS MiB after {requests:,}"] = machine.pss(api.family()) / 1024
        return found
    finally:
        api.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=500)
    options = parser.parse_args()
    with_table = cinder.command_of
    found: dict[str, list[dict[str, float]]] = {"made before": [], "not made before": []}
    with tempfile.TemporaryDirectory(prefix="first-request-") as made:
        script = Path(made, "without_table.py")
        script.write_text(WITHOUT)
        for _ in range(options.rounds):
            for name, values in found.items():
                cinder.command_of = with_table
                if name == "not made before":
                    cinder.command_of = lambda flavour, config: [
                        *command_without(script), *with_table("eventlet", config)
                    ]  # fmt: skip
                values.append(measured(options.requests))
    for name, values in found.items():
        medians = {key: statistics.median(one[key] for one in values) for key in values[0]}
        print(name, *(f"{key}: {value:.1f}" for key, value in medians.items()), sep="; ")


if __name__ == "__main__":
    main()
