"""Run py-amqp's and kombu's own unit tests, unmodified, under the import hook.

Both are amended (python/osloxide/messaging/hook.py); their tests say what their other users rely
on. Owns the choice of files and the comparison with clients_expectations.toml, which fails in both
directions. The tests are taken from the pinned sdists; no broker is needed.

    python tests/messaging/clients.py [--subject osloxide|stock] [--only amqp|kombu]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from upstream.running import (  # noqa: E402
    IMPORTED_FROM,
    PASSED,
    SKIPPED,
    Result,
    enter,
    pytest,
)
from upstream.sdist import REPOSITORY, unpacked  # noqa: E402

LOCK = REPOSITORY / "requirements" / "messaging-tests.lock"
DEADLINE = 120.0
"""Seconds without an event after which the running test counts as hung."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--subject", choices=("osloxide", "stock"), default="osloxide")
    parser.add_argument("--only", choices=("amqp", "kombu"))
    options = parser.parse_args(arguments)
    document = tomllib.loads((HERE / "clients_expectations.toml").read_text(encoding="utf-8"))
    wrong = 0
    for package, expected in document.items():
        if options.only in (None, package):
            wrong += _run(package, expected, options.subject)
    return 1 if wrong else 0


def _run(package: str, expected: dict[str, object], subject: str) -> int:
    """Run the suite of *package*; how much of it was not as expected."""
    version, root = unpacked(LOCK, package, "t")
    installed = importlib.metadata.version(package)
    if version != installed:
        print(f"{package} is {installed}, {LOCK.name} has {version}")
        return 1
    left_out = expected["left_out"]
    assert isinstance(left_out, dict)
    ignored = [f"--ignore={name}" for names in left_out.values() for name in names]
    began = time.monotonic()
    results: dict[str, Result] = {}
    # Both projects name their classes so, in configuration that is no part of the folder.
    arguments = ["-o", "python_classes=test_*", "--tb=short", f"--rootdir={root}"]

    def run(*chosen: str) -> str:
        events, output = pytest(
            [*arguments, *chosen],
            cwd=root,
            environ=_environ(subject),
            deadline=lambda _: DEADLINE,
            keeps_files=True,
        )
        enter(events, output, results)
        return output

    output = run("t/unit", *ignored)
    failures = expected.get("failures", {})
    assert isinstance(failures, dict)
    exceptions = {test for tests in failures.values() for test in tests}
    # Some measure seconds, which say little on a busy machine; by itself a test has more of it.
    for test, result in sorted(results.items()):
        if result.outcome not in (PASSED, SKIPPED) and test not in exceptions:
            print(f"{test}: {result.outcome}; run once more by itself")
            del results[test]
            run(test)
    wrong = 0
    for test, result in sorted(results.items()):
        is_right = (result.outcome not in (PASSED, SKIPPED)) == (test in exceptions)
        if not is_right:
            wrong += 1
            print(f"{test}: {result.outcome}, unexpected\n{result.detail}")
    for test in sorted(exceptions - results.keys()):
        wrong += 1
        print(f"{test}: listed in clients_expectations.toml, but there is no such test")
    if len(results) != expected["total"]:
        wrong += 1
        print(f"{len(results)} tests, expected {expected['total']}\n{output[-2000:]}")
    counts = [sum(r.outcome == kind for r in results.values()) for kind in (PASSED, SKIPPED)]
    print(
        f"{package}'s unit tests {version} on {subject}: {counts[0]} passed, {counts[1]} skipped, "
        f"in {time.monotonic() - began:.0f} s; {wrong} unexpected"
    )
    return wrong


def _environ(subject: str) -> dict[str, str]:
    environ = dict(os.environ)
    if subject == "osloxide":
        from osloxide.activation import environment

        environ = environment.activated(os.environ)
    environ["PYTHONPATH"] = os.pathsep.join(
        path for path in (environ.get("PYTHONPATH"), IMPORTED_FROM) if path
    )
    environ["PYTHONDONTWRITEBYTECODE"] = "1"
    return environ


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
