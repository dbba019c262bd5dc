"""Runs oslo.messaging's functional tests in this process: ``_child.py SUBJECT REPORT [NAME ...]``.

SUBJECT is ``osloxide`` or ``stock``. Writes one JSON line for each test to REPORT: its name and
what came of it. NAMEs are test cases below ``oslo_messaging.tests.functional``; none means all.
"""

# ruff: noqa: E402  (the hook must precede other imports)

from __future__ import annotations

import json
import sys
import unittest
from pathlib import Path
from typing import Any

SUBJECT, REPORT, NAMES = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]

if SUBJECT == "osloxide":
    import eventlet

    # The package of tests patches the interpreter when it is imported. Nothing under osloxide has
    # green threads; everything else about the tests stays as it is.
    eventlet.monkey_patch = lambda **_options: None

    from osloxide import _bootstrap

    _bootstrap.install()

from oslo_service import backend

if SUBJECT == "osloxide":
    backend.init_backend(backend.BackendType.THREADING)

PACKAGE = "oslo_messaging.tests.functional"
MODULES = ("test_functional", "notify.test_logger")


class Reporter(unittest.TestResult):
    """Writes what comes of each test as soon as it is known."""

    def _report(self, test: Any, outcome: str, detail: str = "") -> None:
        name = test.id().removeprefix(f"{PACKAGE}.")
        with REPORT.open("a") as report:
            report.write(json.dumps({"test": name, "outcome": outcome, "detail": detail}) + "\n")

    def startTest(self, test: Any) -> None:  # noqa: N802
        self._report(test, "started")

    def addSuccess(self, test: Any) -> None:  # noqa: N802
        self._report(test, "passed")

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        self._report(test, "failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    addError = addFailure  # noqa: N815

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        self._report(test, "skipped", reason)


def main() -> None:
    names = [f"{PACKAGE}.{name}" for name in NAMES or MODULES]
    unittest.defaultTestLoader.loadTestsFromNames(names).run(Reporter())


main()
