"""Starts a case in a sandbox: see README.md. Decides nothing: the tests compare."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CASES: dict[str, dict[str, Any]] = tomllib.loads((HERE / "cases.toml").read_text())

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="users, privileged paths and mounts of a deployment need root and namespaces",
)


def option(text: str, name: str, default: str = "") -> str:
    """The last value of an option of an ini file."""
    found = re.findall(rf"^{name} = (.*)$", text, re.MULTILINE)
    return found[-1].strip() if found else default


def started(case: dict[str, Any], text: str, directory: Path) -> dict[str, Any]:
    """What the driver saw of a service.

    :param case: as in cases.toml; ``start`` says how, where it is not by ``arguments``.
    :param text: the ini file.
    """
    case = {**case, "workers": int(option(text, "processes"))}
    (directory / "case.json").write_text(json.dumps(case))
    (directory / "file.ini").write_text(text)
    (directory / "sandbox").mkdir()
    done = subprocess.run(
        [
            "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child",
            sys.executable, str(HERE / "sandbox.py"), str(directory / "sandbox"),
            str(directory / "case.json"), str(directory / "file.ini"),
        ],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert "failed" not in result, result["failed"]
    return result
