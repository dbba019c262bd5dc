"""Write the reference pages of the documentation site from the code itself.

Owns the site's folder "reference", made at each build (docs/conf.py) and part of no commit:
what stands there cannot be older than the code. Reads parsers, option lists, tables of metrics and
docstrings; starts no service and opens no socket.

    tools/reference.py DIRECTORY
"""

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

PUBLIC = (
    "osloxide", "osloxide.service", "osloxide.wsgi", "osloxide.threadgroup",
    "osloxide.loopingcall", "osloxide.exceptions",
)  # fmt: skip
"""The modules that docs/api.md calls public."""
WIDTH = 70
"""Characters of a signature that a page shows without scrolling."""
MADE = "% Made by tools/reference.py from the code; edit the code.\n"


def cell(text: str) -> str:
    """*text* as one cell of a Markdown table."""
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|").replace("<", "\\<") or " "


def code(text: str) -> str:
    return f"`{cell(text)}`" if text.strip() else " "


# ---- commands ------------------------------------------------------------------------------------


def parser_of(name: str) -> argparse.ArgumentParser | None:
    """The parser of a subcommand; None where its options are not argparse's (uwsgi)."""
    module = importlib.import_module(f"osloxide.cli.{name}")
    declare = getattr(module, "add_arguments", None)
    if declare is None:
        return None
    parser = argparse.ArgumentParser(prog=f"osloxide {name}")
    declare(parser)
    return parser


def arguments_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, str]]:
    """``(names, default, help)`` of each argument that is shown."""
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.help is argparse.SUPPRESS:
            continue
        names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        if action.option_strings and action.nargs != 0:
            names += f" {formatter._format_args(action, (action.dest or '').upper())}"
        default = action.default
        shown = "" if default in (None, argparse.SUPPRESS, False, []) else str(default)
        yield names, shown, formatter._expand_help(action) if action.help else ""


def commands() -> str:
    from osloxide.cli import SUBCOMMANDS

    lines = [MADE, "# Commands", "", "Every option of every command, from the parsers.", ""]
    for name, purpose in SUBCOMMANDS.items():
        lines += [f"## osloxide {name}", "", f"{purpose.capitalize()}.", ""]
        parser = parser_of(name)
        if parser is None:
            lines += ["Its options are uWSGI's: [the table](../uwsgi.md) has each one.", ""]
            continue
        rows = list(arguments_of(parser))
        if any(default for _, default, _ in rows):
            lines += ["| argument | default | meaning |", "|---|---|---|"]
            lines += [
                f"| {code(names)} | {code(default)} | {cell(text)} |"
                for names, default, text in rows
            ]
        else:
            lines += ["| argument | meaning |", "|---|---|"]
            lines += [f"| {code(names)} | {cell(text)} |" for names, _, text in rows]
        lines.append("")
    return "\n".join(lines)


# ---- configuration -------------------------------------------------------------------------------


def configuration_options() -> Iterator[tuple[str, Any]]:
    """``(group, option)`` of each option that a service on osloxide reads."""
    from osloxide import service, wsgi
    from osloxide.launch import configuration
    from osloxide.server import options as server_options

    seen: set[tuple[str, str]] = set()
    lists = [
        *service.list_opts(), *wsgi.list_opts(),
        *configuration.list_opts(), *server_options.list_opts(),
    ]  # fmt: skip
    for group, options in lists:
        for option in options:
            key = (str(group or "DEFAULT"), option.name)
            if key not in seen:
                seen.add(key)
                yield key[0], option


