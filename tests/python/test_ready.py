"""``osloxide-ready``: says yes by itself where it can, and leaves all else to the command."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _children import run_command
from conftest import wait_until
from support.serving import Running, starter

from osloxide.cli import ready
from osloxide.launch import launcher_index

PROGRAM = Path(__file__).parents[2] / "data" / "scripts" / "osloxide-ready"
ASKED = 7
"""Exit status of what stands for the command."""


@pytest.fixture
def probe(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run the program beside a command that tells how it was called."""
    directory = tmp_path / "a bin"
    directory.mkdir()
    program = directory / PROGRAM.name
    program.write_text(PROGRAM.read_text())
    program.chmod(0o755)
    command = directory / "osloxide"
    command.write_text(f'#!/bin/sh\nprintf "<%s>" "$@"\nexit {ASKED}\n')
    command.chmod(0o755)

    def run(*arguments: str) -> tuple[int, str]:
        done = run_command([str(program), *arguments])
        assert done.stderr == ""
        return done.returncode, done.stdout

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "late.py").write_text(
        "import os, time\nwhile not os.path.exists('gate'):\n    time.sleep(0.01)\n"
        "def application(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Length', '0')])\n    return []\n"
    )
    with starter(tmp_path) as started:
        yield started


def serve(start: Callable[..., Running], name: str, *options: str) -> Running:
    return start("serve", "late", "--bind", "127.0.0.1:0", "--name", name, *options)


@pytest.mark.parametrize("options", [["-w", "3"], ["--master"], []])
def test_a_launcher_that_is_ready_is_told_without_the_command(
    start: Callable[..., Running],
    probe: Callable[..., tuple[int, str]],
    tmp_path: Path,
    options: list[str],
) -> None:
    name = f"ready-{os.getpid()}"
    asked = (ASKED, f"<status><--ready><{name}>")
    assert probe(name) == asked  # nothing is called so
    site = serve(start, name, *options)
    wait_until(lambda: ready._boards(name) != {}, "the launcher")
    assert probe(name) == asked  # it still loads the application
    (tmp_path / "gate").touch()

    wait_until(lambda: ready.main([name]) == 0, "every worker is ready")
    assert probe(name) == (0, "")
    assert site.stop() == 0, site.log
    assert probe(name) == asked


def test_an_entry_for_a_launcher_of_another_name_is_not_believed(
    start: Callable[..., Running], probe: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "gate").touch()
    shorter = f"ready-{os.getpid()}"
    name = f"{shorter}-and-more"
    site = serve(start, name)
    wait_until(lambda: probe(name) == (0, ""), "it is ready")
    directory = Path(os.fsdecode(launcher_index._directory()))
    (entry,) = directory.glob(f"{site.pid}.*")
    assert probe(shorter)[0] == ASKED
    for other in (shorter, f"{name}-x"):
        forged = directory / entry.name.replace(name, other)
        forged.touch()
        try:
            assert probe(other)[0] == ASKED
        finally:
            forged.unlink()
    assert probe(name) == (0, "")
    assert site.stop() == 0, site.log


@pytest.mark.parametrize(
    "arguments",
    [[], [""], ["1234"], ["--print", "x"], ["-h"], ["a b"], ["*"], ["a/b"], ["x" * 129], ["é"]],
)
def test_what_it_does_not_look_for_itself_goes_to_the_command_as_it_is(
    probe: Callable[..., tuple[int, str]], arguments: list[str]
) -> None:
    told = "".join(f"<{word}>" for word in ["status", "--ready", *arguments])
    assert probe(*arguments) == (ASKED, told)


def test_an_entry_that_names_a_pipe_is_not_waited_for(
    probe: Callable[..., tuple[int, str]],
) -> None:
    name = f"pipe-{os.getpid()}"
    directory = launcher_index._directory()
    sleeper = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    entry = Path(os.fsdecode(directory + b"/" + launcher_index.entry(sleeper.pid, 0, name)))
    try:
        entry.touch()
        assert probe(name)[0] == ASKED
    finally:
        entry.unlink(missing_ok=True)
        sleeper.communicate()


def test_by_a_link_in_another_directory_it_finds_the_command_in_path(
    probe: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "links" / PROGRAM.name
    link.parent.mkdir()
    link.symlink_to(PROGRAM)
    monkeypatch.setenv("PATH", f"{tmp_path / 'a bin'}:{os.environ['PATH']}")
    done = subprocess.run([str(link), "1234"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (ASKED, "<status><--ready><1234>"), done.stderr


@pytest.mark.parametrize("name", ["nova-api", "a b", "it's"])
def test_the_printed_probe_is_a_command_line_for_a_shell(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sys, "executable", "/srv/an environment/bin/python")
    assert ready.main(["--print", name]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words == ready.command(name)
    assert words[0] == sys.executable
    assert words[-1] == name
