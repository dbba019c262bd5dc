"""What other threads have the main thread do while it waits here.

Owns the queue of such functions, and how the main thread leaves a wait for one and comes back. A
function runs with a greenlet of its own: its waits are not those of the code that waits below it,
whose wait may come to its end meanwhile. Rules: osloxide.threads.main_thread.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable

from osloxide.green._core import turns as _turns
from osloxide.green._core.turns import local, lock

_errands: collections.deque[Callable[[], object]] = collections.deque()

_is_running = False
"""Whether the main thread is in one."""


def add(function: Callable[[], object]) -> None:
    """Let the main thread call *function*, which must not raise, now or at its next wait here."""
    with lock:
        _errands.append(function)
        main = _turns.main
        if main is not None and main._state == _turns.PARKED and main._turnstile.locked():
            main._turnstile.release()


def take_back(function: Callable[[], object]) -> bool:
    """Let the main thread not call *function*.

    :returns: False when it has begun to, or calls another one first.
    """
    with lock:
        if _is_running or function not in _errands:
            return False
        _errands.remove(function)
        return True


def run_all() -> None:
    """On the main thread, in its wait: call what is there."""
    global _is_running
    me, current, main = local.carrier, local.current, _turns.main
    while True:
        with lock:
            if not _errands:
                return
            function = _errands.popleft()
            was_running, _is_running = _is_running, True
        local.carrier = local.current = None
        try:
            function()
        finally:
            with lock:
                _is_running = was_running
                _end(local.carrier)
                local.carrier, local.current, _turns.main = me, current, main


def _end(carrier: _turns.TurnTaker | None) -> None:
    """The greenlet that a function had for itself, if it has waited here, ends with it."""
    if carrier is not None:
        carrier._state = _turns.DEAD
        _turns.let_go(carrier)


def are_there() -> bool:
    """Whether anything waits for the main thread."""
    return bool(_errands)


def _forget() -> None:
    """A forked child calls nothing that its parent was asked for."""
    global _is_running
    _errands.clear()
    _is_running = False


os.register_at_fork(after_in_child=_forget)
