"""docs/architecture.md agrees with the imports that exist, in Python and in Rust."""

from __future__ import annotations

import ast
import re

import pytest
from support import structure

PAGE = structure.REPOSITORY / "docs" / "architecture.md"


def stated(section: str) -> structure.Graph:
    """The table below the heading *section*: room -> the rooms that it says it uses."""
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index(f"\n## {section}") :].split("\n## ")[1]
    found: structure.Graph = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `"):
            room = re.sub(r"/$|\.py$", "", cells[0].strip("`"))
            found[room] = {name.strip() for name in cells[1].split(",") if name.strip()}
    assert found, f"no table below {section!r}"
    if "__init__" in found:
        found["osloxide"] = found.pop("__init__")
    return found


@pytest.mark.parametrize(
    ("section", "graph", "room_of"),
    [
        ("Python", structure.python_graph(), structure.python_room),
        ("Rust", structure.rust_graph(), structure.rust_room),
    ],
    ids=["python", "rust"],
)
class TestRooms:
    def test_the_table_states_the_imports_that_exist(
        self, section: str, graph: structure.Graph, room_of: object
    ) -> None:
        real = structure.rooms(graph, room_of)
        real.pop("lib", None)

        assert sorted(structure.arrows(stated(section))) == sorted(structure.arrows(real))
        assert sorted(stated(section)) == sorted(real)

    def test_no_rooms_and_no_files_import_each_other_in_a_circle(
        self, section: str, graph: structure.Graph, room_of: object
    ) -> None:
        assert structure.circles(structure.rooms(graph, room_of)) == []
        assert structure.circles(graph) == []


def test_no_room_imports_a_private_name_of_another() -> None:
    found = []
    for module, path in structure.python_files().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            if not (node.module or "").startswith("osloxide"):
                continue
            for alias in node.names:
                place = f"{node.module}.{alias.name}"
                private = any(
                    part.startswith("_") and part not in ("_native", "_typing")
                    for part in place.split(".")
                )
                if private and structure.python_room(place) != structure.python_room(module):
                    found.append(f"{module} imports {place}")

    assert found == []


def test_circles_are_found() -> None:
    """The check itself: a circle of three is found, a diamond is none."""
    circle = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    diamond = {"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}

    assert structure.circles(circle) == [["a", "b", "c"]]
    assert structure.circles(diamond) == []


WALL_CLOCK = re.compile(r"\btime\.time(_ns)?\(|datetime|CLOCK_REALTIME|SystemTime|UNIX_EPOCH")


@pytest.mark.parametrize(
    ("root", "rooms"),
    [
        ("python/osloxide", ["launch", "signals", "threads"]),
        ("src", ["supervisor", "worker", "scoreboard", "pool", "executor", "signals", "handlers"]),
    ],
)
def test_nothing_that_decides_about_processes_reads_the_wall_clock(
    root: str, rooms: list[str]
) -> None:
    """It jumps: deadlines, back-offs and ages would move with it."""
    found = []
    for room in rooms:
        path = structure.REPOSITORY / root / room
        files = list(path.rglob("*.py")) + list(path.rglob("*.rs")) or [path.with_suffix(".rs")]
        for file in files:
            text = file.read_text(encoding="utf-8")
            found += [f"{file.name}: {hit.group()}" for hit in WALL_CLOCK.finditer(text)]

    assert found == []


def test_objects_of_the_application_are_remembered_by_identity() -> None:
    """Their classes may define equality, with no hash: they would be refused, or taken for one."""
    found = []
    for module, path in structure.python_files().items():
        if module != "osloxide.threads.identity":
            text = path.read_text(encoding="utf-8")
            found += [f"{module}: {hit}" for hit in re.findall(r"Weak(?:Set|KeyDict\w*)", text)]

    assert found == []


def test_no_thread_waits_for_another_to_make_an_object() -> None:
    """The child of a program that forks meanwhile has the one that waits, and not the other."""
    waiting = re.compile(r"PyOnceLock|GILOnceCell|pyo3::intern|prelude::intern|sync::Interned")
    found = []
    for path in (structure.REPOSITORY / "src/python").rglob("*.rs"):
        if path.name != "kept.rs":
            found += [f"{path.name}: {hit}" for hit in waiting.findall(path.read_text())]

    assert found == []
