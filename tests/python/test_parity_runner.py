"""The comparison of the parity run: it fails on a difference in any direction."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location(
    "parity_run", Path(__file__).parents[1] / "parity/run.py"
)
assert _spec is not None
assert _spec.loader is not None
run = importlib.util.module_from_spec(_spec)
sys.modules["parity_run"] = run
_spec.loader.exec_module(run)

PASSES, FAILS, HANGS = "a.py::T::passes", "a.py::T::fails", "b.py::T::hangs"


def differences(**changes: str) -> list[str]:
    """Compare a suite of three tests, of which some do something else; "" leaves one out."""
    expected = run.Expectations("1", 3, {FAILS: run.FAILED, HANGS: run.HUNG})
    happened = {PASSES: run.PASSED, FAILS: run.FAILED, HANGS: run.HUNG}
    for name, outcome in changes.items():
        [test] = [test for test in happened if test.endswith(name)] or [f"c.py::T::{name}"]
        happened[test] = outcome
    results = {test: run.Result(outcome) for test, outcome in happened.items() if outcome}
    found: list[str] = run.compare(expected, results, whole=True)
    return found


def test_what_is_expected_is_no_difference() -> None:
    assert differences() == []


@pytest.mark.parametrize("outcome", ["failed", "hung", "skipped"])
def test_a_test_that_stops_passing_is_a_difference(outcome: str) -> None:
    [difference] = differences(passes=outcome)
    assert difference.startswith(f"{PASSES}: expected passed, {outcome}")


@pytest.mark.parametrize(("name", "before"), [("fails", "failed"), ("hangs", "hung")])
def test_a_test_that_starts_to_pass_is_a_difference(name: str, before: str) -> None:
    [difference] = differences(**{name: "passed"})
    assert f"expected {before}, passed" in difference


def test_a_failure_of_another_kind_is_a_difference() -> None:
    [difference] = differences(hangs="failed")
    assert "expected hung, failed" in difference


def test_a_listed_test_that_is_gone_is_a_difference() -> None:
    assert differences(fails="") == [
        f"{FAILS}: listed in expectations.toml, but there is no such test",
        "the suite has 2 tests, expected 3",
    ]


def test_a_new_test_is_a_difference_even_when_it_passes() -> None:
    assert differences(new="passed") == ["the suite has 4 tests, expected 3"]


@pytest.mark.parametrize("backend", ["eventlet", "threading"])
def test_the_list_is_consistent(backend: str) -> None:
    expected = run.Expectations.read(backend)
    assert expected.total == 221
    assert set(expected.exceptions.values()) <= {run.FAILED, run.HUNG, run.SKIPPED}
    assert expected.strict <= expected.exceptions.keys()
