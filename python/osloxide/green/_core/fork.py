"""A forked child has the greenlet that forks: what becomes of the others, and of what they held.

Owns which greenlets have a thread, and what the child is told of them: they have ended. So nothing
is handed to one that waits, who awaits their result gets GreenletExit, and the locks that they held
by a ``with`` statement are free. Frees no lock of ``threading``. Rules: fork(2), which leaves the
calling thread alone; eventlet, in whose child the others would go on and give their locks back.
"""

from __future__ import annotations

import os
from typing import Any

from osloxide.green._core import outsiders
from osloxide.green._core import turns as _turns
from osloxide.green._core.interruption import withdraw
from osloxide.green._core.turns import DEAD, TurnTaker, local

living: set[TurnTaker] = set()
"""Those on threads of this package, from their beginning to their end."""


def _end_others() -> None:
    me = local.carrier
    left, _turns.left_behind = _turns.left_behind, []
    unborn = [found for entry in left if (found := _unborn(entry)) is not None]
    others = {*living, *outsiders.all_standing(), *unborn}
    living.clear()
    for other in others:
        if other is me or other._state == DEAD:
            continue
        withdraw(other)
        other._pending = other._killers = None
        held, other._held = other._held, ()
        for lock in held:
            lock._free_in_child()
        other._end_in_child()
    if me is not None:
        living.add(me)


def _unborn(entry: Any) -> TurnTaker | None:
    """The greenlet that *entry*, of the queue or of the clock, was to begin."""
    if isinstance(entry, TurnTaker):
        return entry
    cb = getattr(entry, "tpl", (None,))[0]
    target = getattr(cb, "__self__", None)
    return target if isinstance(target, TurnTaker) and target._state == _turns.NEW else None


os.register_at_fork(after_in_child=_end_others)
