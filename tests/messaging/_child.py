"""Runs oslo.messaging's own tests in this process: ``_child.py SUBJECT REPORT PACKAGE NAME ...``.

SUBJECT is ``osloxide`` or ``stock``. Writes one JSON line for each test to REPORT: its name and
what came of it. NAMEs are modules, test cases or tests below PACKAGE; one that begins
with ``-`` is a test that must not be run. PACKAGE is
``oslo_messaging.tests.functional`` or, for the unit tests, ``oslo_messaging.tests``.
"""

# ruff: noqa: E402  (the hook must precede other imports)

from __future__ import annotations

import json
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUBJECT, REPORT, PACKAGE, NAMES = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
FAILOVER = any("test_rabbitmq" in name for name in NAMES)
IS_UNPATCHED = SUBJECT == "osloxide" or FAILOVER or not PACKAGE.endswith(".functional")

if IS_UNPATCHED:
    import eventlet

    # The package of tests patches the interpreter when it is imported. Nothing under osloxide has
    # green threads; everything else about the tests stays as it is. pifpaf, by which the failover
    # tests start a cluster, needs select.poll, which a patched interpreter lacks.
    eventlet.monkey_patch = lambda **_options: None

if SUBJECT == "osloxide":
    from osloxide.activation import import_hook

    import_hook.install()

from oslo_service import backend

if IS_UNPATCHED:
    backend.init_backend(backend.BackendType.THREADING)


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


def mend_failover() -> None:
    """Let the failover tests begin: they set options to values that oslo.messaging refuses today.

    A pause of 0 s between two attempts to connect is now at least 1 s, and a pool of one connection
    must be told that it need not keep two.
    """
    from oslo_messaging.tests import utils

    config = utils.BaseTestCase.config

    def config_within_bounds(self: Any, **options: Any) -> None:
        if options.get("rabbit_retry_interval") == 0:
            options["rabbit_retry_interval"] = 1
        if options.get("rpc_conn_pool_size") == 1:
            options["conn_pool_min_size"] = 1
        config(self, **options)

    utils.BaseTestCase.config = config_within_bounds
    if SUBJECT == "stock":
        use_native_threads()


def use_native_threads() -> None:
    """Let stock run the tests that it runs unpatched: they name an executor of green threads."""
    from oslo_messaging import server

    cls = server.MessageHandlingServer
    init = cls.__init__

    def init_threading(self: Any, transport: Any, dispatcher: Any, executor: Any = None) -> None:
        init(self, transport, dispatcher, "threading")

    cls.__init__ = init_threading


def main() -> None:
    if FAILOVER:
        mend_failover()
    names = [f"{PACKAGE}.{name}" for name in NAMES if not name.startswith("-")]
    excluded = {name[1:] for name in NAMES if name.startswith("-")}
    reporter = Reporter()
    suite = unittest.TestSuite()
    for test in _tests(unittest.defaultTestLoader.loadTestsFromNames(names)):
        if test.id().removeprefix(f"{PACKAGE}.") in excluded:
            reporter._report(test, "excluded")
        else:
            suite.addTest(test)
    suite.run(reporter)


def _tests(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _tests(test)
        else:
            yield test


main()
