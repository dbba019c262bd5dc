"""What the tools of a release decide: rows of docs/pythons.md, licences, tags.

Owns what can be said of tools/pythons.py, tools/wheels.py and tools/backend without building
anything; `make pythons` and `make wheels` do the rest.
"""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import tomllib
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))

import cover  # noqa: E402 - found by the line above
import deb  # noqa: E402
import free_threaded  # noqa: E402
import publishable  # noqa: E402
import pythons  # noqa: E402
import wheels  # noqa: E402

BEFORE = """
| CPython | suite | | counts |
|---|---|---|---|
| 3.12.1 | suites | ok | 444 passed |
| 3.13.0 | suites | ok | 444 passed |
"""


def rows(table: str) -> list[tuple[str, str, str]]:
    """CPython, suite and counts of each row."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    return [(python, suite, counts) for python, suite, _, counts in cells]


@pytest.mark.parametrize("version", ["3.13.15t", "3.13.15 musl"])
def test_rows_of_another_kind_of_build_stand_beside_those_of_the_default_one(version: str) -> None:
    outcome = pythons.Outcome(version, "suites", True, "9 passed", 1.0)

    table = pythons.table([outcome], BEFORE)

    assert rows(table) == [
        ("3.12.1", "suites", "444 passed"),
        ("3.13.0", "suites", "444 passed"),
        (version, "suites", "9 passed"),
    ]


def test_rows_of_a_newer_micro_release_take_the_place_of_the_older_ones() -> None:
    outcome = pythons.Outcome("3.13.9", "suites", False, "8 passed, 1 failed", 1.0)

    table = pythons.table([outcome], BEFORE)

    assert rows(table) == [
        ("3.12.1", "suites", "444 passed"),
        ("3.13.9", "suites", "8 passed, 1 failed"),
    ]
    assert "**failed**" in table


def test_cpythons_are_tested_beside_each_other_and_reported_in_their_order() -> None:
    both = threading.Barrier(2)

    def tests_of(version: str) -> Iterator[pythons.Outcome]:
        both.wait(60)  # for ever, where one begins when the other has ended
        yield pythons.Outcome(version, "python", True, "9 passed", 1.0)

    versions = ["3.14.10", "3.15.2"]

    outcomes = pythons.side_by_side([partial(tests_of, version) for version in versions], 2)

    assert [outcome.python for outcome in outcomes] == versions


@pytest.mark.parametrize("listens", [True, False])
def test_a_suite_that_is_cut_off_is_counted_as_far_as_it_came(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listens: bool
) -> None:
    monkeypatch.setattr(pythons, "SUITE_SECONDS", 0.01)
    monkeypatch.setattr(pythons, "END_SECONDS", 60 if listens else 0.01)
    code = "import signal\nsignal.sigwait({signal.SIGINT})\nprint('1 failed, 8 passed in 9.99s')"
    command = [sys.executable, "-c", code if listens else "import signal; signal.sigwait({1})"]
    python = pythons.Python("cp315", "3.15.2", sys.executable)
    # Kept for the program until it waits for it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        outcome = pythons.run(python, "python", command)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    assert not outcome.passed
    counted = "1 failed, 8 passed, " if listens else ""
    assert outcome.counts == f"{counted}cut off after 0.01 s"


def test_a_file_whose_turn_comes_too_late_is_left_out_of_what_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "test_one.py"
    file.write_text("def test_that_runs(): print('run')")

    assert cover.counts_of(file, time.monotonic() - 1) is None


@pytest.mark.parametrize(
    ("expression", "terms"),
    [
        ("MIT OR Apache-2.0", {"Apache-2.0"}),
        ("MIT/Apache-2.0", {"Apache-2.0"}),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", {"Apache-2.0", "Unicode-3.0"}),
        ("ISC AND (Apache-2.0 OR ISC)", {"ISC", "Apache-2.0"}),
        ("Zlib", {"Zlib"}),
    ],
)
def test_a_licence_expression_is_reduced_to_what_must_be_kept(
    expression: str, terms: set[str]
) -> None:
    assert wheels.chosen(expression) == terms


def backend(call: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """*call* of the back end that pyproject.toml names, as a front end makes it."""
    pytest.importorskip("maturin", reason="maturin builds, and is not installed here")
    text = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    (place,) = text["build-system"]["backend-path"]
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY / place)!r})\n"
        f"import {text['build-system']['build-backend']} as backend\n"
        f"print(backend.{call})"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "call", ["get_requires_for_build_wheel()", "get_requires_for_build_sdist()", "build_wheel('.')"]
)
def test_a_build_without_cargo_ends_at_once_and_says_what_helps(call: str) -> None:
    done = backend(call, PATH="/nonexistent")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("osloxide is built by cargo, which is not on PATH: install Rust")
    assert done.stderr.count("\n") == 1


def test_a_build_without_cargo_fetches_a_rust_toolchain_only_when_it_is_asked_to() -> None:
    done = backend(
        "get_requires_for_build_wheel()", PATH="/nonexistent", MATURIN_NO_INSTALL_RUST=""
    )
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == ["puccinialin"]


def test_a_build_asks_for_nothing_more_where_cargo_is(tmp_path: Path) -> None:
    (tmp_path / "cargo").symlink_to("/bin/true")
    done = backend("get_requires_for_build_wheel()", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == []


@pytest.mark.parametrize(
    ("tag", "version", "held_to"),
    [("cp313", "3.13.9", "=="), ("cp313t", "3.13.9t", "<"), ("cp313", "3.13.9 musl", "<")],
)
def test_an_environment_is_held_to_a_greenlet_that_can_be_used_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: str, version: str, held_to: str
) -> None:
    monkeypatch.setattr(pythons, "CACHE", tmp_path)
    environment = pythons.Environment(pythons.Python(tag, version, sys.executable), tag)

    lines = environment.constraints().read_text(encoding="utf-8").splitlines()

    (greenlet,) = {line for line in lines if re.match(r"greenlet\b", line)}
    assert greenlet.startswith(f"greenlet{held_to}")
    assert any(line.startswith("oslo-service==") for line in lines)


def test_source_packages_are_tried_from_the_newest_version_on() -> None:
    index = "".join(
        f"Package: {package}\nBinary: {package}-dev\nVersion: {version}\n\n"
        for package, version in [
            ("zlib", "1:1.3.dfsg+really1.3.1-1"),
            ("zlib", "1:1.3.dfsg+really1.3.2-4"),
            ("zlib", "1:1.3.dfsg+really1.3.2-4"),
            ("zlib", "1:1.3.dfsg+really1.3.2-10"),
        ]
    )

    assert free_threaded.versions(index) == [
        ("zlib", "1:1.3.dfsg+really1.3.2-10"),
        ("zlib", "1:1.3.dfsg+really1.3.2-4"),
        ("zlib", "1:1.3.dfsg+really1.3.1-1"),
    ]


def test_the_page_names_each_file_of_a_release_with_its_sizes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{wheels.RESULTS}\nold\n{wheels.RESULTS}\nafter\n")
    stem = "osloxide-1.0-cp313-cp313-manylinux_2_17_x86_64"
    with zipfile.ZipFile(tmp_path / f"{stem}.whl", "w") as archive:
        archive.writestr("osloxide/_native.cpython-313-x86_64-linux-gnu.so", b"x" * 1_500_000)
    (tmp_path / "debug").mkdir()
    (tmp_path / "debug" / f"{stem}.debug").write_bytes(b"x" * 2_000_000)
    (tmp_path / "osloxide-1.0.tar.gz").write_bytes(b"x" * 1_000_000)

    wheels.write_page(page, tmp_path)

    text = page.read_text()
    assert f"| `{stem}.whl` | 1.50 MB | 1.50 MB | 2.00 MB |\n" in text
    assert "| `osloxide-1.0.tar.gz` | 1.00 MB |  |  |\n" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text


def test_what_a_release_lacks_is_named_with_the_remedy(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    changes = tmp_path / "CHANGELOG.md"
    (tmp_path / "Cargo.toml").write_text('[package]\nversion = "1.2.0"\n')
    project.write_text("[project]\n[project.urls]\nSource = 'https://example.org/source'\n")
    changes.write_text("# Changelog\n\n## Unreleased\n\n- a change\n\n## 1.1.0 - 2026-01-01\n")

    addresses, dated, unreleased, *files = publishable.missing(tmp_path)

    assert addresses.endswith("enter Homepage, Documentation, Issues, Changelog")
    assert "no dated section 1.2.0" in dated
    assert "changes under *Unreleased*" in unreleased
    assert len(files) == len(publishable.FILES)
    assert all(line.endswith("make release") for line in files)

    urls = "".join(f"{label} = 'https://example.org'\n" for label in publishable.ADDRESSES)
    project.write_text(f"[project]\n[project.urls]\n{urls}")
    changes.write_text("# Changelog\n\n## Unreleased\n\n## 1.2.0 - 2026-02-01\n\n- a change\n")
    (tmp_path / "dist").mkdir()
    tags = "cp313-cp313-manylinux_2_17_x86_64", "cp313-cp313-musllinux_1_2_x86_64"
    for name in [*(f"-{tag}.whl" for tag in tags), ".tar.gz", "+vendored.tar.gz"]:
        (tmp_path / "dist" / f"osloxide-1.2.0{name}").touch()
    assert list(publishable.missing(tmp_path)) == []


def test_a_wheel_is_made_again_when_a_program_of_it_has_changed() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["maturin"]
    assert {settings["data"], settings["python-source"]} <= set(wheels.INPUTS)
    programs = list((REPOSITORY / settings["data"] / "scripts").iterdir())
    assert programs
    assert all(os.access(program, os.X_OK) for program in programs)


def test_cargo_finds_every_file_of_osloxide_newer_than_what_it_compiled_before(
    tmp_path: Path,
) -> None:
    tree = tmp_path / "osloxide-1.2.0"
    files = tree / "src" / "lib.rs", tree / "Cargo.toml", tree / "vendor" / "libc" / "lib.rs"
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (1153704088, 1153704088))  # as maturin's archives have it, whatever changed
    archive = tmp_path / "osloxide_1.2.0.orig.tar.gz"
    with tarfile.open(archive, "w:gz") as out:
        out.add(tree, tree.name)
    work = tmp_path / "sources"
    work.mkdir()
    before = work.stat().st_mtime

    unpacked = deb.unpack(archive, work)

    times = [(unpacked / file.relative_to(tree)).stat().st_mtime for file in files]
    assert times[0] >= before
    assert times[1] >= before
    assert times[2] == 1153704088


@pytest.mark.parametrize(
    ("file", "mode"),
    [
        ("osloxide-1.2.0.data/scripts/osloxide-ready", 0o755),
        ("osloxide/_native.cpython-313-x86_64-linux-musl.so", 0o755),
        ("osloxide/scripts/module.py", 0o644),
        ("osloxide/cli/ready.py", 0o644),
        ("osloxide-1.2.0.dist-info/RECORD", 0o644),
    ],
)
def test_programs_of_a_wheel_may_be_executed_and_nothing_else(file: str, mode: int) -> None:
    assert wheels.mode_of(Path(file)) == mode
