"""Run oslo.messaging's own functional tests, unmodified, over RabbitMQ on osloxide.

Owns a private broker, one process for each test case, and the comparison with expectations.toml,
which fails in both directions: a test that stops passing, one that starts to, one that is new or
gone. Never edits upstream's tests: they are taken from the installed oslo.messaging.

    python tests/messaging/run.py [--subject osloxide|stock] [--all] [--only SUBSTRING]

Runs the quick test cases; with ``--all``, or OSLOXIDE_LONG=1, every one (about six minutes).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from services.infra import Broker, retried  # noqa: E402
from services.processes import RunningService  # noqa: E402
from services.subject import clean_environment  # noqa: E402

QUICK = (
    "test_functional.CastTestCase",
    "test_functional.CallTestCase",
)
REST = (
    "test_functional.NotifyTestCase",
    "test_functional.MetricsTestCase",
    # The module: its scenarios are made when it is loaded.
    "notify.test_logger",
    # Upstream's gate skips it: it needs TRANSPORT_DRIVER, a cluster (from pifpaf) on fixed ports,
    # and options within their present bounds (see _child.py).
    "test_rabbitmq.RabbitMQFailoverTests",
)
DEADLINE = 600.0
"""Seconds for one test case."""


def run(case: str, subject: str, broker: Broker) -> dict[str, tuple[str, str]]:
    """Outcome and detail of each test of *case*."""
    with tempfile.TemporaryDirectory(prefix="osloxide-messaging-") as directory:
        report = Path(directory) / "report"
        report.touch()
        environment = clean_environment() | {
            "RPC_TRANSPORT_URL": broker.url,
            "NOTIFY_TRANSPORT_URL": broker.url,
            "TRANSPORT_DRIVER": "rabbit",
            # Nodes that tests start register where ours does: it ends with ours.
            "ERL_EPMD_PORT": broker.epmd_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # The metrics test starts ``python3 -m oslo_metrics``.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        output = Path(directory) / "output"
        argv = [sys.executable, str(HERE / "_child.py"), subject, str(report), case]
        child = RunningService(argv, output, environment)
        try:
            child.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            pass  # what had begun counts as failed, below
        finally:
            child.kill()  # with the brokers that it may have started
        results: dict[str, tuple[str, str]] = {}
        for line in report.read_text().splitlines():
            event = json.loads(line)
            if event["outcome"] == "started":
                tail = output.read_text(errors="replace")[-3000:]
                results[event["test"]] = ("failed", f"it did not end\n{tail}")
            else:
                results[event["test"]] = (event["outcome"], event["detail"])
        if not results:
            raise SystemExit(f"{case} ran no test:\n{output.read_text(errors='replace')[-3000:]}")
        return results


def expectations() -> tuple[str, int, dict[str, str]]:
    document = tomllib.loads((HERE / "expectations.toml").read_text(encoding="utf-8"))
    exceptions = {
        test: entry["outcome"] for entry in document.get("exception", []) for test in entry["tests"]
    }
    return document["suite"]["version"], document["suite"]["total"], exceptions


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", choices=("osloxide", "stock"), default="osloxide")
    is_long = os.environ.get("OSLOXIDE_LONG") == "1"
    parser.add_argument("--all", action="store_true", default=is_long)
    parser.add_argument("--only", default="", help="test cases with this in their names")
    options = parser.parse_args(arguments)
    version, total, exceptions = expectations()
    installed = importlib.metadata.version("oslo.messaging")
    if installed != version:
        print(f"oslo.messaging is {installed}, expectations.toml was made for {version}")
        return 1
    cases = [case for case in QUICK + (REST if options.all else ()) if options.only in case]
    began = time.monotonic()
    results: dict[str, tuple[str, str]] = {}
    broker = retried(Broker)
    try:
        for case in cases:
            results |= run(case, options.subject, broker)
        # Some of them measure seconds of their own: what failed on a busy machine runs once more.
        for test, (outcome, _) in list(results.items()):
            if outcome == "failed" and test not in exceptions:
                print(f"{test}: failed, runs again by itself")
                results |= run(test, options.subject, broker)
    finally:
        broker.stop()
    wrong = 0
    for test, (outcome, detail) in results.items():
        expected = exceptions.get(test, "passed")
        if outcome != expected:
            wrong += 1
            print(f"{test}: {outcome}, expected {expected}\n{detail}")
    missing = {test for test in exceptions if options.all and not options.only} - results.keys()
    for test in sorted(missing):
        print(f"{test}: listed in expectations.toml, but there is no such test")
    if options.all and not options.only and len(results) != total:
        wrong += 1
        print(f"{len(results)} tests ran, expectations.toml counts {total}")
    counts = {
        outcome: sum(got == outcome for got, _ in results.values())
        for outcome in ("passed", "failed", "skipped")
    }
    print(
        f"oslo.messaging {installed} on {options.subject}: {counts['passed']} passed, "
        f"{counts['failed']} failed, {counts['skipped']} skipped in "
        f"{time.monotonic() - began:.0f} s; {wrong + len(missing)} unexpected"
    )
    return 1 if wrong or missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
