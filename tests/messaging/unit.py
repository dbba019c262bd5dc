"""Run oslo.messaging's own unit tests, unmodified, under the import hook and with native threads.

Owns the division into processes and the comparison with unit_expectations.toml, which fails in both
directions, like run.py's. Needs no broker: upstream's unit tests use ``kombu+memory://`` and
``fake://``. Never edits upstream's tests: they are taken from the installed oslo.messaging.

    python tests/messaging/unit.py [--subject osloxide|stock] [--only SUBSTRING]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from run import Results, differences, expectations, run_child, summary

PACKAGE = "oslo_messaging.tests"
GROUPS = (
    # The longest first: two processes run at a time.
    ("drivers.test_impl_rabbit",),
    ("rpc.test_server",),
    # In one process: tests of the logger use a driver that those of the notifier load.
    (
        "notify.test_dispatcher",
        "notify.test_listener",
        "notify.test_log_handler",
        "notify.test_notifier",
        "notify.test_logger",
        "notify.test_middleware",
    ),
    (
        "drivers.test_amqpdriver",
        "drivers.test_impl_kafka",
        "drivers.test_pool",
        "rpc.test_client",
        "rpc.test_dispatcher",
        "test_config_opts_proxy",
        "test_exception_serialization",
        "test_expected_exceptions",
        "test_fixture",
        "test_opts",
        "test_target",
        "test_transport",
        "test_urls",
        "test_utils",
    ),
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", choices=("osloxide", "stock"), default="osloxide")
    parser.add_argument("--only", default="", help="groups with this in a module's name")
    options = parser.parse_args(arguments)
    version, total, exceptions = expectations("unit_expectations.toml")
    installed = importlib.metadata.version("oslo.messaging")
    if installed != version:
        print(f"oslo.messaging is {installed}, unit_expectations.toml was made for {version}")
        return 1
    excluded = [f"-{test}" for test, outcome in exceptions.items() if outcome == "excluded"]

    def run(names: tuple[str, ...]) -> Results:
        return run_child(options.subject, PACKAGE, [*names, *excluded], {})

    began = time.monotonic()
    groups = [names for names in GROUPS if any(options.only in name for name in names)]
    results: Results = {}
    with ThreadPoolExecutor(2) as processes:
        for part in processes.map(run, groups):
            results |= part
    # Some of them measure seconds of their own: what failed on a busy machine runs once more.
    failed = {test for test, (outcome, _) in results.items() if outcome == "failed"}
    failed -= exceptions.keys()
    # Scenarios are made when a module is loaded: their tests have no names to load them by.
    again = {test if "(" not in test else ".".join(test.split(".")[:2]) for test in failed}
    for name in sorted(again):
        print(f"{name}: failed, runs again by itself")
        repeated = run((name,))
        results |= {test: repeated[test] for test in failed & repeated.keys()}
    wrong = differences(results, exceptions, None if options.only else total)
    print(
        f"oslo.messaging's unit tests {installed} on {options.subject}: {summary(results)} in "
        f"{time.monotonic() - began:.0f} s; {wrong} unexpected"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
