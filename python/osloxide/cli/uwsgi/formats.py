"""uWSGI's configuration files: INI, YAML, JSON and XML become lines of one section.

Owns what a section, a comment, a value and a list are in each format, and the number of the line
that an error names. Knows no option, expands no placeholder and follows no include; that is
osloxide.cli.uwsgi.reader's part.

Rules: uWSGI 2.0's documentation ("Configuring uWSGI"), and its behaviour where that is silent: a
value of an ini file is the rest of its line, semicolons and quotes included, a scalar of YAML may
begin with any character, and JSON's true and false are 1 and 0. No document has code executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from osloxide.cli.errors import CommandError


class Line(NamedTuple):
    """One option as a file has it; *number* is 0 where the format tells no line."""

    number: int
    key: str
    value: str


class Content(NamedTuple):
    """What a file has: the lines of the section that was asked for, and the names of all."""

    lines: list[Line]
    sections: list[str]


_EXTENSIONS = {
    ".ini": "ini", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".js": "json", ".xml": "xml",
}  # fmt: skip


def of_file(path: str) -> str | None:
    """The format that the name of a file tells; None where it tells none."""
    return next((it for end, it in _EXTENSIONS.items() if path.endswith(end)), None)


def read(kind: str, path: str, text: str, section: str) -> Content:
    """Take *text*, the content of *path*, apart.

    :param kind: ``ini``, ``yaml``, ``json`` or ``xml``.
    :raises CommandError: it is not of that format; the error names *path*, and the line if it can.
    """
    return _READERS[kind](path, text, section)


def _ini(path: str, text: str, section: str) -> Content:
    lines: list[Line] = []
    sections: list[str] = []
    # Not splitlines(): a value may hold a form feed.
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line or line[0] in ";#":
            continue
        if line[0] == "[":
            if not line.endswith("]"):
                raise CommandError(f"{path}:{number}: {line} opens no section; write [uwsgi]")
            sections.append(line[1:-1])
        elif sections and sections[-1] == section:
            key, _, value = line.partition("=")
            lines.append(Line(number, key.strip(), value.strip()))
    return Content(lines, sections)


# ---- YAML

_ODD = re.compile(
    r"^([ ]*(?:- +|[\w-]+: +)+)([%@*&!`|>][^'\n]*|\[(?=[0-9a-fA-F]*:)[^'\n]*)$", re.MULTILINE
)
"""What uWSGI takes as it stands and YAML does not: ``%(base)``, ``*:80``, ``@name``, ``[::]:8``."""


def _yaml(path: str, text: str, section: str) -> Content:
    # oslo.config's own parser; costs nothing where no such file is read.
    import yaml

    quoted = _ODD.sub(lambda it: f"{it[1]}'{it[2].rstrip()}'", text)
    try:
        root = yaml.compose(quoted, Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise CommandError(f"{path}: is no YAML: too many levels") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = path if mark is None else f"{path}:{mark.line + 1}"
        problem = getattr(error, "problem", None) or error
        raise CommandError(f"{where}: is no YAML: {problem}") from error
    if root is None:
        return Content([], [])
    if not isinstance(root, yaml.MappingNode):
        raise CommandError(f"{path}:1: has no section; begin with uwsgi: and indent what follows")
    lines: list[Line] = []
    sections = [str(key.value) for key, _ in root.value]
    for key, value in root.value:
        if key.value != section or (isinstance(value, yaml.ScalarNode) and not value.value):
            continue
        if not isinstance(value, yaml.MappingNode):
            raise CommandError(
                f"{path}:{key.start_mark.line + 1}: {section} has no options; write KEY: VALUE "
                "below it"
            )
        for name, node in value.value:
            items = node.value if isinstance(node, yaml.SequenceNode) else [node]
            for item in items:
                number = item.start_mark.line + 1
                if not isinstance(item, yaml.ScalarNode):
                    raise CommandError(
                        f"{path}:{number}: {name.value} has neither a value nor a list"
                    )
                lines.append(Line(number, str(name.value), str(item.value)))
    return Content(lines, sections)


# ---- JSON and XML


def _json(path: str, text: str, section: str) -> Content:
    try:
        root = json.loads(text)
    except (ValueError, RecursionError) as error:
        number = getattr(error, "lineno", 0)
        where = f"{path}:{number}" if number else path
        raise CommandError(f"{where}: is no JSON: {getattr(error, 'msg', error)}") from error
    if not isinstance(root, dict):
        raise CommandError(f'{path}: has no section; write {{"uwsgi": {{...}}}}')
    chosen = root.get(section)
    lines: list[Line] = []
    if chosen is not None and not isinstance(chosen, dict):
        raise CommandError(f'{path}: "{section}" is no object; write {{"{section}": {{...}}}}')
    for name, value in (chosen or {}).items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict | list | float):
                raise CommandError(
                    f"{path}: {name} has neither a string, a whole number, true, false nor a list "
                    "of these"
                )
            lines.append(Line(0, name, item if isinstance(item, str) else str(int(item or 0))))
    return Content(lines, list(root))


def _xml(path: str, text: str, section: str) -> Content:
    """``<uwsgi>`` is the root or below it; ``FILE:SECTION`` chooses the one with that ``id``."""
    from xml.parsers import expat

    lines: list[Line] = []
    sections: list[str] = []
    # Of each open element its name, attributes, line and text.
    opened: list[tuple[str, dict[str, str], int, list[str]]] = []
    parser = expat.ParserCreate()

    def is_chosen() -> bool:
        # Without :SECTION the first one, whatever its id.
        return len(sections) == 1 if section == _SECTION else section in sections[-1:]

    def start(name: str, attributes: dict[str, str]) -> None:
        if name == _SECTION and not any(it[0] == _SECTION for it in opened):
            sections.append(attributes.get("id", _SECTION))
        opened.append((name, attributes, parser.CurrentLineNumber, []))

    def data(words: str) -> None:
        opened[-1][3].append(words)

    def end(name: str) -> None:
        _, attributes, number, words = opened.pop()
        if not opened or opened[-1][0] not in (_SECTION, _APPLICATION) or name == _SECTION:
            return
        if not is_chosen():
            return
        value = "".join(words).strip()
        if opened[-1][0] == _APPLICATION:
            # <app mountpoint="/x"><script>MODULE</script></app>
            prefix = opened[-1][1].get("mountpoint")
            lines.append(Line(number, "mount", f"{prefix}={value}") if prefix
                         else Line(number, "module", value))  # fmt: skip
        elif name != _APPLICATION:
            lines.append(Line(number, name, value or "1"))
        elif value and (prefix := attributes.get("mountpoint")):
            lines.append(Line(number, "mount", f"{prefix}={value}"))

    def refuse(*_words: object) -> None:
        raise CommandError(
            f"{path}:{parser.CurrentLineNumber}: entities are not taken; write them out"
        )

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = data, refuse
    try:
        # As bytes, of which the file itself may tell the encoding.
        parser.Parse(text.encode("utf-8", "surrogateescape"), True)
    except expat.ExpatError as error:
        problem = expat.errors.messages[error.code]
        raise CommandError(f"{path}:{error.lineno}: is no XML: {problem}") from error
    return Content(lines, [_SECTION, *sections] if sections else [])


_SECTION, _APPLICATION = "uwsgi", "app"
_READERS: dict[str, Callable[[str, str, str], Content]] = {
    "ini": _ini, "yaml": _yaml, "json": _json, "xml": _xml,
}  # fmt: skip
