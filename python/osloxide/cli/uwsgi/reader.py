"""uWSGI's configuration language: environment, command line and files become a list of settings.

Owns magic variables (``%n``), placeholders (``%(name)``), the environment (``$(NAME)``,
``UWSGI_NAME``), files (``@(path)``), includes, conditions and loops. Knows what no option means;
that is osloxide.cli.uwsgi.options' part. osloxide.cli.uwsgi.formats takes files apart.

Rules: uWSGI 2.0's documentation ("Configuring uWSGI", "Configuration logic", "Placeholders"), and
its behaviour where that is silent: of a repeated option a placeholder has the first value, and one
that is set further down counts as well.
"""

from __future__ import annotations

import glob
import grp
import os
import pwd
import re
import socket
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from osloxide.cli.errors import CommandError
from osloxide.cli.uwsgi import formats
from osloxide.cli.uwsgi.formats import Line

VERSION = "2.0.31"
"""The version of uWSGI whose language and module this is."""

COMMAND_LINE = "command line"
_SECTION = "uwsgi"
_INCLUDES: Mapping[str, str | None] = {
    "ini": "ini", "yaml": "yaml", "yml": "yaml", "json": "json", "js": "json", "xml": "xml",
    "xmlconfig": "xml", "include": None, "inherit": None, "config": None,
}  # fmt: skip
"""Options that name another file, and its format; None where its name tells."""
_PLACEHOLDERS = ("set", "set-ph", "set-placeholder")
_LONGEST = 131_072
"""Characters of a value at most: as many as an argument may have (execve(2), MAX_ARG_STRLEN)."""
_PLACEHOLDER = re.compile(r"%\(([^()]*)\)")
_VARIABLE = "UWSGI_"
_INTERNAL = ("RELOADS", "ORIGINAL_PROC_NAME", "VASSALS_DIR", "EMPEROR_FD", "EMPEROR_FD_CONFIG",
             "EMPEROR_PROXY", "BROODLORD_NUM", "JAIL_PID")  # fmt: skip
"""What uWSGI tells its own next process behind ``UWSGI_``."""


_ALIASES = {"ifdir": "if-dir", "ifenv": "if-env", "ifexists": "if-exists", "ifplugin": "if-plugin"}
"""Conditions that uWSGI spells in two ways."""
_ENDS = ("endif", "end-if", "endfor", "end-for", "end")


@dataclass(frozen=True)
class Setting:
    """One option as it was given, its value expanded.

    :param value: blank where none was given.
    :param source: ``FILE:LINE`` or ``command line``.
    """

    name: str
    value: str
    source: str

    def refuse(self, problem: str) -> CommandError:
        """An error about this setting."""
        return CommandError(f"{self.source}: {self.name} = {self.value}: {problem}")


def is_condition(name: str) -> bool:
    """Whether an option begins a condition or a loop; it has a value."""
    return name == "for" or name.startswith(("for-", "if-")) or name in _ALIASES


def is_end(name: str) -> bool:
    """Whether an option ends a condition or a loop; it has no value."""
    return name in _ENDS


