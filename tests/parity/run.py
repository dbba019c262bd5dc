"""Run oslo.service's own test suite, unmodified, on osloxide and compare with what is expected.

Owns isolation (one pytest process for each test file, no terminal, a deadline for each test) and
the comparison with expectations.toml, which fails in both directions: a test that stops passing,
one that starts to, one that is new or gone. Never edits upstream's tests: they are taken from the
installed oslo.service.

    python tests/parity/run.py [--backend eventlet|threading] [--only SUBSTRING] [--record FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DEADLINE = 30.0
"""Seconds without an event after which the running test counts as hung."""
COLLECTING = 120.0
"""The same before the first test: everything is imported then."""
SHORT_DEADLINE = 10.0
"""The same for a test that is expected to hang."""

FIXED_PORTS = ("test_wsgi.py", "test_eventlet_backdoor.py")
"""Files whose tests listen on ports of upstream's choice: two runs of one must not meet."""


@dataclass
class Expectations:
    """The contents of expectations.toml."""

    version: str
    total: int
    exceptions: dict[str, str] = field(default_factory=dict)
    """What each test does that is not expected to pass."""
    strict: set[str] = field(default_factory=set)
    """Those of them that pass when OSLOXIDE_STRICT=1 brings back oslo.service's refusals."""

    @classmethod
    def read(cls, backend: str) -> Expectations:
        """Read the file; an entry without ``backends`` counts for both types."""
        document = tomllib.loads((HERE / "expectations.toml").read_text(encoding="utf-8"))
        result = cls(document["suite"]["version"], document["suite"]["total"])
        for entry in document["exception"]:
            if backend not in entry.get("backends", ("eventlet", "threading")):
                continue
            for test in entry["tests"]:
                if test in result.exceptions:
                    raise ValueError(f"expectations.toml: {test} is listed twice")
                result.exceptions[test] = entry["outcome"]
                if entry.get("passes_when_strict", False):
                    result.strict.add(test)
        return result

    def outcome(self, test: str) -> str:
        """What *test* is expected to do."""
        return self.exceptions.get(test, PASSED)


class Suite:
    """Upstream's suite in its place below site-packages, run file by file."""

    def __init__(self, backend: str, environ: Mapping[str, str], expected: Expectations) -> None:
        spec = importlib.util.find_spec("oslo_service")
        if spec is None or spec.origin is None:
            raise SystemExit("oslo.service is not installed; install oslo.service[threading]")
        self.root = Path(spec.origin).parent / "tests"
        self._top = self.root.parent.parent
        self._backend = backend
        self._expected = expected
        self._environ = {
            **environ,
            "PYTHONPATH": os.pathsep.join(
                [str(HERE), IMPORTED_FROM, *filter(None, [environ.get("PYTHONPATH", "")])]
            ),
            "PYTHONDONTWRITEBYTECODE": "1",
            "EVENTLET_HUB": "_hub:Hub",
        }

    def collect(self) -> list[str]:
        """Names of all tests, as ``path::Class::test`` below ``oslo_service/tests``."""
        events, output = self._pytest(["--collect-only", str(self.root)], None)
        broken = [f"{test}:\n{detail}" for kind, test, detail in events if kind == FAILED]
        if broken:
            raise SystemExit("cannot collect " + "\n".join(broken))
        tests = [test for kind, test, _ in events if kind == "collected"]
        if not tests:
            raise SystemExit(f"nothing was collected below {self.root}:\n{output}")
        return tests

    def run(self, tests: list[str]) -> dict[str, Result]:
        """Run *tests*, all of one file, in as few processes as hangs and crashes allow."""
        results: dict[str, Result] = {}
        left = list(tests)
        while left:
            arguments = [f"{self.root}/{test}" for test in left]
            events, output = self._pytest(arguments, self._deadline)
            enter(events, output, results)
            before, left = left, [test for test in left if test not in results]
            if left == before:
                results[left[0]] = Result(FAILED, f"pytest did not get to run it\n{output}")
                left = left[1:]
        return results

    def _pytest(
        self, arguments: list[str], deadline: Callable[[str], float] | None
    ) -> tuple[Events, str]:
        """One pytest process. Returns its events and what it printed."""
        options = [*self._options(), *arguments]
        events, output = pytest(options, cwd=self._top, environ=self._environ, deadline=deadline)
        for event in events:
            event[1] = self._short(event[1])
        return events, output

    def _options(self) -> list[str]:
        return [
            *("-p", "osloxide.testing.plugin", "-p", "_parity"),
            f"--osloxide-backend={self._backend}",
            f"--rootdir={self.root}",
        ]

    def _deadline(self, test: str) -> float:
        if not test:
            return COLLECTING
        hangs = self._expected.outcome(self._short(test)) == HUNG
        return SHORT_DEADLINE if hangs else DEADLINE

    def _short(self, test: str) -> str:
        """Node ids are relative to what pytest takes for its root; ours are not."""
        name = test.rpartition("oslo_service/tests/")[2]
        return name.removeprefix(f"{self.root}/")


