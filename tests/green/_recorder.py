"""pytest plugin of the run of eventlet's own tests: writes what happens to each, as it happens.

One JSON array a line, ``[event, node id, detail]``, into the file named by OSLOXIDE_GREEN_RECORD.
Written by the process that pytest runs in and by no child of it. Makes sure that the names are
osloxide's: a run on the real eventlet would prove nothing.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_PID = os.getpid()


def pytest_configure() -> None:
    import eventlet
    import greenlet

    for module in (eventlet, greenlet):
        if not module.__name__.startswith("osloxide.green"):
            raise SystemExit(f"{module.__name__} is not served by osloxide: {module.__file__}")


def _record(*event: str) -> None:
    if os.getpid() == _PID:
        with open(os.environ["OSLOXIDE_GREEN_RECORD"], "a", encoding="utf-8") as file:
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