class Reader:
    """Collects settings in the order in which uWSGI would apply them.

    :ivar settings: all of them, includes and placeholders among them.
    :ivar used: names that a placeholder asked for.
    """

    def __init__(self) -> None:
        self.settings: list[Setting] = []
        self.used: set[str] = set()
        self._open: list[str] = []
        self._first = ""
        self._began = time.time()

    def add(self, name: str, value: str, source: str) -> None:
        """Take one option, as from a command line.

        :raises CommandError: it includes a file that cannot be used.
        """
        self._take(name, self._expanded(value, None, source), source, "")

    def add_command_line(self, options: Sequence[tuple[str, str]]) -> None:
        """Take the options of a command line, conditions and loops among them.

        :raises CommandError: one includes a file that cannot be used, or a condition has no end.
        """
        self._run([Line(0, name, value) for name, value in options], "")

    def add_environment(
        self, environ: Mapping[str, str], is_meant: Callable[[str], bool], known: Container[str]
    ) -> None:
        """Take ``UWSGI_SOME_OPTION=VALUE``, as uWSGI does before it looks at its command line.

        A name that is no option is a variable. A blank value is none, as unit files and containers
        cannot unset one.

        :param is_meant: whether the variable of such an option is uWSGI's at all.
        :param known: the names of options.
        :raises CommandError: it includes a file that cannot be used.
        """
        for variable, value in environ.items():
            name = variable.removeprefix(_VARIABLE)
            if name == variable or name in _INTERNAL or not value:
                continue
            option = name.lower().replace("_", "-")
            if not is_meant(option):
                continue
            if option not in known:
                self.used.add(option)
            self.add(option, value, f"environment variable {variable}")

    def finish(self) -> None:
        """Expand placeholders that are set further down than they are used.

        One that leads into a circle, such as two that name each other, stays as it is.

        :raises CommandError: a value becomes too long.
        """
        # Each round takes one link of a chain at least, and a chain that leads down all of them.
        for _ in range(len(self.settings)):
            changed = False
            for index in range(len(self.settings) - 1, -1, -1):
                setting = self.settings[index]
                value = self._referred(setting.value, None, setting.source, last=True)
                if value != setting.value:
                    self.settings[index] = replace(setting, value=value)
                    changed = True
            if not changed:
                break

    def read(self, text: str, source: str, including: str = "", kind: str | None = None) -> None:
        """Take all settings of ``FILE`` or ``FILE:SECTION``; ``-`` is standard input.

        :param source: where the file is asked for.
        :param including: the file that asks for it; ``:SECTION`` is one of that.
        :param kind: its format; None where its name tells, and ini where that tells none.
        :raises CommandError: the file cannot be read, includes itself, or lacks the section.
        """
        path, section = _split(text)
        path = path or including
        where = f"{os.path.abspath(path)}:{section}"
        if where in self._open:
            names = " -> ".join([*self._open[self._open.index(where) :], where])
            raise CommandError(f"{source}: circular include: {names}; remove one of them")
        try:
            if path == "-":
                # As files are; sys.stdin would refuse bytes that are no UTF-8.
                with open(0, encoding="utf-8", errors="surrogateescape", closefd=False) as file:
                    content = file.read()
            else:
                content = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise CommandError(
                f"{source}: cannot read {path}: {error.strerror}; name an ini file"
            ) from error
        if "\0" in content:
            raise CommandError(f"{source}: {path} holds a NUL byte, so it is no text; name another")
        self._first = self._first or path
        kind = kind or formats.of_file(path) or "ini"
        content = _substituted(content, self._magic(path, section))
        lines, sections = formats.read(kind, path, content, section)
        if section not in sections:
            known = ", ".join(f"[{name}]" for name in sections) or "none"
            raise CommandError(
                f"{path} has no section [{section}] (it has: {known}); rename the section, or name "
                f"another one with {path}:SECTION"
            )
        self._open.append(where)
        self._run(lines, path)
        self._open.pop()

    # ---- conditions and loops

    def _run(self, lines: list[Line], path: str, item: str | None = None) -> None:
        rest = iter([line._replace(key=_ALIASES.get(line.key, line.key)) for line in lines])
        for line in rest:
            source = f"{path}:{line.number}" if line.number else path or COMMAND_LINE
            if line.key == "for" or line.key.startswith("for-"):
                block = _block(rest, line, source, "for", ("endfor", "end-for", "end"))
                for each in self._items(line, source):
                    self._run(block, path, each)
            elif line.key.startswith("if-"):
                block = _block(rest, line, source, "if-", ("endif", "end-if", "end"))
                value = self._expanded(line.value, item, source)
                holds, matched = self._test(line.key, value, source)
                if holds:
                    self._run(block, path, matched if item is None else item)
            elif line.key in _ENDS:
                raise CommandError(f"{source}: {line.key} ends nothing; remove it")
            else:
                self._take(line.key, self._expanded(line.value, item, source), source, path)

    def _items(self, line: Line, source: str) -> list[str]:
        value = self._expanded(line.value, None, source)
        if line.key == "for":
            return value.split()
        if line.key == "for-glob":
            return sorted(glob.glob(value))
        if line.key == "for-times":
            if not re.fullmatch("[0-9]{1,6}", value):
                raise CommandError(
                    f"{source}: for-times = {value}: is no whole number of at most 999999"
                )
            return [str(number) for number in range(1, int(value) + 1)]
        if line.key == "for-readline":
            return [text.rstrip("\n") for text in _read(value, source).splitlines()]
        raise CommandError(f"{source}: {line.key} = {value}: no such loop; use for or for-glob")

    def _test(self, key: str, value: str, source: str) -> tuple[bool, str]:
        """Whether a condition holds, and what ``%(_)`` means below it."""
        wanted = not key.startswith("if-not-")
        kind = key.removeprefix("if-not-" if not wanted else "if-")
        name, equals, expected = value.partition("=")
        if kind in ("env", "opt"):
            found = os.environ.get(name) if kind == "env" else self._value_of(name)
            holds = found is not None and (not equals or found == expected)
            return holds is wanted, found or ""
        tests: dict[str, Callable[[], bool]] = {
            "exists": lambda: os.path.exists(value),
            "file": lambda: os.path.isfile(value),
            "dir": lambda: os.path.isdir(value),
            "directory": lambda: os.path.isdir(value),
            "reload": lambda: False,
            "hostname": lambda: socket.gethostname() == value,
            "hostname-match": lambda: re.search(value, socket.gethostname()) is not None,
            "plugin": lambda: value in ("python", "python3", "http"),
        }
        if kind not in tests:
            raise CommandError(
                f"{source}: {key} is a condition that osloxide does not know; known are if-env, "
                f"if-opt, {', '.join(f'if-{name}' for name in tests)}, and if-not-..."
            )
        try:
            return tests[kind]() is wanted, value
        except re.error as error:
            raise CommandError(
                f"{source}: {key} = {value}: is no regular expression: {error}"
            ) from error

    # ---- settings and placeholders

    def _take(self, name: str, value: str, source: str, path: str) -> None:
        setting = Setting(name, value, source)
        self.settings.append(setting)
        if name in _PLACEHOLDERS:
            inner, equals, text = value.partition("=")
            if not equals or not inner:
                raise setting.refuse("is no NAME=VALUE")
            self.used.add(inner)
            self.settings.append(Setting(inner, text, source))
        elif name in _INCLUDES:
            self.read(value, source, path, _INCLUDES[name])

    def _value_of(self, name: str) -> str | None:
        return next((it.value for it in self.settings if it.name == name), None)

    def _expanded(self, text: str, item: str | None, source: str) -> str:
        text = self._referred(text, item, source)
        text = re.sub(r"\$\(([^()]*)\)", lambda match: os.environ.get(match[1], match[0]), text)
        return re.sub(r"@\(([^()]*)\)", lambda match: _read(match[1], match[0]).strip("\n"), text)

    def _referred(self, text: str, item: str | None, source: str, last: bool = False) -> str:
        """*text* with its ``%(name)``; one that is not set stays, and so does one whose own value
        waits for another.

        :param last: no other setting comes: what is not set waits for nothing.
        :raises CommandError: it becomes too long.
        """
        length = len(text)

        def placeholder(match: re.Match[str]) -> str:
            nonlocal length
            found = self._found(match[1], item, source, last)
            if found is None:
                return match[0]
            length += len(found) - len(match[0])
            if length > _LONGEST:
                raise _too_long(match[0], source)
            return found

        return _PLACEHOLDER.sub(placeholder, text)

    def _found(self, name: str, item: str | None, source: str, last: bool) -> str | None:
        """What ``%(name)`` stands for; None where it stays."""
        if name == "_" and item is not None:
            return item
        if " " in name:
            return self._calculated(name, source)
        self.used.add(name)
        found = self._value_of(name)
        for inner in _PLACEHOLDER.findall(found or ""):
            if not last or " " in inner or self._value_of(inner) is not None:
                return None
        return found

    def _calculated(self, formula: str, source: str) -> str:
        """``a + 3 b``: from left to right, without precedence, whole numbers; or words in a row.

        A name that is not set is blank, what is no number counts as 0, and so does a quotient by 0.

        :raises CommandError: it becomes too long.
        """
        found, operator = "", ""
        for word in formula.split():
            if word in ("+", "-", "*", "/"):
                operator = word
                continue
            if word in ("++", "--"):
                found = str(_integer(found) + (1 if word == "++" else -1))
                continue
            value = word
            if not re.fullmatch(r"-?\d+", word):
                self.used.add(word)
                value = self._value_of(word) or ""
            left, right = _integer(found), _integer(value)
            found = {
                "": found + value,
                "+": str(left + right),
                "-": str(left - right),
                "*": str(left * right),
                "/": str(int(left / right) if right else 0),
            }[operator]
            operator = ""
            if len(found) > _LONGEST:
                raise _too_long(f"%({formula})", source)
        return found

    def _magic(self, path: str, section: str) -> dict[str, str]:
        """What ``%`` and a letter mean in *path*."""
        full = os.path.abspath(path)
        first = os.path.abspath(self._first or path)
        found = {
            "%": "%",
            "[": "\x1b",
            "b": "uwsgi",
            "o": path,
            "O": self._first or path,
            "x": section,
            "X": section,
            "h": socket.gethostname(),
            "k": str(os.cpu_count() or 1),
            "t": str(int(self._began)),
            "T": str(int(self._began * 1_000_000)),
            "u": str(os.getuid()),
            "g": str(os.getgid()),
            "U": _name(lambda: pwd.getpwuid(os.getuid()).pw_name, os.getuid()),
            "G": _name(lambda: grp.getgrgid(os.getgid()).gr_name, os.getgid()),
            "v": os.getcwd(),
            "V": VERSION,
        }
        for letters, file in (("psdencj", full), ("PSDENCJ", first)):
            directory, base = os.path.split(file)
            stem, dot, extension = base.rpartition(".")
            values = (
                file,
                base,
                directory.rstrip("/") + "/",
                extension if dot else "",
                stem if dot else base,
                os.path.basename(directory),
                f"{_djb33x(file):X}",
            )
            found.update(zip(letters, values, strict=True))
        for index, name in enumerate(os.path.dirname(full).strip("/").split("/")[:10]):
            found[str(index)] = name
        try:
            found["i"] = str(os.stat(full).st_ino)
        except OSError:
            found["i"] = "0"
        return found


