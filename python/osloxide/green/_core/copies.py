"""Copies of standard modules that see the green modules in the place of those that they import.

Owns :func:`fill`, which runs the code of a standard module in the namespace of a module of
``eventlet.green``. The standard module itself stays as it is, and ``sys.modules`` is not touched:
the copy has an ``__import__`` of its own, so imports of other threads see nothing of it.

Rules: the import statement (Language Reference, 7.11: it calls ``__builtins__.__import__``);
eventlet.green for which modules are copies, and of what.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
from types import ModuleType
from typing import Any


def fill(namespace: dict[str, Any], name: str, modules: dict[str, ModuleType]) -> None:
    """Run the code of the standard module *name* in *namespace*.

    The copy has classes and variables of its own: what a program sets in it, such as
    ``_MAXHEADERS``, holds for the copy.

    :param modules: what the copy's imports find under the first part of an absolute name, in
        functions too. Submodules are those of what is found there.
    :raises ModuleNotFoundError: this Python has no such module.
    """
    spec = importlib.util.find_spec(name)
    loader: Any = None if spec is None else spec.loader
    if loader is None or not hasattr(loader, "get_code"):
        raise ModuleNotFoundError(f"this Python has no source of {name}", name=name)

    def find(
        wanted: str,
        its_globals: Any = None,
        its_locals: Any = None,
        names: Any = (),
        level: int = 0,
    ) -> Any:
        first, *rest = wanted.split(".")
        if level == 0 and first in modules:
            last = modules[first]
            for part in rest:
                last = _below(last, part)
            for part in names or ():
                # ``from a import b``, where ``b`` may be a module as well.
                if part != "*" and hasattr(last, "__path__"):
                    with contextlib.suppress(ModuleNotFoundError):
                        _below(last, part)
            # ``import a.b`` binds ``a``, of which ``b`` is an attribute.
            return last if names else modules[first]
        return builtins.__import__(wanted, its_globals, its_locals, names, level)

    namespace["__builtins__"] = vars(builtins) | {"__import__": find}
    exec(loader.get_code(name), namespace)  # noqa: S102 - the standard library's own code


def _below(package: Any, name: str) -> Any:
    """What *package* has under *name*; a submodule that nothing has imported yet is imported.

    :raises ModuleNotFoundError: it has neither.
    """
    if not hasattr(package, name):
        importlib.import_module(f"{package.__name__}.{name}")
    return getattr(package, name)
