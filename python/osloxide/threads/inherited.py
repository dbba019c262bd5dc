"""What a forked child inherits of threads that it does not have.

Owns references to it, which stay until the child ends, and what takes its place. Uses none of it. A
destructor in the child would act on what the parent goes on using: it says goodbye on a socket that
both have, or runs the ``finally`` blocks of a coroutine.

The data that CPython keeps for each thread are src/python/thread_data.rs's.
"""

from __future__ import annotations

import functools
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
