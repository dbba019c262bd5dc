"""What a forked child inherits of threads that it does not have.

Owns references to it, which stay until the child ends, and what takes its place. Uses none of it. A
destructor in the child would act on what the parent goes on using: it says goodbye on a socket that
both have, or runs the ``finally`` blocks of a coroutine.

The data that CPython keeps for each thread are src/python/thread_data.rs's. What another thread was
importing is imported once more: CPython renews its lock of all imports in a child and none of those
of single modules, which it has in ``sys.modules`` as far as they have come.

Rules: importlib._bootstrap of CPython 3.11 to 3.15 (``_module_locks``, ``__spec__._initializing``).
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import threading
from typing import Any

from osloxide.threads import identity

_kept: list[object] = []


def keep(*inherited: object) -> None:
    """Let nothing of *inherited* be destroyed in this process. For hooks that run after a fork."""
    _kept.extend(inherited)


def enter_instances(cls: Any, register: identity.WeakIdentitySet[Any]) -> None:
    """Enter into *register* each instance of *cls* that is made from now on, for such hooks."""
    init = cls.__init__

    @functools.wraps(init)
    def init_entered(self: Any, *arguments: Any, **keywords: Any) -> None:
        init(self, *arguments, **keywords)
        register.add(self)

    cls.__init__ = init_entered


def event_of_the_past() -> threading.Event:
    """One that is set, in place of an inherited one whose lock may be held for ever."""
    event = threading.Event()
    event.set()
    return event


def _forget_imports() -> None:
    me = threading.get_ident()
    bootstrap: Any = importlib._bootstrap
    locks: dict[str, Any] = getattr(bootstrap, "_module_locks", {})
    for name, reference in list(locks.items()):
        lock = reference()
        if getattr(lock, "owner", None) in (None, me):
            continue
        keep(lock)
        locks.pop(name, None)
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if getattr(spec, "_initializing", False):
            keep(sys.modules.pop(name))


os.register_at_fork(after_in_child=_forget_imports)