def configuration() -> str:
    lines = [
        MADE, "# Configuration options", "",
        "Each option of a configuration file that osloxide reads, as `oslo-config-generator` would"
        " list it. [Options](../options.md) says how osloxide takes them.", "",
        "| group | option | type | default | meaning |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for group, option in configuration_options():
        default = "" if option.default is None else str(option.default)
        lines.append(
            f"| {code(group)} | {code(option.name)} | {cell(str(option.type))} | {code(default)} |"
            f" {cell(option.help or '')} |"
        )
    return "\n".join([*lines, ""])


# ---- metrics -------------------------------------------------------------------------------------


def metrics() -> str:
    from osloxide.cli.metrics import Collector

    lines = [
        MADE, "# Metrics", "",
        "What `osloxide metrics` offers; [operating](../operating.md) says how to read it."
        " A counter's samples end in `_total`.", "",
        "| metric | kind | labels | meaning |", "|---|---|---|---|",
    ]  # fmt: skip
    # A scrape of no launcher names everything.
    for family in Collector(list).collect():
        sample = f"{family.name}_total" if family.type == "counter" else family.name
        labels = code(", ".join(family._labelnames))
        lines.append(f"| `{sample}` | {family.type} | {labels} | {cell(family.documentation)} |")
    return "\n".join([*lines, ""])


# ---- names ---------------------------------------------------------------------------------------


def signature_of(thing: Any) -> str:
    """As it would be written; what a class returns is left out."""
    try:
        shown = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return "(...)"
    shown = re.sub(r"(: |-> )'([^']*)'", r"\1\2", shown)
    return shown.removesuffix(" -> None") if inspect.isclass(thing) else shown


def declaration(kind: str, name: str, thing: Any) -> str:
    """A block of code, one argument a line where one line would have to be scrolled."""
    shown = signature_of(thing)
    if len(shown) > WIDTH:
        arguments, arrow, answer = shown.rpartition(") -> ")
        arguments = arguments if arrow else shown.removesuffix(")")
        parts = re.split(r", (?=[*\w]+[:=,]|\*\*?\w|\*,)", arguments.removeprefix("("))
        shown = "(\n" + "".join(f"    {part},\n" for part in parts) + ")"
        shown += f" -> {answer}" if arrow else ""
    return f"```text\n{kind} {name}{shown}\n```"


def paragraph(docstring: str | None) -> str:
    """The docstring's first paragraph; reStructuredText roles become code."""
    first = inspect.cleandoc(docstring or "").partition("\n\n")[0]
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", first).replace("``", "`")


def names_of(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name for name, value in vars(module).items()
            if getattr(value, "__module__", "").partition(".")[0] == "osloxide"
        ]  # fmt: skip
    return sorted(name for name in names if not name.startswith("_"))


def members_of(owner: type) -> Iterator[tuple[str, Any]]:
    for name in sorted(dir(owner)):
        value = inspect.getattr_static(owner, name)
        if name.startswith("_") or not (inspect.isfunction(value) or isinstance(value, property)):
            continue
        yield name, value


def names() -> str:
    lines = [
        MADE, "# Public names", "",
        "Signatures and types from the code; [what is public](../api.md) says which of them stay.",
        "",
    ]  # fmt: skip
    for place in PUBLIC:
        module = importlib.import_module(place)
        lines += [f"## {place}", "", paragraph(module.__doc__), ""]
        for name in names_of(module):
            thing = getattr(module, name)
            kind = "class" if inspect.isclass(thing) else "def"
            if not callable(thing):
                lines += [f"### {name}", "", code(repr(thing)), ""]
                continue
            lines += [f"### {name}", "", declaration(kind, name, thing), ""]
            lines += [paragraph(thing.__doc__), ""]
            if inspect.isclass(thing):
                for member, value in members_of(thing):
                    shown = signature_of(value) if inspect.isfunction(value) else " (property)"
                    lines += [f"`{member}{shown}`", f": {cell(paragraph(value.__doc__))}", ""]
    return "\n".join(lines)


def write(directory: Path) -> list[Path]:
    """Write every page below *directory*; pages that are current keep their time."""
    directory.mkdir(parents=True, exist_ok=True)
    pages = {
        "commands": commands, "configuration": configuration, "metrics": metrics, "names": names,
    }  # fmt: skip
    written = []
    for name, make in pages.items():
        path = directory / f"{name}.md"
        text = make()
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        written.append(path)
    return written


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: tools/reference.py DIRECTORY")
    for page in write(Path(sys.argv[1])):
        print(page)
