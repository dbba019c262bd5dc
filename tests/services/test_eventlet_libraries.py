"""Libraries that look out for eventlet work on the one that osloxide serves.

Their own tests pass, where the library has some and brings them along; and a program that
monkey-patches does its work with them (apps/patched_library.py). libraries.toml names both.
``OSLOXIDE_SUBJECT=stock`` runs the same on the real eventlet.
"""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from services.cinder import Environment
from services.subject import APPS, IS_LONG, IS_STOCK, REPOSITORY, run_under_subject

pytestmark = pytest.mark.timeout(900)

_DATA = tomllib.loads((Path(__file__).parent / "libraries.toml").read_text())
LIBRARIES, WORK = _DATA["library"], _DATA["work"]
SCRIPTS = {"cinder26": "cinder-api", "nova31": "nova-api"}

_FAILED = re.compile(r"^(?:FAIL|ERROR): (\w+)", re.MULTILINE)
_RAN = re.compile(r"^Ran (\d+) tests? in", re.MULTILINE)


def environment(name: str) -> Environment:
    lock = REPOSITORY / "requirements" / f"{name}.lock"
    return Environment(name, lock, SCRIPTS[name], own=True)


def run_python(name: str, *arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """The Python of an environment with *arguments*, as the subject runs it."""
    where = environment(name)
    return subprocess.run(
        run_under_subject([where.python, *arguments], [where.python, "-m", "osloxide"]),
        env=where.variables(), cwd=directory, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library["module"])
def test_a_librarys_own_tests_pass(library: dict[str, Any], tmp_path: Path) -> None:
    if library.get("long") and not IS_LONG:
        pytest.skip("takes more than 30 s; OSLOXIDE_LONG=1 runs it")
    done = run_python("cinder26", "-m", "unittest", library["module"], directory=tmp_path)
    ran = _RAN.search(done.stderr)

    assert ran is not None, done.stderr[-3000:]
    assert int(ran.group(1)) >= library["tests"], done.stderr[-3000:]
    expected = set() if IS_STOCK else set(library.get("fails", {}))
    assert set(_FAILED.findall(done.stderr)) == expected, done.stderr[-5000:]


@pytest.mark.parametrize("work", WORK, ids=lambda work: work["library"])
def test_a_program_that_patches_works_with_a_library(work: dict[str, Any], tmp_path: Path) -> None:
    script = str(APPS / "patched_library.py")
    done = run_python(
        work["environment"], script, work["library"], str(tmp_path), directory=tmp_path
    )

    assert done.returncode == 0, done.stderr[-5000:]
    assert json.loads(done.stdout.splitlines()[-1]) == work["comes_to"]
    assert "Traceback" not in done.stderr, done.stderr[-5000:]