@contextlib.contextmanager
def _turn(name: str) -> Iterator[None]:
    """Keep other runs on this machine, of the other backend type for one, off its fixed ports."""
    if name not in FIXED_PORTS:
        yield
        return
    with Path(tempfile.gettempdir(), f"osloxide-parity-{name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compare(expected: Expectations, results: dict[str, Result], *, whole: bool) -> list[str]:
    """Every difference between what was expected and what happened, one line each."""
    differences = []
    for test, result in sorted(results.items()):
        wanted = expected.outcome(test)
        if result.outcome != wanted:
            last = result.detail.strip().rpartition("\n")[2]
            differences.append(f"{test}: expected {wanted}, {result.outcome}: {last}")
    if whole:
        differences += [
            f"{test}: listed in expectations.toml, but there is no such test"
            for test in sorted(expected.exceptions.keys() - results.keys())
        ]
        if len(results) != expected.total:
            differences.append(f"the suite has {len(results)} tests, expected {expected.total}")
    return differences


def main(arguments: list[str] | None = None) -> int:
    """Run the suite; 0 when it did exactly what was expected."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", choices=("eventlet", "threading"), default="eventlet")
    parser.add_argument("--only", help="run only tests whose name contains this")
    parser.add_argument("--record", type=Path, help="write all outcomes to this JSON file")
    parser.add_argument("-v", "--verbose", action="store_true", help="print failures in full")
    options = parser.parse_args(arguments)

    # End what we started when a job control system ends us.
    signal.signal(signal.SIGTERM, lambda signo, _frame: sys.exit(128 + signo))
    expected = Expectations.read(options.backend)
    version = importlib.metadata.version("oslo.service")
    if version != expected.version:
        print(f"expectations are for oslo.service {expected.version}, found {version}")
        return 2
    suite = Suite(options.backend, os.environ, expected)
    tests = [test for test in suite.collect() if not options.only or options.only in test]
    files: dict[str, list[str]] = {}
    for test in tests:
        files.setdefault(test.partition("::")[0], []).append(test)

    results: dict[str, Result] = {}
    for name, members in files.items():
        began = time.monotonic()
        with _turn(name):
            outcome = suite.run(members)
        results |= outcome
        print(f"{name:52} {_summary(outcome)}  {time.monotonic() - began:.1f} s", flush=True)
        if options.verbose:
            for test, result in outcome.items():
                if result.outcome != expected.outcome(test):
                    print(f"--- {test}: {result.outcome}\n{result.detail}", flush=True)
    print(f"{'total':52} {_summary(results)}")
    strict_tests = [test for test in tests if test in expected.strict]
    strict = Suite(options.backend, os.environ | {"OSLOXIDE_STRICT": "1"}, expected)
    strict_results: dict[str, Result] = {}
    for name in files:
        members = [test for test in strict_tests if test.partition("::")[0] == name]
        if members:
            with _turn(name):
                strict_results |= strict.run(members)
    if strict_results:
        print(f"{'with OSLOXIDE_STRICT=1':52} {_summary(strict_results)}")
    if options.record:
        document = {test: [result.outcome, result.detail] for test, result in results.items()}
        options.record.write_text(json.dumps(document, indent=1), encoding="utf-8")

    differences = compare(expected, results, whole=not options.only)
    differences += [
        f"{test}: expected {PASSED} with OSLOXIDE_STRICT=1, {result.outcome}"
        for test, result in strict_results.items()
        if result.outcome != PASSED
    ]
    for difference in differences:
        print(difference)
    print("as expected" if not differences else f"{len(differences)} differences")
    print(_verdict(expected, results, len(differences)))
    return 1 if differences else 0


def _verdict(expected: Expectations, results: dict[str, Result], differences: int) -> str:
    """The counts in pytest's words: what is expected not to pass, and does not, is xfailed."""
    passed = sum(result.outcome == PASSED for result in results.values())
    xfailed = sum(
        result.outcome == expected.outcome(test) != PASSED for test, result in results.items()
    )
    failed = f", {differences} failed" if differences else ""
    return f"{passed} passed, {xfailed} xfailed{failed}"


def _summary(results: dict[str, Result]) -> str:
    counts = dict.fromkeys((PASSED, FAILED, SKIPPED, HUNG), 0)
    for result in results.values():
        counts[result.outcome] += 1
    return f"{len(results):3}: " + ", ".join(f"{n:3} {name}" for name, n in counts.items() if n)


if __name__ == "__main__":
    sys.exit(main())
