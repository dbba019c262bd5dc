"""Pages that quote the code, or are made from it, say what the code says.

Owns the comparison of docs/troubleshooting.md with the sources, and of the pages that
tools/reference.py makes with the parsers, option lists and metrics. Never builds the site: `make
site` does.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from osloxide.cli import SUBCOMMANDS
from osloxide.launch import configuration

REPOSITORY = Path(__file__).resolve().parents[2]


def texts_of_python(path: Path) -> Iterator[str]:
    """Every string of a module, adjacent pieces joined; what an f-string inserts becomes ``%s``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "%s" for part in node.values
            )


def texts() -> str:
    found: list[str] = []
    for path in (REPOSITORY / "python").rglob("*.py"):
        found += texts_of_python(path)
    for path in (REPOSITORY / "src").rglob("*.rs"):
        # A backslash at the end of a line joins it with the next one.
        found.append(re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8")))
    return "\n".join(found)


def test_every_line_that_troubleshooting_quotes_is_in_the_code() -> None:
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    code = texts()

    assert len(quoted) > 15
    assert [line for line in quoted if line not in code] == []


def test_an_option_keeps_both_of_its_dashes_on_the_site() -> None:
    tree = ast.parse((REPOSITORY / "docs" / "conf.py").read_text(encoding="utf-8"))
    settings = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert ast.literal_eval(settings["smartquotes"]) is False


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages as they are made now, by name."""
    directory = tmp_path_factory.mktemp("reference")
    command = [sys.executable, str(REPOSITORY / "tools" / "reference.py"), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return {path.stem: path.read_text(encoding="utf-8") for path in directory.iterdir()}


def test_the_page_of_commands_has_each_option_of_each_command(pages: dict[str, str]) -> None:
    missing = []
    for name in SUBCOMMANDS:
        section = pages["commands"].partition(f"\n## osloxide {name}\n")[2].partition("\n## ")[0]
        assert section, f"no section for {name}"
        if name == "uwsgi":
            continue  # its options are uWSGI's, and have a page of their own
        parser = argparse.ArgumentParser()
        import_module(f"osloxide.cli.{name}").add_arguments(parser)
        missing += [
            f"{name} {option}"
            for action in parser._actions
            if action.help is not argparse.SUPPRESS
            for option in action.option_strings
            if option not in section
        ]

    assert missing == []


def test_the_page_of_metrics_has_each_metric_that_operating_explains(
    pages: dict[str, str],
) -> None:
    page = (REPOSITORY / "docs" / "operating.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(osloxide_\w+)` \|", page, re.MULTILINE))
    made = set(re.findall(r"^\| `(osloxide_\w+)` \|", pages["metrics"], re.MULTILINE))

    assert len(explained) > 10
    assert explained - made == set()


def test_the_configuration_generator_finds_the_options_of_osloxide(pages: dict[str, str]) -> None:
    assert [(group, [option.name for option in options])
            for group, options in configuration.list_opts()] == [
        ("osloxide", [option.name for option in configuration.OPTIONS])
    ]  # fmt: skip
    assert configuration.list_opts()[0][1][0] is not configuration.OPTIONS[0], "must be a copy"
    for option in configuration.OPTIONS:
        assert f"| `osloxide` | `{option.name}` |" in pages["configuration"]


def test_the_page_of_names_has_signatures_and_what_they_do(pages: dict[str, str]) -> None:
    for name in ("class ProcessLauncher(", "def launch(", "class Server(", "def install("):
        assert name in pages["names"]
