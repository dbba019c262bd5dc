"""A forked child begins with database connections of its own.

Owns the engines of SQLAlchemy of this process, and what becomes of their pools in a child. A child
inherits the idle connections of its parent. SQLAlchemy asks one whether it lives
(``pool_pre_ping``) before oslo.db sees that the connection is another process's, and closes it then
with a word to the server: the parent, which goes on using it, loses it in the middle of a query. A
worker that is forked beside services in the same process, or in the place of one that was killed,
meets this. What the child inherits is neither used nor closed.

Rules: SQLAlchemy, "Using Connection Pools with Multiprocessing or os.fork()", which asks programs
for ``Engine.dispose(close=False)`` in the child; 1.4 before 1.4.33 has no such argument.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from osloxide.activation.amendments import relies_on
from osloxide.threads import identity, inherited

_engines: identity.WeakIdentitySet[Any] = identity.WeakIdentitySet()


@relies_on("Engine.dispose")
def amend(base: ModuleType) -> None:
    """Change ``sqlalchemy.engine.base.Engine``."""
    engine: Any = base.Engine
    new = engine.__new__

    # Not __init__: create_engine() reads the names of its arguments from its code.
    def new_entered(cls: Any, *arguments: Any, **keywords: Any) -> Any:
        made = new(cls) if new is object.__new__ else new(cls, *arguments, **keywords)
        _engines.add(made)
        return made

    engine.__new__ = new_entered


def _begin_in_child() -> None:
    engines = list(_engines)
    if not engines:
        return
    from sqlalchemy.pool import QueuePool

    begun: list[Any] = []
    for engine in engines:
        # None while another thread makes the engine; engines with other options share a pool.
        pool = getattr(engine, "pool", None)
        # Other pools hold a database in memory, or one connection for each thread, or none.
        if isinstance(pool, QueuePool) and not any(one is pool for one in begun):
            inherited.keep(pool)
            engine.pool = pool.recreate()
            begun.append(engine.pool)


os.register_at_fork(after_in_child=_begin_in_child)
