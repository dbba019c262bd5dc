"""What a command runs as its main module, and what that imports: read from its source.

Owns which file, module or text a command line of Python names, and the search for imports that are
made as it begins. Runs nothing of it; what imports a function makes when it is called, and names
that are made up at run time, are not seen. Rules: *Command line and environment* of CPython
(-c, -m, scripts, directories; ``sys.path[0]``), ast, console scripts as pip and setuptools write
them.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import sys
import tokenize
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from osloxide.cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_HANDS_ON = re.compile(
    r"exec|__import__|(importlib\.)?import_module|runpy\.\w+|.+\.run_script"
    r"|os\.((exec|spawn|posix_spawn)\w*|system|popen)|subprocess\.\w+"
)
"""What runs code, or a program, that the source does not name as an import."""


@dataclass(frozen=True)
class Import:
    """An import statement that runs as the main module begins.

    :param module: its absolute name.
    :param name: what is taken from it, or None for the module alone.
    :param optional: it stands in a ``try`` or an ``if``: the program may go on without.
    """

    module: str
    name: str | None
    optional: bool


@dataclass(frozen=True)
class MainSource:
    """The source of a main module.

    :param name: what messages call it.
    :param directory: ``sys.path[0]`` of the command, or None: the current one.
    :param package: for relative imports, or ``""``.
    """

    name: str
    tree: ast.Module
    directory: str | None = None
    package: str = ""

    def imports(self) -> list[Import]:
        """The imports that run as it begins, in their order, each once.

        :raises CommandError: one is relative, and the main module is in no package.
        """
        return list(dict.fromkeys(self._imports(self.tree, optional=False)))

    def _imports(self, parent: ast.AST, *, optional: bool) -> Iterator[Import]:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(alias.name, None, optional)
            elif isinstance(node, ast.ImportFrom):
                if node.module == "__future__":
                    continue
                dots = "." * node.level
                module = f"{dots}{node.module or ''}"
                if node.level:
                    try:
                        module = importlib.util.resolve_name(module, self.package)
                    except ImportError as error:
                        raise CommandError(f"{self.name} has no package: {error}") from error
                for alias in node.names:
                    yield Import(module, None if alias.name == "*" else alias.name, optional)
            elif (found := _entry_point(node)) is not None:
                yield Import(found.module, None, optional)
            elif not isinstance(node, _FUNCTIONS):
                inner = optional or isinstance(node, (ast.Try, ast.TryStar, ast.If))
                # A guard of __main__ is true in a main module.
                if isinstance(node, ast.If) and "__main__" in ast.dump(node.test):
                    inner = optional
                yield from self._imports(node, optional=inner)

    def hands_on(self) -> str | None:
        """The call by which it runs code that it does not import, where all it imports is Python's.

        :returns: its name as the source has it, or None.
        """
        if any(not is_standard(found.module) for found in self.imports()):
            return None
        calls = (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))
        names = (ast.unparse(call.func) for call in calls)
        return next(filter(_HANDS_ON.fullmatch, names), None)


def is_standard(module: str) -> bool:
    """Whether *module* comes with Python."""
    return module.partition(".")[0] in sys.stdlib_module_names


def read(kind: str, value: str) -> MainSource:
    """The source of what a command line names, whose imports can be told.

    :param kind: ``"script"``, ``"module"`` (``-m``), ``"code"`` (``-c``), or ``""`` for none.
    :param value: a path, the name of a module, or the source itself.
    :raises CommandError: it cannot be looked into; the message says why.
    """
    if not kind:
        raise CommandError("the command names no script, no -m and no -c to look into")
    if kind == "code":
        return MainSource("-c", _parse(value, "the text after -c"))
    if kind == "module":
        return _module(value)
    path, directory = value, os.path.dirname(os.path.realpath(value))
    if os.path.isdir(path):
        path, directory = os.path.join(path, "__main__.py"), path
    try:
        if zipfile.is_zipfile(path):
            raise CommandError(f"{path} is an archive, which is not looked into")
        with tokenize.open(path) as file:
            text = file.read()
    except (OSError, SyntaxError, UnicodeError) as error:
        raise CommandError(f"{path} cannot be read as Python: {error}") from error
    return MainSource(path, _parse(text, path), directory)


def _module(name: str) -> MainSource:
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name += ".__main__"
            spec = importlib.util.find_spec(name)
    except Exception as error:  # packages above it are imported, and may raise anything
        raise CommandError(f"importing {name} failed: {type(error).__name__}: {error}") from error
    if spec is None:
        raise CommandError(f"there is no module {name}")
    source = getattr(spec.loader, "get_source", None)
    text = source(name) if source is not None else None
    if text is None:
        raise CommandError(f"the module {name} has no source to look into")
    return MainSource(name, _parse(text, name), None, name.rpartition(".")[0])


def _parse(text: str, name: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise CommandError(f"{name} cannot be read as Python: {error}") from error


def _entry_point(node: ast.AST) -> importlib.metadata.EntryPoint | None:
    """The one that *node* loads, where it is the call in a console script of setuptools'."""
    if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith("load_entry_point"):
        return None
    values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    words = [value for value in values if isinstance(value, str)]
    if len(words) != 3:
        return None
    found = importlib.metadata.entry_points(group=words[1], name=words[2])
    return next(iter(found), None)
