"""Each section of docs/deployments.md is done as it says, in a sandbox: see README.md.

The test stands in for the package index (``pip install osloxide`` makes the command of the build
under test) and for systemd (environment, user, sockets, protocol of notification and watchdog).
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from deployments.page import Section, Unit, sections, service
from deployments.sandboxes import CASES, HERE, needs_root, started

pytestmark = [needs_root, pytest.mark.timeout(300)]

SECTIONS = sections()
# What the test has to know of a section: the file that its tool wrote, and its unit.
FILES = {
    "kolla-ansible": ("kolla-ansible/nova-api-uwsgi.ini", ""),
    "openstack-ansible": (
        "openstack-ansible/nova-api-os-compute.ini", "nova-api-os-compute.service"
    ),
    "openstack-helm": ("openstack-helm/neutron-api-uwsgi.ini", ""),
    "devstack": ("devstack/nova-api-uwsgi.ini", "devstack@n-api.service"),
    "Debian": ("debian/nova-api-uwsgi.ini", "nova-api.service"),
    "A unit of your own": ("", "placement-api.service"),
}  # fmt: skip
_WATCHDOG = 2.0
"""Seconds that stand for the page's WatchdogSec."""
OWN = """[uwsgi]
uid = placement
module = placement.wsgi.api:application
processes = 2
"""


def started_as_told(title: str, directory: Path) -> tuple[dict[str, Any], Unit]:
    """What the driver saw of the section's service, and the unit, which may be empty."""
    section, (name, unit_name) = SECTIONS[title], FILES[title]
    bins = section.bins
    start: dict[str, Any] = {"shell": section.shell}
    case: dict[str, Any] = {"path": "/etc/own.ini", "arguments": [], "answers": ""}
    text = OWN
    if name:
        case, text = dict(CASES[name]), (HERE / "files" / name).read_text()
    unit: Unit = {}
    if unit_name:
        unit, _ = service(section, unit_name)
        bins = [*bins, shlex.split(unit["Service.ExecStart"][-1])[0].rpartition("/")[0]]
        start |= as_systemd(unit)
        start["units"] = {f"/etc/systemd/system/{unit_name}": as_text(unit), **sockets(section)}
        listens = [it for text in sockets(section).values()
                   for it in re.findall(r"^ListenStream=(\S+)$", text, re.MULTILINE)]  # fmt: skip
        start["listens"] = listens
        if not name:
            case["answers"] = f"http://{listens[0]}"
    else:
        start |= {"words": ["bash", "-c", section.starts], "is_process_1": True, "notifies": False}
        start["environment"] = {"PATH": f"{section.bins[0]}:/usr/bin:/bin"}
    start["bins"] = sorted(set(bins))
    return started(case | {"start": start}, text, directory), unit


def as_systemd(unit: Unit) -> dict[str, Any]:
    (command,) = unit["Service.ExecStart"]
    assert unit["Service.Type"][-1] == "notify"
    return {
        "words": shlex.split(command),
        "reload": [shlex.split(it) for it in unit["Service.ExecReload"]],
        "environment": dict(it.split("=", 1) for it in unit.get("Service.Environment", [])),
        "user": unit.get("Service.User", [""])[-1],
        "kill_signal": unit.get("Service.KillSignal", ["TERM"])[-1].removeprefix("SIG"),
        "notifies": True,
        "watchdog": _WATCHDOG if "Service.WatchdogSec" in unit else 0,
    }


def as_text(unit: Unit) -> str:
    parts: dict[str, list[str]] = {}
    for name, values in unit.items():
        part, _, key = name.partition(".")
        parts.setdefault(part, []).extend(f"{key}={value}" for value in values)
    return "\n\n".join("\n".join([f"[{part}]", *lines]) for part, lines in parts.items()) + "\n"


def sockets(section: Section) -> dict[str, str]:
    return {path: text for path, text in section.units.items() if path.endswith(".socket")}


def test_every_tool_has_a_section() -> None:
    assert set(SECTIONS) == set(FILES)


@pytest.mark.parametrize("title", sorted(FILES))
def test_what_a_section_tells_to_do_starts_answers_reloads_survives_a_kill_and_stops(
    title: str, tmp_path: Path
) -> None:
    result, unit = started_as_told(title, tmp_path)
    first, log = result["first"], result["log"] + "".join(it[0] for it in result["files"].values())

    assert (first["path"], first["query"], len(first["body"])) == ("/a b", "c=d", 100_000)
    assert first["parent"] == result["supervisor"]
    assert result["after_hup"] == result["after_kill"] == "/"
    assert result["status"] == 0, log
    assert "Traceback" not in log
    if not unit:
        assert result["supervisor"] == 1
        return
    assert result["ready"], result["heard"]
    assert result["heard"].count("RELOADING=1") == 1
    assert "STOPPING=1" in result["heard"]
    assert ("WATCHDOG=1" in result["heard"]) is ("Service.WatchdogSec" in unit)
    assert result["verified"] == ""
    # What stops it waits for longer than requests may run.
    grace = re.search(r"worker-reload-mercy = (\d+)", (HERE / "files" / FILES[title][0]).read_text()
                      if FILES[title][0] else "")  # fmt: skip
    assert int(unit["Service.TimeoutStopSec"][-1]) > int(grace[1] if grace else 60)
