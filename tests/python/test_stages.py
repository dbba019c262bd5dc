"""``make test`` fails when a test fails, and tells a test that is unsteady from one that fails."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

STAGES = Path(__file__).parents[2] / "tools" / "stages.py"
_spec = importlib.util.spec_from_file_location("stages", STAGES)
assert _spec is not None
assert _spec.loader is not None
module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(module)

MAKEFILE = """
quick:
	@echo quick

suite: TESTS ?= test_it.py
suite:
	@PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(PYTHON) -m pytest -q -p no:cacheprovider $(TESTS)

broken:
	@echo nothing to test; exit 3

talkative:
	@echo "service.py:12: a warning"; seq 100 199; exit 3
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
CRASHES_ONCE = (
    FAILS_ONCE
    + """
if not pathlib.Path("it's").exists():
    import atexit, os
    atexit.register(os.kill, os.getpid(), 9)
"""
)
SKIPS_AGAIN = """
import pathlib, pytest

def test_it():
    mark = pathlib.Path("mark")
    if mark.exists():
        pytest.skip("this time")
    mark.touch()
    assert 1 == 2
"""
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
        pytest.param(SKIPS_AGAIN, "--again suite quick -- suite", id="is skipped then"),
        pytest.param(CRASHES_ONCE, "--again suite quick -- suite", id="and pytest crashes"),
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


def test_the_last_lines_are_repeated_whatever_else_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE)
    monkeypatch.chdir(tmp_path)

    lines = "".join(module.run("talkative").telling).splitlines()

    assert lines[0] == "service.py:12: a warning"
    assert lines[1:-1] == [str(number) for number in range(int(lines[1]), 200)]
    assert "190" in lines
    assert lines[-1].endswith("Error 3")


ENDS_IN_TIME = """#!{python}
# Says what pytest and make do where a test has failed, but not before it is interrupted.
import signal, sys
try:
    print("FAILED test_it.py::test_it - assert 1 == 2")
    open("gate", "w").close()
    signal.pause()
except KeyboardInterrupt:
    print("1 failed in 3600.00s\\nmake: *** [Makefile:159: suite] Error 1")
    sys.exit(2)
"""


def test_a_stage_that_was_ended_is_not_explained_by_a_failed_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, gate = tmp_path / "make", tmp_path / "gate"
    make.write_text(ENDS_IN_TIME.format(python=sys.executable))
    make.chmod(0o755)
    os.mkfifo(gate)

    class Timer(threading.Thread):
        """Has waited for long enough when the stage says so."""

        def __init__(self, _: float, give_up: Callable[[], None]) -> None:
            super().__init__(target=lambda: (gate.read_text(), give_up()), daemon=True)

        def cancel(self) -> None:
            self.join()

    monkeypatch.setattr(threading, "Timer", Timer)
    monkeypatch.setenv("MAKE", str(make))
    monkeypatch.chdir(tmp_path)

    outcome = module.run("suite")

    assert outcome.failures == ["test_it.py::test_it"]
    assert outcome.counts == {"failed": 1}
    assert not outcome.is_explained
