"""The tables of the documentation name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TESTED = ("lifecycle.md", "signals.md", "compatibility.md")

# Longer than any option, method or field that tables name in the same way.
NAME = re.compile(r"`([a-z0-9]+(?:_[a-z0-9]+){4,})`")


def known() -> set[str]:
    """Names of all tests, those of Python without their prefix."""
    found: set[str] = set()
    for file in (REPOSITORY / "tests").rglob("test_*.py"):
        found |= set(re.findall(r"^def test_(\w+)\(", file.read_text(), re.MULTILINE))
    for file in (REPOSITORY / "tests").glob("*.rs"):
        found |= set(re.findall(r"^fn (\w+)\(\)", file.read_text(), re.MULTILINE))
    return found


@pytest.mark.parametrize("document", TESTED)
def test_every_test_that_a_table_names_exists(document: str) -> None:
    lines = (REPOSITORY / "docs" / document).read_text().splitlines()
    named = {name for line in lines if line.startswith("|") for name in NAME.findall(line)}

    assert len(named) > 10, "the tables name no tests any more"
    assert named <= known(), f"no such tests: {sorted(named - known())}"
