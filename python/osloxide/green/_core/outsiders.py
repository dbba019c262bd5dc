"""Threads that this package did not start, as far as they wait here: how another thread ends one.

Owns which greenlet stands for such a thread, and the exception that ends it in a wait, as
``kill()`` ends a greenthread; code of it that computes is not interrupted.
Neither starts nor awaits one: thread groups do, which know this by :mod:`osloxide.threads.stopping`
alone. Rules: eventlet.greenthread for ``kill()``.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

from osloxide.green._core import turns as _turns
from osloxide.green._core.interruption import GreenletExit, Interruption, interrupt
from osloxide.green._core.turns import RUNNING, TurnTaker, lock
from osloxide.green._core.waits import current_carrier, hold, yield_turn
from osloxide.threads import identity, stopping

UNHEARD_AFTER = 2.0
"""Seconds that a thread which does not wait here gets to arrive at such a wait."""

_standing: identity.WeakIdentityDict[threading.Thread, TurnTaker] = identity.WeakIdentityDict()


def enter(me: TurnTaker) -> None:
    """*me* stands for the calling thread from now on."""
    thread = threading.current_thread()
    with lock:
        _standing[thread] = me
        if stopping.is_asked(thread) and not me._pending:
            # Its group was stopped before it waited here for the first time.
            me._pending = collections.deque([Interruption(GreenletExit())])


def all_standing() -> list[TurnTaker]:
    """The greenlets of such threads, and of the main thread; also of some that have ended."""
    return [standing for thread in _standing if (standing := _standing.get(thread)) is not None]


def standing_for(thread: threading.Thread) -> TurnTaker | None:
    """Who takes turns on *thread*; None when it has never waited here, or has ended."""
    with lock:
        standing = _standing.get(thread)
    return standing if standing and thread.is_alive() else None


def end(thread: threading.Thread, on_unheard: Callable[[], object]) -> bool:
    """See :func:`osloxide.threads.stopping.end`.

    The caller goes on when *thread* has ended or waits again, as that of ``kill()`` does.

    :raises GreenletExit: *thread* is the calling one.
    """
    target = standing_for(thread)
    if target is None:
        return False
    me = current_carrier()
    if target is me:
        raise GreenletExit
    current = _turns.local.current
    # A signal handler may call in the midst of a wait, and callbacks of the hub never wait.
    may_wait = me._state == RUNNING and not (current is not None and current._is_hub)
    if may_wait:
        hold()
    entry = Interruption(GreenletExit())

    def look() -> None:
        if not entry.called:
            on_unheard()

    with lock:
        interrupt(target, entry.exception, entry, front=True, computes=False)
        if not entry.called:
            _turns.clock.call_later(UNHEARD_AFTER, look)
    if may_wait:
        yield_turn()
    return True


stopping.serve(end, GreenletExit)
