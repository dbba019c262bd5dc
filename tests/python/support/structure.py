"""The imports that exist, read from the source text: which room uses which, and which file which.

Owns the reading of Python's ``import`` statements (with ``ast``) and of Rust's paths (``crate::``
and ``super::``). Runs nothing of what it reads. Imports for type checkers alone (``TYPE_CHECKING``)
and Rust's ``#[cfg(test)]`` modules do not count.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
PACKAGE = REPOSITORY / "python" / "osloxide"
CRATE = REPOSITORY / "src"

Graph = dict[str, set[str]]

# ---- Python


def python_files() -> dict[str, Path]:
    """Module name -> file, of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path
    return found


def python_graph() -> Graph:
    """Module -> the modules of the package that it imports, anywhere in its text."""
    files = python_files()
    graph: Graph = {name: set() for name in files}
    for name, path in files.items():
        for imported in _imports_of(ast.parse(path.read_text(encoding="utf-8"))):
            target = _longest(imported, files)
            if target is not None and target != name:
                graph[name].add(target)
    return graph


def _imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from _imports_of(other)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imports_of(node)


def _longest(imported: str, files: Mapping[str, Path]) -> str | None:
    """The module that an imported name lies in: ``osloxide.a.b.Class`` -> ``osloxide.a.b``."""
    parts = imported.split(".")
    if parts[0] != "osloxide":
        return None
    if imported == "osloxide._native" or imported.startswith("osloxide._native."):
        return None
    while parts and ".".join(parts) not in files:
        parts.pop()
    return ".".join(parts) or None


def python_room(module: str) -> str:
    """The room of a module: its folder, or its own name at the top of the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "osloxide"


# ---- Rust

_TEST_MODULE = re.compile(r"#\[cfg\(test\)\]\s*mod \w+ \{")
_PATH = re.compile(r"\b(crate|super(?:::super)*)::((?:\w+::)*)(\{|\w+)")


def rust_files() -> dict[str, Path]:
    """Module path -> file: ``server::reactor`` -> ``src/server/reactor/mod.rs``."""
    found = {}
    for path in sorted(CRATE.rglob("*.rs")):
        parts = path.relative_to(CRATE).with_suffix("").parts
        if parts[-1] == "tests":
            continue
        name = "::".join(parts[:-1] if parts[-1] in ("mod", "lib") else parts)
        found[name] = path
    return found


def rust_graph() -> Graph:
    """Module -> the modules of the crate that it names, without those above and below itself.

    A folder's ``mod.rs`` and the files beside it are one module tree: what they share by
    ``super::`` is no arrow between files."""
    files = rust_files()
    graph: Graph = {name: set() for name in files}
    for name, path in files.items():
        for target in _paths_of(_without_tests(path.read_text(encoding="utf-8")), name, files):
            if target and not _related(name, target):
                graph[name].add(target)
    return graph


def _without_tests(text: str) -> str:
    text = re.sub(r"//[^\n]*", "", text)
    found = _TEST_MODULE.search(text)
    return text if found is None else text[: found.start()]


def _paths_of(text: str, module: str, files: Mapping[str, Path]) -> Iterator[str]:
    own = module.split("::") if module else []
    for found in _PATH.finditer(text):
        base = [] if found[1] == "crate" else own[: len(own) - found[1].count("super")]
        middle = [part for part in found[2].split("::") if part]
        leaves = [found[3]]
        if found[3] == "{":
            inside = text[found.end() : text.find("}", found.end())]
            leaves = re.findall(r"(?:^|,|\{)\s*(\w+)", inside)
        for leaf in leaves:
            parts = [*base, *middle, leaf]
            while parts and "::".join(parts) not in files:
                parts.pop()
            yield "::".join(parts)


def _related(one: str, other: str) -> bool:
    return one == other or other.startswith(one + "::") or one.startswith(other + "::") or not one


def rust_room(module: str) -> str:
    return module.partition("::")[0] or "lib"


# ---- both


def rooms(graph: Graph, room_of: object) -> Graph:
    """The arrows between rooms that the arrows between files add up to."""
    assert callable(room_of)
    found: Graph = defaultdict(set)
    for source, targets in graph.items():
        room = room_of(source)
        found[room] |= {room_of(target) for target in targets} - {room}
    return dict(found)


def circles(graph: Graph) -> list[list[str]]:
    """Strongly connected sets of more than one node, smallest names first (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            members = []
            while True:
                members.append(stack.pop())
                if members[-1] == node:
                    break
            if len(members) > 1:
                found.append(sorted(members))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(found)


def arrows(graph: Graph) -> Iterable[str]:
    """Each arrow as ``from -> to``, sorted."""
    return sorted(f"{source} -> {target}" for source in graph for target in graph[source])
