"""What the documentation says of the code is so: tests, options, variables, paths, links, words."""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance import ALL_ROWS

from osloxide.cli import serve_options

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
TESTED = ("lifecycle.md", "signals.md", "compatibility.md", "faults.md")

# Longer than any option, method or field that tables name in the same way.
NAME = re.compile(r"`([a-z0-9]+(?:_[a-z0-9]+){4,})`")
PATH = re.compile(
    r"(?<![\w/.~$}-])((?:python|src|tests|docs|benches|tools|examples|fuzz|requirements)"
    r"/[\w./-]*\w/?)(?![\w*<{-])"
)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]+)(?:#[^)\s]*)?\)")
VARIABLE = re.compile(r"\bOSLOXIDE(?:_[A-Z]+(?:_[A-Z]+)*)?\b(?!_)")
SOURCES = ("python", "src", "tests", "benches", "examples", "tools")


def tracked(*places: str, endings: tuple[str, ...] = (".py", ".pyi", ".rs", ".md")) -> list[Path]:
    """Files of the repository below *places* that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *places]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found = (REPOSITORY / name for name in listed.stdout.splitlines())
    return [path for path in found if path.suffix in endings and path.is_file()]


def pages() -> list[Path]:
    return tracked("*.md", "docs", "benches", "tests", "fuzz", ".github", endings=(".md",))


def known_tests() -> set[str]:
    """Names of all tests, those of Python without their prefix."""
    found: set[str] = set(ALL_ROWS)
    for file in (REPOSITORY / "tests").rglob("test_*.py"):
        found |= set(re.findall(r"^(?:    )?def test_(\w+)\(", file.read_text(), re.MULTILINE))
    for file in [*(REPOSITORY / "tests").glob("*.rs"), *(REPOSITORY / "src").rglob("*.rs")]:
        found |= set(re.findall(r"^ *fn (\w+)\(\)", file.read_text(), re.MULTILINE))
    return found


@pytest.mark.parametrize("document", TESTED)
def test_every_test_that_a_table_names_exists(document: str) -> None:
    lines = (DOCS / document).read_text().splitlines()
    named = {name for line in lines if line.startswith("|") for name in NAME.findall(line)}

    assert len(named) > 10, "the tables name no tests any more"
    assert named <= known_tests(), f"no such tests: {sorted(named - known_tests())}"


def test_the_page_of_faults_names_every_row_of_http() -> None:
    text = (DOCS / "faults.md").read_text()
    table = text[text.index("\n## HTTP") : text.index("\n## TLS")]
    named = re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`", table.partition("|---|---|")[2])

    assert sorted(named) == sorted(ALL_ROWS)


def test_the_table_of_serve_names_exactly_the_options_that_it_has() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    serve_options.declare(parser)
    real = {
        option
        for action in parser._actions
        if action.help is not argparse.SUPPRESS
        for option in action.option_strings
        if option.startswith("--")
    }
    text = (DOCS / "serve.md").read_text()
    table = text[text.index("\n## Options") :].split("\n## ")[1]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    stated = set(re.findall(r"--[a-z0-9-]+", " ".join(rows)))

    # A second spelling that gunicorn has may be left to the text.
    assert stated - real == set()
    assert {option for option in real - stated if "_" not in option} == set()


def variables_in(paths: list[Path]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        found |= set(VARIABLE.findall(path.read_text(encoding="utf-8")))
    return found


def test_every_environment_variable_is_listed_and_exists() -> None:
    text = (DOCS / "options.md").read_text()
    table = text[text.index("\n## Environment variables") :]
    listed = set(re.findall(r"^\| `(OSLOXIDE[A-Z_]*)", table, re.MULTILINE))
    sources = tracked(*SOURCES, endings=(".py", ".pyi", ".rs"))
    used = variables_in([*sources, REPOSITORY / "Makefile"])
    single = {name for name in used if not name.startswith("OSLOXIDE_SERVE")}

    assert single - listed == set()
    assert {name for name in listed if not name.endswith("_")} - used == set()


def test_every_path_in_pages_and_comments_exists() -> None:
    missing = []
    for path in [*tracked(*SOURCES, "fuzz"), *tracked("docs", "*.md")]:
        if path.name == "CHANGELOG.md" or path.is_relative_to(REPOSITORY / "tests" / "parity"):
            continue
        named = PATH.findall(path.read_text(encoding="utf-8"))
        missing += [
            f"{path.relative_to(REPOSITORY)}: {place}"
            for place in named
            if not (REPOSITORY / place).exists()
        ]

    assert missing == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))

    assert [target for target in targets if not (page.parent / target).exists()] == []


# ---- words

VAGUE = re.compile(r"\b(nobody|somebody|whoever|shall|anew|meanwhile|whatever)\b", re.IGNORECASE)
MOST_PER_1000_LINES = 2.0


def texts(place: str) -> Iterator[str]:
    for path in tracked(place):
        if path != Path(__file__):
            yield path.read_text(encoding="utf-8")


@pytest.mark.parametrize("place", ["docs", "python", "src", "tests"])
def test_sentences_name_their_subject(place: str) -> None:
    """Words that leave open who acts, or that no manual uses, stay rare."""
    lines = found = 0
    for text in texts(place):
        lines += text.count("\n")
        found += len(VAGUE.findall(text))

    assert found * 1000 / lines < MOST_PER_1000_LINES, f"{found} in {lines} lines"
