"""What imported modules use of eventlet: read from their source, not by running it.

Owns the search for ``eventlet.a.b`` and ``from eventlet.a import b`` in the syntax trees of modules
that are loaded, and the comparison with what osloxide serves. Names that are made up at run time
are not seen. Rules: ast.
"""

from __future__ import annotations

import ast
import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

_OURS = ("osloxide", "eventlet", "greenlet", "encodings", "importlib")


def of(modules: Mapping[str, ModuleType]) -> dict[str, set[str]]:
    """Dotted names of eventlet that the source of *modules* uses, each with those that do."""
    uses: dict[str, set[str]] = {}
    for name, module in list(modules.items()):
        path = getattr(module, "__file__", None)
        if not path or not path.endswith(".py") or name.partition(".")[0] in _OURS:
            continue
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
            if "eventlet" not in text:
                continue
            tree = ast.parse(text)
        except (OSError, SyntaxError, ValueError):
            continue
        for used in in_tree(tree):
            uses.setdefault(used, set()).add(name)
    return uses


def in_tree(tree: ast.AST) -> set[str]:
    """The names of eventlet in one module, under whatever names it has imported them."""
    known: dict[str, str] = {}
    found: set[str] = set()
    guarded = {id(inner) for node in ast.walk(tree) if _is_guard(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "eventlet":
                    known[alias.asname or "eventlet"] = alias.name if alias.asname else "eventlet"
                    if id(node) not in guarded:
                        found.add(alias.name)
        elif isinstance(node, ast.ImportFrom):
            place = node.module or ""
            if node.level == 0 and place.partition(".")[0] == "eventlet":
                for alias in node.names:
                    known[alias.asname or alias.name] = f"{place}.{alias.name}"
                    if alias.name != "*" and id(node) not in guarded:
                        found.add(f"{place}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in guarded:
            dotted = _dotted(node)
            root, _, rest = dotted.partition(".")
            if root in known and rest:
                found.add(f"{known[root]}.{rest}")
    return found


def _is_guard(node: ast.AST) -> bool:
    """Whether *node* is a ``try`` that provides for the import failing."""
    if not isinstance(node, ast.Try):
        return False
    caught = {
        name.id
        for handler in node.handlers
        if handler.type is not None
        for name in ast.walk(handler.type)
        if isinstance(name, ast.Name)
    }
    return bool(caught & {"ImportError", "ModuleNotFoundError", "AttributeError"}) or any(
        handler.type is None for handler in node.handlers
    )


def _dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([node.id, *reversed(parts)])


def missing(names: Mapping[str, object]) -> list[str]:
    """Those of *names* that are not there when they are reached.

    Only modules and their attributes are looked at: what instances have depends on the run.
    """
    return sorted(name for name in names if not _exists(name))


def _exists(dotted: str) -> bool:
    parts = dotted.split(".")
    try:
        found: object = importlib.import_module(parts[0])
    except ImportError:
        return False
    for index, part in enumerate(parts[1:], 1):
        if not isinstance(found, type(sys)):
            return True  # an attribute of an object
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(parts[: index + 1]))
            except ImportError:
                return False
            if not hasattr(found, part):
                return False
        found = getattr(found, part)
    return True
