"""What ``osloxide serve`` serves: a module's attribute, a script, or a paste application.

Owns the names of applications and how each kind is loaded. Loading executes the application's code,
which may end the process or never return; what follows from that is osloxide.cli.site's part.
Looking for an application executes none of its code: the parent of workers must not keep modules
that a reload is to load again.

Rules: PEP 3333; uWSGI's ``wsgi-file`` (the module is not called ``__main__``); Paste Deploy's
``config:`` addresses.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import inspect
import os
import re
import stat
import sys
import types
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osloxide._typing import override
from osloxide.cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_ATTRIBUTE = "application"
_PASTE = "config:"
_EXAMPLE = "give MODULE:APP, for example mysite.wsgi:app, a script's path, or config:PASTE_FILE"


@dataclass
class Application:
    """One application by its name.

    :param text: the name as it was given.
    :param title: what to call it where no ``--name`` says otherwise: the module, the script's or
        the paste file's name.
    """

    text: str
    title: str
    _loaded: Any = field(default=None, repr=False, kw_only=True)

    @staticmethod
    def parse(text: str) -> Application:
        """Tell the three kinds apart.

        :raises CommandError: it is none of these.
        """
        if text.startswith(_PASTE):
            return PasteApplication.of(text)
        # A module's name holds no slash, and a file's name in this directory has an extension.
        file, colon, attribute = text.rpartition(":")
        if not colon or "/" in attribute or Path(text).is_file():
            file, attribute = text, ""
        if "/" in file or (file.endswith((".py", ".wsgi")) and Path(file).is_file()):
            return ScriptApplication.of(text, file, attribute)
        return ModuleApplication.of(text)

    def check(self) -> None:
        """Look for the application without executing it.

        :raises CommandError: it is not there.
        """
        raise NotImplementedError

    def load(self) -> Callable[..., Any]:
        """Execute it and return the application, the same one on every call.

        :raises CommandError: there is no such attribute, or it cannot be called.
        """
        if self._loaded is None:
            found = self._load()
            if not callable(found):
                raise CommandError(
                    f"{self.text} is of type {type(found).__name__}, which cannot be called; name "
                    "a WSGI application"
                )
            if any(map(inspect.iscoroutinefunction, (found, type(found).__call__))):
                raise CommandError(
                    f"{self.text} is an ASGI application, which a WSGI server cannot call; start "
                    "it with an ASGI server, or name a WSGI application"
                )
            self._loaded = found
        return self._loaded  # type: ignore[no-any-return]

    def _load(self) -> Any:
        raise NotImplementedError


@dataclass
class ModuleApplication(Application):
    """``MODULE``, ``MODULE:APP`` or ``MODULE:FACTORY()``."""

    module: str
    attribute: str

    @classmethod
    def of(cls, text: str) -> ModuleApplication:
        """Take *text* apart.

        :raises CommandError: it names no attribute of a module.
        """
        module, colon, attribute = text.partition(":")
        attribute = attribute if colon else DEFAULT_ATTRIBUTE
        if not all(name.isidentifier() for name in module.split(".")):
            raise CommandError(f"{text!r} names no application; {_EXAMPLE}")
        _check_attribute(text, attribute)
        return cls(text, module, module, attribute)

    @override
    def check(self) -> None:
        """Look for the module without importing it, or a package that it is in."""
        importlib.invalidate_caches()
        name, *rest = self.module.split(".")
        try:
            spec = importlib.util.find_spec(name)
            while spec is not None and rest and spec.submodule_search_locations is not None:
                inner = f"{name}.{rest[0]}"
                found = _find_in(inner, list(spec.submodule_search_locations))
                if found is None and spec.origin is not None:
                    # The package's own code may add places; only its import can tell.
                    return
                name, spec = inner, found
                rest.pop(0)
        except (ImportError, ValueError) as error:
            raise CommandError(f"cannot find module {self.module}: {error}") from error
        if spec is None:
            raise CommandError(
                f"cannot find module {self.module}; check the name, and --chdir or PYTHONPATH"
            )

    @override
    def _load(self) -> Any:
        return _attribute_of(importlib.import_module(self.module), self.module, self.attribute)


@dataclass
class ScriptApplication(Application):
    """``PATH`` or ``PATH:APP``: a script such as ``/usr/bin/nova-api-wsgi``."""

    path: str
    attribute: str

    @classmethod
    def of(cls, text: str, path: str, attribute: str) -> ScriptApplication:
        """Take *path* and *attribute* (blank = ``application``).

        :raises CommandError: *attribute* is no attribute's name.
        """
        attribute = attribute or DEFAULT_ATTRIBUTE
        _check_attribute(text, attribute)
        return cls(text, Path(path).name, path, attribute)

    @override
    def check(self) -> None:
        """Look for the file."""
        wanted = f"a Python script that has a variable {self.attribute!r}"
        require_readable("cannot read", self.path, wanted)

    @override
    def _load(self) -> Any:
        name = "wsgi_file_" + re.sub(r"\W", "_", self.path.strip("/"))
        module = types.ModuleType(name)
        module.__file__ = self.path
        # Before it runs: dataclasses and pickle look a class up by its module's name.
        sys.modules[name] = module
        try:
            # Not by a loader: that would leave bytecode in /usr/bin.
            code = compile(Path(self.path).read_bytes(), self.path, "exec")
            exec(code, module.__dict__)  # noqa: S102 - the application that was asked for
        except BaseException:
            sys.modules.pop(name, None)
            raise
        return _attribute_of(module, self.path, self.attribute)


@dataclass
class PasteApplication(Application):
    """``config:FILE`` or ``config:FILE#NAME``: an application of a paste configuration."""

    path: str
    section: str | None

    @classmethod
    def of(cls, text: str) -> PasteApplication:
        """Take *text* apart.

        :raises CommandError: it names no file.
        """
        path, _, section = text.removeprefix(_PASTE).partition("#")
        if not path:
            raise CommandError(f"{text!r} names no file; give config:/etc/nova/api-paste.ini")
        return cls(text, Path(path).stem, path, section or None)

    @override
    def check(self) -> None:
        """Look for the file."""
        require_readable("cannot read", self.path, "a paste configuration")

    @override
    def _load(self) -> Any:
        try:
            from paste import deploy
        except ImportError as error:
            raise CommandError(
                f"{self.text} needs Paste Deploy ({error}); install it: pip install PasteDeploy"
            ) from error
        return deploy.loadapp(f"{_PASTE}{Path(self.path).absolute()}", name=self.section)


