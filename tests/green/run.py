"""Run eventlet's own tests, unmodified, on osloxide.green and compare with what is expected.

Owns isolation (one pytest process for each file, a deadline for each test) and the comparison with
expectations.toml, which fails in both directions. The tests are those of the pinned sdist.

    python tests/green/run.py [--only SUBSTRING] [--record FILE] [--jobs N] [-v]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import signal
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from upstream.running import (  # noqa: E402
    FAILED,
    HUNG,
    IMPORTED_FROM,
    PASSED,
    SKIPPED,
    Events,
    Result,
    enter,
    pytest,
)
from upstream.sdist import unpacked  # noqa: E402

REPOSITORY = HERE.parent.parent
LOCK = REPOSITORY / "requirements" / "eventlet-tests.lock"
DEADLINE = 45.0
"""Seconds without an event after which the running test counts as hung."""
SHORT_DEADLINE = 8.0
"""The same for a test that is expected to hang."""


@dataclass
class Expectations:
    """The contents of expectations.toml."""

    version: str
    exceptions: dict[str, str] = field(default_factory=dict)
    """What each test does that is not expected to pass."""
    unsteady: set[str] = field(default_factory=set)
    """Tests whose outcome depends on the machine: they are run, and not compared."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Files that are not run, each with its reason."""

    @classmethod
    def read(cls) -> Expectations:
        """Read the file."""
        document = tomllib.loads((HERE / "expectations.toml").read_text(encoding="utf-8"))
        result = cls(document["suite"]["version"])
        for entry in document.get("left_out", []):
            for name in entry["files"]:
                result.left_out[name] = entry["reason"]
        for entry in document.get("exception", []):
            for test in entry["tests"]:
                if test in result.exceptions:
                    raise ValueError(f"expectations.toml: {test} is listed twice")
                if entry["outcome"] == "unsteady":
                    result.unsteady.add(test)
                else:
                    result.exceptions[test] = entry["outcome"]
        return result

    def outcome(self, test: str) -> str:
        """What *test* is expected to do."""
        return self.exceptions.get(test, PASSED)


class Suite:
    """The tests of one release."""

    def __init__(self, expected: Expectations) -> None:
        _, self.root = unpacked(LOCK, "eventlet", "tests")
        self._expected = expected
        from osloxide.activation import environment

        environ = environment.activated(os.environ)
        environ["PYTHONPATH"] += os.pathsep + os.pathsep.join((str(HERE), IMPORTED_FROM))
        environ |= {"PYTHONDONTWRITEBYTECODE": "1", "EVENTLET_TESTS": "1"}
        for name in ("OSLOXIDE_TESTING", "EVENTLET_HUB"):
            environ.pop(name, None)
        self._environ = environ

    def files(self) -> list[str]:
        """Names of the files that hold tests, the long ones first."""
        found = [
            path
            for path in sorted((self.root / "tests").glob("*.py"))
            if re.search(r"^\s*(def|class) [Tt]est|LimitedTestCase", path.read_text(), re.MULTILINE)
            and path.name not in ("__init__.py", "mock.py", "conftest.py")
        ]
        return [
            path.name
            for path in sorted(found, key=lambda path: -path.stat().st_size)
            if path.name not in self._expected.left_out
        ]

    def run(self, name: str) -> dict[str, Result]:
        """Run one file or test, in as few processes as hangs and crashes allow."""
        results: dict[str, Result] = {}
        arguments = [f"tests/{name}"]
        left: list[str] | None = None
        while True:
            events, output = self._pytest(arguments)
            collected = enter(events, output, results)
            if not collected and not results:
                skipped = re.search(r"^\d+ skipped", output, re.MULTILINE)
                results[f"tests/{name}"] = Result(SKIPPED if skipped else FAILED, output)
            before = left
            left = [test for test in (before or collected) if test not in results]
            if not left:
                return results
            if left == before:
                results[left[0]] = Result(FAILED, f"pytest did not get to run it\n{output}")
                left = left[1:]
                if not left:
                    return results
            arguments = left

    def _pytest(self, arguments: list[str]) -> tuple[Events, str]:
        options = ["-p", "_green", "--tb=short", f"--rootdir={self.root}", *arguments]
        return pytest(
            options,
            cwd=self.root,
            environ=self._environ,
            deadline=self._deadline,
            keeps_files=True,
        )

    def _deadline(self, test: str) -> float:
        return SHORT_DEADLINE if self._expected.outcome(test) == HUNG else DEADLINE


