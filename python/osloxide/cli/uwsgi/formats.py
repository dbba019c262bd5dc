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
from collections.abc import Callable, Container
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
    content = _READERS[kind](path, text, section)
    for line in content.lines:
        where = f"{path}:{line.number}" if line.number else path
        # Escapes of JSON and YAML can write what neither a file name nor an argument may hold.
        for words in (line.key, line.value):
            if "\0" in words:
                raise CommandError(f"{where}: {line.key!r} holds a NUL byte, so it is no text")
            try:
                words.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as error:
                raise CommandError(
                    f"{where}: {line.key!r} holds half a character, {error.object[error.start]!a}"
                ) from error
    return content


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

_VALUE = re.compile(
    r"^([ ]*(?:- +|(?:[\w-]+|'[^']*'|\"[^\"]*\") *: +)+)([%@*&!`\[].*?)(?:[ \t]+#.*|\s*)$"
)
"""A line of a mapping or a list: what is before a scalar, and the scalar without its remark."""
_BLOCK = re.compile(r"^([ ]*)(?:.*[\s])?[|>](?:[+-]?\d?|\d[+-])[ \t]*(?:[ \t]#.*)?$")
"""A line below which a block scalar is, as far as lines are indented deeper (YAML 1.2, 8.1)."""
_ANCHOR = re.compile(r"(?:^|[\s\[{,])&([^\s\[\]{},]+)")


_ADDRESS = re.compile(r"\[[0-9a-fA-F]*:[0-9a-fA-F.]*:[0-9a-fA-F:.]*\](?::\S*)?")
"""An address of IPv6, which is no list."""
_PROPERTY = re.compile(r"(?:&[^\s\[\]{},]+|!![a-z]+)(?:\s|$)")
"""An anchor, or a tag of YAML's own."""


def _is_odd(scalar: str, anchors: Container[str], chosen: bool) -> bool:
    """Whether uWSGI takes it as it stands and YAML does not: ``%(base)``, ``*:80``, ``@name``,
    ``[::]:8``. A tag of others, such as ``!name``, is taken so in the chosen section alone."""
    if scalar[0] == "[":
        return _ADDRESS.fullmatch(scalar) is not None
    if scalar[0] == "*":
        return scalar[1:] not in anchors
    if scalar[0] == "!" and not chosen:
        return False
    return _PROPERTY.match(scalar) is None


def _quoted(text: str, section: str) -> str:
    """*text* with quotes around what is odd. What is valid YAML stays, also of other programs."""
    anchors = set(_ANCHOR.findall(text))
    opening = re.compile(rf"(?P<quote>['\"]?){re.escape(section)}(?P=quote)[ \t]*:(?:\s|$)")
    lines = text.split("\n")
    outermost: int | None = None
    block: int | None = None
    chosen = False
    for number, line in enumerate(lines):
        content = line.lstrip(" ")
        indent = len(line) - len(content)
        if not content.strip() or (block is not None and indent > block):
            continue
        block = None
        if content[0] == "#" or line.startswith(("---", "...", "%")):
            continue
        outermost = indent if outermost is None else outermost
        if indent <= outermost:
            chosen = opening.match(content) is not None
        if (found := _BLOCK.match(line)) is not None:
            block = len(found[1])
        elif (found := _VALUE.match(line)) is not None and _is_odd(found[2], anchors, chosen):
            scalar = found[2].replace("'", "''")
            lines[number] = f"{found[1]}'{scalar}'"
    return "\n".join(lines)


def _yaml(path: str, text: str, section: str) -> Content:
    # oslo.config's own parser; costs nothing where no such file is read.
    import yaml

    try:
        root = yaml.compose(_quoted(text, section), Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise CommandError(f"{path}: is no YAML: too many levels") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = path if mark is None else f"{path}:{mark.line + 1}"
        problem = getattr(error, "problem", None) or error
        raise CommandError(f"{where}: is no YAML: {problem}") from error
    except (ValueError, OverflowError) as error:
        # An escape such as "\\UFFFFFFFF", or a version of more digits than int() takes.
        raise CommandError(f"{path}: is no YAML: {error}") from error
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
                # A block scalar ends with a line feed, which no option means.
                lines.append(Line(number, str(name.value), str(item.value).rstrip("\n")))
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
        # Without :SECTION the first one counts, with any id.
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
    except (LookupError, ValueError) as error:
        # The declaration names an encoding that Python does not know, or one of several bytes.
        where = f"{path}:{parser.CurrentLineNumber}"
        raise CommandError(f"{where}: is no XML: {error}; write it in UTF-8") from error
    return Content(lines, [_SECTION, *sections] if sections else [])


_SECTION, _APPLICATION = "uwsgi", "app"
_READERS: dict[str, Callable[[str, str, str], Content]] = {
    "ini": _ini, "yaml": _yaml, "json": _json, "xml": _xml,
}  # fmt: skip
