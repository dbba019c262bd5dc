"""Run oslo.messaging's own functional tests, unmodified, over RabbitMQ on osloxide.

Owns a private broker, one process for each test case, and the comparison with expectations.toml
(native_expectations.toml of osloxide without kombu), which fails in both directions: a test that
stops passing, one that starts to, one that is new or gone. Never edits upstream's tests: they are
taken from the installed oslo.messaging.

    python tests/messaging/run.py [--subject osloxide|native-client|stock] [--all]
                                  [--only SUBSTRING] [--release host|trixie|sid ...]

``native-client`` is osloxide without kombu at both ends.
Runs the quick test cases; with ``--all``, or OSLOXIDE_LONG=1, every one (about six minutes), on the
RabbitMQ of each release of Debian that is named, this machine's own unless one is.
The unit tests are unit.py's.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from services.infra import RELEASES, Broker, MissingTreeError, retried  # noqa: E402
from services.processes import RunningService  # noqa: E402
from services.subject import clean_environment  # noqa: E402
from waiting import whole_lines  # noqa: E402

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
PACKAGE = "oslo_messaging.tests.functional"
NATIVE_CLIENT = "native-client"
HOST = "host"
"""This machine's own release of Debian."""
UNSTEADY = "unsteady"
"""The outcome of a test that passes or fails as threads happen to run: it is not compared."""
DEADLINE = 600.0
"""Seconds for one process."""

Results = dict[str, tuple[str, str]]
"""Outcome and detail of each test: ``passed``, ``failed``, ``skipped``, ``excluded``."""


def run(case: str, subject: str, broker: Broker, excluded: Sequence[str] = ()) -> Results:
    """Outcome and detail of each test of *case*; those that are *excluded* are not begun."""
    environment = {
        "RPC_TRANSPORT_URL": broker.url,
        "NOTIFY_TRANSPORT_URL": broker.url,
        "TRANSPORT_DRIVER": "rabbit",
        # Nodes that tests start register where ours does: it ends with ours.
        "ERL_EPMD_PORT": broker.epmd_port,
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        # The metrics test starts ``python3 -m oslo_metrics``.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    if subject == NATIVE_CLIENT:
        subject = "osloxide"
        environment["OSLOXIDE_NATIVE_RPC"] = "1"
    names = [case, *(f"-{test}" for test in excluded if test.startswith(case))]
    return run_child(subject, PACKAGE, names, environment)


def run_child(
    subject: str, package: str, names: Sequence[str], environment: Mapping[str, str]
) -> Results:
    """Outcome and detail of each test below *names* in *package*, run in a process of their own."""
    with tempfile.TemporaryDirectory(prefix="osloxide-messaging-") as directory:
        report = Path(directory) / "report"
        report.touch()
        output = Path(directory) / "output"
        argv = [sys.executable, str(HERE / "_child.py"), subject, str(report), package, *names]
        child = RunningService(argv, output, clean_environment() | environment)
        try:
            child.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            pass  # what had begun counts as failed, below
        finally:
            child.kill()  # with the brokers that it may have started
        results: Results = {}
        for line in whole_lines(report):
            event = json.loads(line)
            if event["outcome"] == "started":
                tail = output.read_text(errors="replace")[-3000:]
                results[event["test"]] = ("failed", f"it did not end\n{tail}")
            else:
                results[event["test"]] = (event["outcome"], event["detail"])
        if not results:
            raise SystemExit(f"{names} ran no test:\n{output.read_text(errors='replace')[-3000:]}")
        return results


def expectations(name: str = "expectations.toml") -> tuple[str, int, dict[str, str]]:
    """The version, the number of tests, and the outcomes of those that do not pass."""
    document = tomllib.loads((HERE / name).read_text(encoding="utf-8"))
    exceptions = {
        test: entry["outcome"] for entry in document.get("exception", []) for test in entry["tests"]
    }
    return document["suite"]["version"], document["suite"]["total"], exceptions


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    subjects = ("osloxide", NATIVE_CLIENT, "stock")
    parser.add_argument("--subject", choices=subjects, default="osloxide")
    is_long = os.environ.get("OSLOXIDE_LONG") == "1"
    parser.add_argument("--all", action="store_true", default=is_long)
    parser.add_argument("--only", default="", help="test cases with this in their names")
    parser.add_argument(
        "--release", action="append", choices=[release or HOST for release in RELEASES]
    )
    options = parser.parse_args(arguments)
    native = "native_" if options.subject == NATIVE_CLIENT else ""
    version, total, exceptions = expectations(f"{native}expectations.toml")
    installed = importlib.metadata.version("oslo.messaging")
    if installed != version:
        print(f"oslo.messaging is {installed}, expectations.toml was made for {version}")
        return 1
    cases = [case for case in QUICK + (REST if options.all else ()) if options.only in case]
    is_complete = options.all and not options.only
    wrong = 0
    for release in options.release or [HOST]:
        began = time.monotonic()
        try:
            results = run_cases(cases, options.subject, release, exceptions)
        except MissingTreeError as error:
            print(f"no RabbitMQ of {release}: {error}")
            wrong += 1
            continue
        unexpected = differences(results, exceptions, total if is_complete else None)
        wrong += unexpected
        print(
            f"oslo.messaging {installed} on {options.subject}, RabbitMQ of {release}: "
            f"{summary(results)} in {time.monotonic() - began:.0f} s; {unexpected} unexpected"
        )
    return 1 if wrong else 0


def run_cases(
    cases: Sequence[str], subject: str, release: str, exceptions: Mapping[str, str]
) -> Results:
    """Outcome and detail of each test of *cases* on a broker of *release*.

    :raises MissingTreeError: this machine cannot have one.
    """
    results: Results = {}
    excluded = [test for test, outcome in exceptions.items() if outcome == "excluded"]
    broker = retried(functools.partial(Broker, "" if release == HOST else release))
    try:
        for case in cases:
            results |= run(case, subject, broker, excluded)
        # Some of them measure seconds of their own: what failed on a busy machine runs once more.
        for test, (outcome, _) in list(results.items()):
            if outcome == "failed" and test not in exceptions:
                print(f"{test}: failed, runs again by itself")
                results |= run(test, subject, broker)
    finally:
        broker.stop()
    return results


def differences(results: Results, exceptions: Mapping[str, str], total: int | None) -> int:
    """Print what is not as expected.

    :param total: how many tests there are; None: only some ran.
    :returns: how many differences there are.
    """
    wrong = 0
    for test, (outcome, detail) in results.items():
        expected = exceptions.get(test, "passed")
        if outcome != expected and not (expected == UNSTEADY and outcome in ("passed", "failed")):
            wrong += 1
            print(f"{test}: {outcome}, expected {expected}\n{detail}")
    if total is None:
        return wrong
    for test in sorted(exceptions.keys() - results.keys()):
        wrong += 1
        print(f"{test}: listed as an exception, but there is no such test")
    if len(results) != total:
        wrong += 1
        print(f"there are {len(results)} tests, {total} are expected")
    return wrong


def summary(results: Results) -> str:
    """How many tests had each outcome."""
    counts = Counter(outcome for outcome, _ in results.values())
    return ", ".join(
        f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped", "excluded")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