def surprising(expected: Expectations, results: dict[str, Result]) -> list[str]:
    """The tests that neither did what was expected nor skipped themselves."""
    return [
        test
        for test, result in sorted(results.items())
        if test not in expected.unsteady and result.outcome not in (expected.outcome(test), SKIPPED)
    ]


def compare(expected: Expectations, results: dict[str, Result], *, whole: bool) -> list[str]:
    """Every difference between what was expected and what happened, one line each.

    A test that skips itself, for want of a library or a service, is no difference.
    """
    differences = []
    for test in surprising(expected, results):
        result = results[test]
        last = result.detail.strip().rpartition("\n")[2]
        differences.append(f"{test}: expected {expected.outcome(test)}, {result.outcome}: {last}")
    if whole:
        differences += [
            f"{test}: listed in expectations.toml, but there is no such test"
            for test in sorted((expected.exceptions.keys() | expected.unsteady) - results.keys())
        ]
    return differences


def main(arguments: list[str] | None = None) -> int:
    """Run the suite; 0 when it did exactly what was expected."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="run only files whose name contains this")
    parser.add_argument("--record", type=Path, help="write all outcomes to this JSON file")
    parser.add_argument("--jobs", type=int, default=2, help="files at once")
    parser.add_argument("-v", "--verbose", action="store_true", help="print failures in full")
    options = parser.parse_args(arguments)

    signal.signal(signal.SIGTERM, lambda signo, _frame: sys.exit(128 + signo))
    expected = Expectations.read()
    suite = Suite(expected)
    if suite.root.name != f"eventlet-{expected.version}":
        print(f"expectations are for eventlet {expected.version}, found {suite.root.name}")
        return 2
    files = [name for name in suite.files() if not options.only or options.only in name]
    results: dict[str, Result] = {}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as executor:
        runs = {executor.submit(_timed, suite, name): name for name in files}
        for run in concurrent.futures.as_completed(runs):
            outcome, seconds = run.result()
            results |= outcome
            print(f"{runs[run]:36} {_summary(outcome)}  {seconds:.1f} s", flush=True)
            if options.verbose:
                for test, result in outcome.items():
                    if result.outcome not in (expected.outcome(test), SKIPPED):
                        print(f"--- {test}: {result.outcome}\n{result.detail}", flush=True)
    # Many measure seconds, which say little on a busy machine: by itself a test has more of it.
    for test in surprising(expected, results):
        if "::" in test:
            print(f"{test}: {results[test].outcome}; run once more by itself", flush=True)
            results |= suite.run(test.removeprefix("tests/"))
    if options.record:
        document = {test: [result.outcome, result.detail] for test, result in results.items()}
        options.record.write_text(json.dumps(document, indent=1), encoding="utf-8")
    differences = compare(expected, results, whole=not options.only)
    for difference in differences:
        print(difference)
    passed = sum(result.outcome == PASSED for result in results.values())
    skipped = sum(result.outcome == SKIPPED for result in results.values())
    xfailed = sum(
        result.outcome == expected.outcome(test) != PASSED for test, result in results.items()
    )
    failed = f", {len(differences)} failed" if differences else ""
    print(f"{passed} passed, {xfailed} xfailed, {skipped} skipped{failed}")
    return 1 if differences else 0


def _timed(suite: Suite, name: str) -> tuple[dict[str, Result], float]:
    began = time.monotonic()
    return suite.run(name), time.monotonic() - began


def _summary(results: dict[str, Result]) -> str:
    counts = dict.fromkeys((PASSED, FAILED, SKIPPED, HUNG), 0)
    for result in results.values():
        counts[result.outcome] += 1
    return f"{len(results):3}: " + ", ".join(f"{n:3} {name}" for name, n in counts.items() if n)


if __name__ == "__main__":
    sys.exit(main())
