"""``eventlet.patcher``: there is nothing to patch.

Owns :func:`monkey_patch`, which notes what was asked for and changes no module: native threads wait
in the standard library as it is. :func:`is_monkey_patched` says False, so libraries take the ways
that are right for native threads. Rules: eventlet.patcher.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

__all__ = ["import_patched", "inject", "is_monkey_patched", "monkey_patch"]

already_patched: dict[str, bool] = {}
"""Always empty: what was patched."""

requested: dict[str, bool] = {}
"""What :func:`monkey_patch` was asked for."""

when_asked: list[Callable[[], object]] = []
"""Called without arguments each time :func:`monkey_patch` was asked for something."""

_ACCEPTED = (
    "os",
    "select",
    "socket",
    "thread",
    "time",
    "psycopg",
    "MySQLdb",
    "builtins",
    "subprocess",
)
_REPLACED = ("os", "select", "socket", "ssl", "time")
"""What :func:`inject` replaces by itself."""

_ORIGINALS = ("threading", "_thread", "queue", "socket", "select", "os", "time", "subprocess")


class SysModulesSaver:
    """Keeps entries of ``sys.modules`` to put them back."""

    def __init__(self, module_names: Iterable[str] = ()) -> None:
        self._saved: dict[str, ModuleType | None] = {}
        self.save(*module_names)

    def save(self, *module_names: str) -> None:
        """Keep these."""
        for name in module_names:
            self._saved[name] = sys.modules.get(name)

    def restore(self) -> None:
        """Put them back."""
        for name, module in self._saved.items():
            if module is not None:
                sys.modules[name] = module
            else:
                sys.modules.pop(name, None)


def inject(
    module_name: str, new_globals: dict[str, Any] | None, *additional_modules: Any
) -> ModuleType:
    """Import *module_name*.

    :param new_globals: gets the module's names.
    :param additional_modules: pairs of a name and a module that the import of *module_name*, and of
        what it imports for the first time, sees under it. Without any these are the modules of
        ``eventlet.green`` whose waits a timeout ends: os, select, socket, ssl and time.
    """
    patched_name = f"__patched_module_{module_name}"
    if patched_name in sys.modules:
        return sys.modules[patched_name]
    if not additional_modules:
        additional_modules = tuple(
            (name, importlib.import_module(f"osloxide.green.green.{name}")) for name in _REPLACED
        )
    elif not any(getattr(module, "__osloxide_differs__", True) for _, module in additional_modules):
        additional_modules = ()  # each of them is the ordinary one under another name
    if not additional_modules:
        module = importlib.import_module(module_name)
    else:
        saver = SysModulesSaver([name for name, _ in additional_modules])
        inner = [name for name in sys.modules if name.startswith(module_name + ".")]
        saver.save(module_name, *inner)
        for name, replacement in additional_modules:
            sys.modules[name] = replacement
        for name in (module_name, *inner):
            sys.modules.pop(name, None)
        try:
            module = importlib.import_module(module_name)
        finally:
            saver.restore()
    if new_globals is not None:
        for name in dir(module):
            if name not in ("__builtins__", "__file__", "__name__"):
                new_globals[name] = getattr(module, name)
    sys.modules[patched_name] = module
    return module


def import_patched(
    module_name: str, *additional_modules: Any, **kw_additional_modules: Any
) -> ModuleType:
    """Import *module_name*; see :func:`inject`."""
    return inject(module_name, None, *additional_modules, *kw_additional_modules.items())


def patch_function(func: Callable[..., Any], *additional_modules: Any) -> Callable[..., Any]:
    """*func*, during whose calls imports see *additional_modules*."""

    def patched(*args: Any, **kw: Any) -> Any:
        saver = SysModulesSaver()
        for name, module in additional_modules:
            saver.save(name)
            sys.modules[name] = module
        try:
            return func(*args, **kw)
        finally:
            saver.restore()

    return patched


def original(modname: str) -> ModuleType:
    """The standard library's module: the ordinary one."""
    name = f"__original_module_{modname}"
    module = sys.modules.get(name)
    if module is None:
        module = sys.modules[name] = importlib.import_module(modname)
    return module


def monkey_patch(**on: Any) -> None:
    """Accepted: nothing is changed.

    :raises TypeError: a module is named that eventlet does not know.
    """
    assert not ("__builtin__" in on and "builtins" in on)
    if "__builtin__" in on:
        on["builtins"] = on.pop("__builtin__")
    default_on = on.pop("all", None)
    for name in on:
        if name not in _ACCEPTED:
            raise TypeError(f"monkey_patch() got an unexpected keyword argument {name!r}")
    if default_on is None:
        default_on = True not in on.values()
    for name in _ACCEPTED:
        wanted = on.get(name, False if name in ("MySQLdb", "builtins") else default_on)
        requested[name] = requested.get(name, False) or bool(wanted)
    # nova imports __original_module_threading afterwards.
    for name in _ORIGINALS:
        original(name)
    if any(requested.values()):
        for listener in when_asked:
            listener()


def is_monkey_patched(module: Any) -> bool:
    """False: no module is ever changed."""
    del module
    return False


def slurp_properties(
    source: Any, destination: dict[str, Any], ignore: Iterable[str] = (), srckeys: Any = None
) -> None:
    """Copy the names of *source* to *destination*, without those of *ignore*."""
    names = source.__dict__.keys() if srckeys is None else srckeys
    destination.update(
        {
            name: getattr(source, name)
            for name in names
            if not (name.startswith("__") or name in ignore) and hasattr(source, name)
        }
    )
