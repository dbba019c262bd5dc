"""A forked child begins with the named locks of oslo.concurrency free.

Owns the collections of locks within a process of ``oslo_concurrency.lockutils``, and what becomes
of them in a child. A thread of the parent that holds one is not in the child, where nobody would
give it back. A lock that the calling thread holds at the fork is free for other threads of the
child as well: a semaphore does not tell whose it is. Locks between processes are files, which no
child inherits.

Rules: oslo_concurrency.lockutils (``Semaphores``, ``FairLocks``), whose constructors take nothing.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from osloxide.activation.amendments import relies_on
from osloxide.threads import identity, inherited

_collections: identity.WeakIdentitySet[Any] = identity.WeakIdentitySet()


@relies_on("Semaphores.get", "FairLocks.get", "_semaphores", "_fair_locks")
def amend(module: ModuleType) -> None:
    """Change ``oslo_concurrency.lockutils``."""
    lockutils: Any = module
    _collections.add(lockutils._semaphores)
    _collections.add(lockutils._fair_locks)
    inherited.enter_instances(lockutils.Semaphores, _collections)
    inherited.enter_instances(lockutils.FairLocks, _collections)


def _begin_in_child() -> None:
    for collection in _collections:
        collection.__init__()


os.register_at_fork(after_in_child=_begin_in_child)
