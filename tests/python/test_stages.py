"""``make test`` fails when a test fails, and tells a test that is unsteady from one that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STAGES = Path(__file__).parents[2] / "tools" / "stages.py"

MAKEFILE = """
quick:
	@echo quick

suite: TESTS ?= test_it.py
suite:
	@PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(PYTHON) -m pytest -q -p no:cacheprovider $(TESTS)

broken:
	@echo nothing to test; exit 3
"""
FAILS_ONCE = """
import pathlib, pytest

@pytest.mark.parametrize("what", ["a $b", "it's"])
def test_unsteady(what):
    mark = pathlib.Path(what)
    was_there = mark.exists()
    mark.touch()
    assert was_there

def test_steady():
    pass
"""
FAILS = "def test_it():\n    assert 1 == 2\n"
ALL_FAIL = (
    "import pytest\n@pytest.mark.parametrize('n', range(4))\ndef test_it(n): assert n is None\n"
)


def stages(folder: Path, test: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "Makefile").write_text(MAKEFILE.replace("$(PYTHON)", sys.executable))
    (folder / "test_it.py").write_text(test)
    return subprocess.run(
        [sys.executable, str(STAGES), *words],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_what_passes_alone_is_named_and_does_not_fail_the_run(tmp_path: Path) -> None:
    done = stages(tmp_path, FAILS_ONCE, "--again", "suite", "quick", "--", "suite", "--", "quick")
    assert done.returncode == 0, done.stdout
    for what in ("a $b", "it's"):
        line = f"unsteady: test_it.py::test_unsteady[{what}] failed beside the other lists"
        assert line in done.stdout
    assert "1 passed, 2 failed" in done.stdout
    assert "PASS: 3 stages" in done.stdout


@pytest.mark.parametrize(
    ("test", "words"),
    [
        pytest.param(FAILS, "--again suite quick -- suite", id="fails again"),
        pytest.param(FAILS_ONCE, "--again other quick -- suite", id="a stage that is not retried"),
        pytest.param(FAILS_ONCE, "--again suite suite -- quick", id="nothing ran beside it"),
        pytest.param(ALL_FAIL, "--again suite quick -- suite", id="too many"),
        pytest.param(FAILS_ONCE, "--again suite quick -- suite -- broken", id="and another stage"),
        pytest.param("import missing_module", "--again suite quick -- suite", id="no test at all"),
    ],
)
def test_a_failure_fails_the_run_and_is_repeated_above_the_summary(
    tmp_path: Path, test: str, words: str
) -> None:
    done = stages(tmp_path, test, *words.split())
    assert done.returncode == 1, done.stdout
    assert "FAILED: suite" in done.stdout
    repeated = done.stdout.partition("=== suite: what it printed of its failures")[2]
    assert "\nE  " in repeated
    assert "unsteady: " not in done.stdout
