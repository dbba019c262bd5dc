"""pytest plugin of the parity run: writes what happens to each test, as it happens.

One JSON array a line, ``[event, node id, detail]``, into the file named by OSLOXIDE_PARITY_RECORD.
Written by the process that pytest runs in and by no child that a test forks. Adds the two module
attributes without which a whole file of upstream's tests could not be imported, or one of its tests
not patch what it then proves is never called.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_PID = os.getpid()


def pytest_configure() -> None:
    from osloxide.backends.threading import service

    service.multiprocessing = multiprocessing  # type: ignore[attr-defined]
    service._check_spawn_picklable = None  # type: ignore[attr-defined]


def _record(*event: str) -> None:
    if os.getpid() == _PID:
        with open(os.environ["OSLOXIDE_PARITY_RECORD"], "a", encoding="utf-8") as file:
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
