"""Collects what the sources of real services use of eventlet, as ``uses.json``.

Run by hand over the site-packages of services:
``python collect.py NAME=DIRECTORY[:PACKAGE,...] ... > uses.json``. What an earlier file has of
other names is kept, and tests of the services are left out. Owns the reading of names and keyword
arguments in source that is not imported; test_green_uses.py holds them against what is served.

Rules: ast (Library Reference).
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOTS = ("eventlet", "greenlet")


def aliases(tree: ast.AST) -> dict[str, str]:
    """Local names of a module that stand for something of eventlet, each with its dotted name."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in ROOTS:
                    root = alias.name.partition(".")[0]
                    known[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom):
            place = node.module or ""
            if node.level == 0 and place.partition(".")[0] in ROOTS:
                for alias in node.names:
                    known[alias.asname or alias.name] = f"{place}.{alias.name}"
    return known


def dotted(node: ast.expr, known: dict[str, str]) -> str:
    """The dotted name of eventlet that *node* stands for, or ``""``."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in known:
        return ""
    return ".".join([known[node.id], *reversed(parts)])


def uses(text: str) -> tuple[set[str], dict[str, set[str]]]:
    """Names, and keyword arguments of calls by name, in one source."""
    tree = ast.parse(text)
    known = aliases(tree)
    names = {name for name in known.values() if not name.endswith(".*")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names if a.name.partition(".")[0] in ROOTS}
    calls: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        loads = isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Store)
        if isinstance(node, ast.Attribute) and loads and (name := dotted(node, known)):
            names.add(name)
        elif isinstance(node, ast.Call) and (name := dotted(node.func, known)):
            calls.setdefault(name, set()).update(k.arg for k in node.keywords if k.arg)
    return names, {name: keywords for name, keywords in calls.items() if keywords}


def main() -> None:
    """Read what the arguments name and print the file."""
    path = HERE / "uses.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for argument in sys.argv[1:]:
        release, _, place = argument.partition("=")
        directory, _, packages = place.partition(":")
        names: set[str] = set()
        calls: dict[str, set[str]] = {}
        for package in packages.split(",") if packages else [""]:
            for source in sorted(Path(directory, package).rglob("*.py")):
                if "tests" in source.parts:
                    continue
                text = source.read_text(errors="replace")
                if not any(root in text for root in ROOTS):
                    continue
                try:
                    some, called = uses(text)
                except SyntaxError:
                    continue
                names |= some
                for name, keywords in called.items():
                    calls.setdefault(name, set()).update(keywords)
        if not names:
            continue
        found[release] = {
            "names": sorted(names), "keywords": {n: sorted(k) for n, k in sorted(calls.items())}
        }  # fmt: skip
    print(json.dumps(dict(sorted(found.items())), indent=1))


if __name__ == "__main__":
    main()
