"""Who serves the names ``eventlet`` and ``greenlet``: osloxide.green, or the real libraries.

Owns the operator's switch, the table of names and the refusal of a process in which the real
eventlet came first. Imports nothing of either. Loaded by the import hook, so it imports nothing
that the interpreter has not loaded already.

Rules: PEP 451 (module specs); docs/eventlet.md.
"""

from __future__ import annotations

import sys

from osloxide.activation import default_backend
from osloxide.exceptions import ActivationError

# Type checkers know the name; importing it would cost every interpreter another 5 ms.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VARIABLE = "OSLOXIDE_EVENTLET"
"""``native`` (or unset): ``import eventlet`` gets osloxide.green; ``real``: the real library."""

ROOTS = {"eventlet": "osloxide.green", "greenlet": "osloxide.green.greenlet"}
"""The names, each with what serves it."""

_EXPOSED = "osloxide.green._core.exposed"
"""Gives a module the names that eventlet's module imports; found by name, as amendments are."""

_LINKED = "gevent"
"""A library whose compiled modules are linked to greenlet's C interface."""

is_native = False
"""Whether osloxide serves them in this process."""


def wants_native(environ: Mapping[str, str]) -> bool:
    """Whether the operator leaves the names to osloxide.

    :raises ActivationError: the variable has another value than the two that it knows.
    """
    value = environ.get(VARIABLE) or "native"
    if value not in ("native", "real"):
        raise ActivationError(
            f"{VARIABLE} is {value!r}, which says neither who serves eventlet nor who does not; "
            "set it to 'native' (osloxide serves it on native threads) or to 'real' (the real "
            "eventlet, which osloxide then refuses to let monkey-patch), or unset it"
        )
    return value == "native"


def serve() -> None:
    """Serve the names from osloxide from now on.

    :raises ActivationError: one of them is imported already, from elsewhere.
    """
    global is_native
    for root, real in ROOTS.items():
        module = sys.modules.get(root)
        if root == "eventlet" and module is not None and module is not sys.modules.get(real):
            place = getattr(module, "__file__", "an unknown place")
            raise ActivationError(
                f"osloxide cannot serve {root}: it is already imported from {place}; start the "
                f"service with 'osloxide run', or leave it to the real one with {VARIABLE}=real"
            )
    is_native = True


def replacement(fullname: str) -> str | None:
    """What serves the module *fullname*; None when that is not osloxide's."""
    if not is_native:
        return None
    root, _, rest = fullname.partition(".")
    if root in ROOTS:
        return f"{ROOTS[root]}.{rest}" if rest else ROOTS[root]
    return fullname if fullname.startswith("osloxide.green") else None


_GREENLETS = (
    "osloxide.green._core.greenlets",
    "osloxide.green._core.interruption",
    ROOTS["greenlet"],
)
"""Modules with classes of greenlet's own."""


def adopt(module: Any) -> None:
    """Finish a module of osloxide.green, whose body has just run.

    Its classes say that they are eventlet's or greenlet's: programs compare these names, and pickle
    by them. It gets the names that eventlet's module has by importing them. Its ``monkey_patch()``
    tells who chooses the type of oslo.service's backend.
    """
    real = module.__name__
    if real == default_backend.PATCHER:
        module.when_asked.append(default_backend.follow_monkey_patching)
    if real in _GREENLETS:
        name, public = "greenlet", ("greenlet", "GreenletExit", "error")
    else:
        name, public = "eventlet" + real.removeprefix("osloxide.green"), None
        sys.modules.setdefault(name, module)
    if not real.startswith("osloxide.green._core"):
        from importlib import import_module

        import_module(_EXPOSED).complete(module)
    for value in list(vars(module).values()):
        ours = isinstance(value, type) and value.__module__ == real
        if ours and (public is None or value.__name__ in public):
            value.__module__ = name


def refuse(fullname: str) -> ModuleNotFoundError:
    """The error for a module of eventlet or greenlet that osloxide does not have."""
    fullname = fullname.replace("osloxide.green", "eventlet")
    root = fullname.partition(".")[0]
    return ModuleNotFoundError(
        f"{fullname} is not served: osloxide serves {root} from native threads and has no such "
        f"module; where the real {root} has it, start the service with {VARIABLE}=real",
        name=fullname,
    )


def refuses(fullname: str) -> bool:
    """Whether the module *fullname* is of a library that cannot work beside osloxide's greenlet."""
    if fullname != _LINKED or not is_native:
        return False
    module = sys.modules.get("greenlet")
    return module is None or module is sys.modules.get(ROOTS["greenlet"])


def refuse_linked() -> ImportError:
    """The error for a library whose compiled modules need the real greenlet.

    Libraries that look whether it is there expect an ImportError; its own error would be a
    ValueError about the size of a class.
    """
    return ImportError(
        f"{_LINKED} is not served: its compiled modules need the real greenlet, and osloxide "
        f"serves that name from native threads; start the service with {VARIABLE}=real",
        name=_LINKED,
    )
