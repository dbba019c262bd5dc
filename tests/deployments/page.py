"""What docs/deployments.md tells to do: the commands, images and units of each of its sections.

Owns the reading of the page and how systemd puts a unit and its drop-ins together. Starts nothing.

Rules: systemd.unit(5) for drop-ins and empty assignments, systemd.service(5), systemd.socket(5).
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "deployments.md"
UNITS = Path(__file__).with_name("units")
"""Units as the tools write them."""

Unit = dict[str, list[str]]
"""Values of a unit's settings, by section and name: ``Service.ExecStart``."""


@dataclass
class Section:
    """What a section tells to do.

    :ivar bins: directories that ``pip install osloxide``, or the Debian package, fills.
    :ivar shell: commands to run after that.
    :ivar starts: the command line of a container, where there is one.
    :ivar units: text of each unit or drop-in, by its path.
    """

    bins: list[str] = field(default_factory=list)
    shell: list[str] = field(default_factory=list)
    starts: str = ""
    units: dict[str, str] = field(default_factory=dict)


def sections() -> dict[str, Section]:
    """The sections of the page by their titles."""
    found = {}
    for part in PAGE.read_text().split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        section = found[title] = Section()
        for language, block in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
            if language == "ini":
                path = re.match(r"# (/\S+)\n", block)
                assert path is not None, f"{title}: a unit without its path"
                section.units[path[1]] = block
                continue
            for line in block.splitlines():
                _take(section, line.removeprefix("RUN "))
    return found


def _take(section: Section, line: str) -> None:
    words = shlex.split(line)
    if words[0].endswith("pip"):
        assert words[1:] == ["install", "osloxide"], line
        section.bins.append(words[0].rpartition("/")[0] or "/usr/bin")
    elif words[0] == "apt-get":
        assert words[1:] == ["install", "./python3-osloxide_*.deb"], line
        section.bins.append("/usr/bin")
    elif words[0] == "ln":
        section.shell.append(line)
    elif words[0] not in ("systemctl", "ARG", "FROM", "USER"):
        section.starts = line


def unit_of(texts: list[str]) -> Unit:
    """A unit with its drop-ins: what comes later is added, an empty value takes all away."""
    unit: Unit = {}
    for text in texts:
        part = ""
        for line in text.splitlines():
            if line.startswith("["):
                part = line.strip("[]")
            elif line and not line.startswith("#"):
                name, _, value = line.partition("=")
                values = unit.setdefault(f"{part}.{name}", [])
                values.append(value)
                if not value:
                    values.clear()
    return unit


def service(section: Section, name: str) -> tuple[Unit, list[str]]:
    """The unit *name* as the tool wrote it and the page amends it; and the texts of both."""
    own = UNITS / name
    texts = [own.read_text()] if own.exists() else []
    texts += [text for path, text in section.units.items() if f"/{name}" in path]
    return unit_of(texts), texts