def _split(text: str) -> tuple[str, str]:
    """``FILE`` and section of ``FILE:SECTION``."""
    if os.path.isfile(text):
        return text, _SECTION
    path, colon, section = text.rpartition(":")
    return (path, section or _SECTION) if colon else (text, _SECTION)


def _substituted(text: str, magic: dict[str, str]) -> str:
    # "%(" begins a placeholder and stays; a letter without a meaning vanishes, as in uWSGI.
    return re.sub(r"%([^(\n])", lambda match: magic.get(match[1], ""), text)


def _integer(text: str) -> int:
    """The whole number at the beginning of *text*, as strtoll(3) takes it: of 64 bits at most."""
    found = re.match(r"\s*([-+]?)0*(\d{0,20})", text)
    number = int(f"{found[1]}{found[2] or 0}") if found else 0
    return max(-(2**63), min(number, 2**63 - 1))


def _too_long(placeholder: str, source: str) -> CommandError:
    if len(placeholder) > 80:
        placeholder = placeholder[:80] + "..."
    return CommandError(
        f"{source}: {placeholder} makes the value longer than {_LONGEST} characters; shorten it"
    )


def _block(
    rest: Iterator[Line], opening: Line, source: str, prefix: str, ends: tuple[str, ...]
) -> list[Line]:
    """The lines up to the end of a condition or loop."""
    found: list[Line] = []
    depth = 0
    for line in rest:
        if line.key == "else":
            raise CommandError(
                f"{source}: {opening.key} has an else, which uWSGI 2.0 does not know: it ignores "
                "both parts; write a second condition, if-not-..."
            )
        if line.key in ends:
            if depth == 0:
                return found
            depth -= 1
        elif line.key.startswith(prefix):
            depth += 1
        found.append(line)
    raise CommandError(f"{source}: {opening.key} has no {ends[0]}; add the line {ends[0]} =")


def _read(path: str, source: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise CommandError(f"{source}: cannot read {path}: {error.strerror}") from error
    if "\0" in text:
        raise CommandError(f"{source}: {path} holds a NUL byte, so it is no text; name another")
    return text


def _name(look_up: Callable[[], str], number: int) -> str:
    try:
        return look_up()
    except KeyError:
        return str(number)


def _djb33x(text: str) -> int:
    value = 5381
    for byte in os.fsencode(text):
        value = ((value << 5) + value ^ byte) & 0xFFFFFFFF
    return value
