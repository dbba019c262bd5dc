"""Each command of ``osloxide`` that docs/migrating.md names is run: it serves, reloads or explains.

The applications, files and users that a command names are made below a temporary directory, and
addresses become free ones; nothing else of a command is changed.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _children import environment, run_command
from conftest import wait_until
from support.serving import OSLOXIDE, Running, fetch, starter

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migrating.md"
APPLICATION = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
# Commands of code blocks and tables; an ellipsis stands for words that a reader puts there.
COMMAND = re.compile(r"(?:^    |^Exec\w+=\S*/|`)(osloxide (?:serve|uwsgi) [^`\n]*)", re.MULTILINE)
COMMANDS = sorted(set(COMMAND.findall(PAGE.read_text())))


def test_the_page_has_commands() -> None:
    assert len([it for it in COMMANDS if it.startswith("osloxide serve")]) >= 4
    assert len([it for it in COMMANDS if it.startswith("osloxide uwsgi")]) >= 3


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    with starter(tmp_path) as begin:
        yield begin


def made(words: list[str], root: Path) -> list[str]:
    """*words*, with the files that they name below *root*."""
    found: list[str] = []
    for word in words:
        if found and found[-1] == "--mount":
            found.append(word)
            continue
        before, colon, path = word.rpartition("unix:")
        if colon:
            path = str(root / path.strip("/").replace("/", "_"))
            found.append(f"{before}unix:{path}")
        elif re.fullmatch(r"[\d.]*:\d+", word):
            found.append("127.0.0.1:0")
        elif word.startswith("/"):
            place = root / word.strip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            found.append(str(place))
        else:
            found.append(word)
    return found


def make_application(name: str, root: Path) -> None:
    if name.startswith(str(root)):
        Path(name).write_text("#!/usr/bin/python3\n" + APPLICATION)
        return
    module = root / name.partition(":")[0].replace(".", "/")
    module.parent.mkdir(parents=True, exist_ok=True)
    for parent in module.relative_to(root).parents:
        if parent.name:
            (root / parent / "__init__.py").touch()
    module.with_suffix(".py").write_text(APPLICATION)


@pytest.mark.parametrize("line", [it for it in COMMANDS if it.startswith("osloxide serve")])
def test_each_serve_command_of_the_page_serves_and_stops(
    start: Callable[..., Running], tmp_path: Path, line: str
) -> None:
    words = made(shlex.split(line)[2:], tmp_path)
    options_first = words[0].startswith("-")
    application = words[-1] if options_first else words[0]
    make_application(application, tmp_path)
    site = start("serve", *words, PYTHONPATH=str(tmp_path))

    wait_until(lambda: "listening on" in site.log or site.process.poll() is not None, "listens")
    sockets = [word for word in words if "unix:" in word]
    if sockets:
        wait_until(Path(sockets[0].partition("unix:")[2]).is_socket, "the socket")
        wait_until(lambda: site.workers() != [], "it is shown")
    else:
        mount = words[words.index("--mount") + 1] if "--mount" in words else "/"
        assert fetch(site.port(), mount) == ["ok"]
    assert site.stop() == 0, site.log


@pytest.mark.parametrize("line", [it for it in COMMANDS if it.startswith("osloxide uwsgi")])
def test_each_uwsgi_command_of_the_page_explains_starts_or_reloads(
    start: Callable[..., Running], tmp_path: Path, line: str
) -> None:
    make_application("site_app", tmp_path)
    words = made(shlex.split(line)[2:], tmp_path)
    (ini,) = [word for word in words if word.endswith(".ini")] or [str(tmp_path / "site.ini")]
    (pid_file,) = [word for word in words if word.endswith(".pid")] or [str(tmp_path / "pid")]
    lines = ["[uwsgi]", "http-socket = 127.0.0.1:0", "module = site_app", "master = true"]
    Path(ini).write_text("\n".join([*lines, f"pidfile = {pid_file}", ""]))
    if "--explain" in words:
        shown = run_command([*OSLOXIDE, "uwsgi", *words], environ=environment())
        assert shown.returncode == 0, shown.stderr
        assert "osloxide serve site_app" in shown.stdout
        return
    starts = not {"--reload", "--stop"} & set(words)
    site = start("uwsgi", *(words if starts else ["--ini", ini]), PYTHONPATH=str(tmp_path))
    assert fetch(site.port()) == ["ok"]
    if starts:
        assert site.stop() == 0, site.log
        return
    (before,) = site.running(1)
    done = run_command([*OSLOXIDE, "uwsgi", *words], environ=environment())
    assert done.returncode == 0, done.stderr
    if "--stop" in words:
        assert site.process.wait(60) == 0
        return
    wait_until(lambda: before not in site.running(1), "another worker")
    os.kill(site.pid, signal.SIGTERM)
    assert site.process.wait(60) == 0


def test_the_link_of_the_page_takes_the_command_line_of_uwsgi(tmp_path: Path) -> None:
    targets = set(re.findall(r"ln -s osloxide \S*/(\w+)", PAGE.read_text()))
    assert targets == {"uwsgi"}
    link = tmp_path / targets.pop()
    link.symlink_to(Path(sys.executable).with_name("osloxide"))

    words = [str(link), "--explain", str(tmp_path / "absent.ini")]
    done = run_command(words, environ=environment())

    assert done.returncode != 0
    assert "absent.ini" in done.stderr
