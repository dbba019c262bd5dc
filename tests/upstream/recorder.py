"""pytest plugin of a run of another project's tests: writes what happens to each, as it happens.

Owns one file of JSON arrays, ``[event, node id, detail]`` a line, named by
OSLOXIDE_UPSTREAM_RECORD. Written by the process that pytest runs in and by no child that a test
forks. Changes no test.
"""

from __future__ import annotations

import json
import os

import pytest

_PID = os.getpid()


def _record(*event: str) -> None:
    if os.getpid() == _PID:
        with open(os.environ["OSLOXIDE_UPSTREAM_RECORD"], "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def pytest_itemcollected(item: pytest.Item) -> None:
    _record("collected", item.nodeid, "")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _record("failed", report.nodeid, str(report.longrepr))


def pytest_runtest_logstart(nodeid: str) -> None:
    _record("started", nodeid, "")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        detail = "" if report.outcome == "passed" else str(report.longrepr)
        _record(report.outcome, report.nodeid, detail)


def pytest_runtest_logfinish(nodeid: str) -> None:
    _record("finished", nodeid, "")