def require_readable(what: str, path: str, wanted: str) -> None:
    """Find out before the fork that *path* can be read. Takes nothing out of a pipe.

    :param what: stands before the path in the message, an option for one.
    :param wanted: what to name instead, for the message.
    :raises CommandError: it cannot.
    """
    try:
        # Neither waits for the writer of a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if stat.S_ISREG(status.st_mode):
                os.read(descriptor, 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CommandError(f"{what} {path}: {error.strerror}; name {wanted}") from error


def _check_attribute(text: str, attribute: str) -> None:
    if not all(name.isidentifier() for name in attribute.removesuffix("()").split(".")):
        raise CommandError(f"{text!r} names no application; {_EXAMPLE}")


def _find_in(name: str, places: list[str]) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        try:
            spec: ModuleSpec | None = None if find is None else find(name, places)
        except (KeyError, ModuleNotFoundError) as error:
            # A directory without __init__.py (PEP 420) in a package that is not imported: CPython
            # asks sys.modules for the package, and 3.15 says so in words.
            if isinstance(error, ModuleNotFoundError) and error.name != name.rpartition(".")[0]:
                raise
            spec = _namespace(name, places)
        if spec is not None:
            return spec
    return None


def _namespace(name: str, places: list[str]) -> ModuleSpec | None:
    """The namespace package *name*, as far as directories tell."""
    last = name.rpartition(".")[2]
    directories = [os.path.join(place, last) for place in places]
    found = [directory for directory in directories if os.path.isdir(directory)]
    if not found:
        return None
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = found
    return spec


def _attribute_of(module: types.ModuleType, where: str, attribute: str) -> Any:
    found: Any = module
    for name in attribute.removesuffix("()").split("."):
        if not hasattr(found, name):
            raise CommandError(
                f"{where} has no attribute {attribute!r}; name the application, for example "
                f"{where}:app"
            )
        found = getattr(found, name)
    return found() if attribute.endswith("()") else found
