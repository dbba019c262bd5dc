"""Each ini file that a deployment tool writes starts here, unedited, as the tool starts it.

In a sandbox (see README.md): the service answers, reloads, loses a worker and stops.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from deployments.sandboxes import CASES, HERE, needs_root, option, started

pytestmark = [needs_root, pytest.mark.timeout(300)]


def of_file(name: str, directory: Path) -> dict[str, Any]:
    """What the driver saw of a file's service."""
    text = (HERE / "files" / name).read_text()
    return started(CASES[name] | {"stats": "stats =" in text}, text, directory)


def test_every_file_has_a_case() -> None:
    files = {str(path.relative_to(HERE / "files")) for path in (HERE / "files").rglob("*.ini")}

    assert files == set(CASES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_an_unedited_file_starts_answers_reloads_survives_a_kill_and_stops(
    name: str, tmp_path: Path
) -> None:
    text = (HERE / "files" / name).read_text()
    result = of_file(name, tmp_path)
    first, log = result["first"], result["log"] + "".join(it[0] for it in result["files"].values())

    assert first["argv"] == CASES[name].get("argv", ["uwsgi"])
    assert (first["path"], first["query"], len(first["body"])) == ("/a b", "c=d", 100_000)
    assert first["parent"] == result["supervisor"]
    assert first["numproc"] == int(option(text, "processes"))
    assert 1 <= first["worker"] <= first["numproc"]
    assert result["user"] == option(text, "uid", "root")
    assert first["directory"] == option(text, "chdir", "/")
    for assignment in re.findall(r"^env = (.*)$", text, re.MULTILINE):
        variable, _, value = assignment.partition("=")
        assert first["environment"][variable] == value
    assert bool(first["start_time"]) is ("start-time" in text)
    assert first["scheme"] == ("https" if CASES[name]["answers"].startswith("https") else "http")
    assert (result["style"] == "text/css") is ("static-map" in text)
    assert result["traversal"] == "application/json"  # the application's turn
    assert result["after_hup"] == result["after_kill"] == "/"
    assert result["status"] == 0, log
    assert result["left"] >= first["numproc"]  # of the workers that were replaced, and the last
    assert ("GET / HTTP/1.1" in log) is ("disable-logging" not in text)
    assert ("/absent" in log) is ("kube-probe" not in text and "disable-logging" not in text)
    assert "Traceback" not in log
    for path in re.findall(r"^logto2? = (\S+)$", text, re.MULTILINE):
        content, mode, owner = result["files"][path]
        assert "osloxide" in content
        assert owner == (option(text, "uid") if "logto2" in text else "root")
        if "logfile-chmod" in text:
            assert mode == "0o644"
    if result["stats"] is not None:
        assert len(result["stats"]["workers"]) == first["numproc"]
        assert result["stats"]["pid"] == result["supervisor"]
