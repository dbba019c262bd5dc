"""The main thread, lent to others while it waits here.

Owns the way of a function there and of its result back. Rules: osloxide.threads.main_thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from osloxide.green import event
from osloxide.green._core import errands
from osloxide.green._core import turns as _turns
from osloxide.threads import main_thread

BEGINS_WITHIN = 5.0
"""Seconds that the main thread gets to arrive at a wait here."""


def lend(function: Callable[[], Any]) -> Any:
    """Run *function* on the main thread, now or at its next wait here; wait for it.

    :returns: what it returns; what it raises is raised. A kill ends the wait and not the function.
    :raises NotLentError: the main thread has never waited here, or does not within 5 s.
    """
    if _turns.main is None:
        raise main_thread.NotLentError("which has never waited in anything of eventlet's")
    begun, done = event.Event(), event.Event()

    def errand() -> None:
        begun.send(True)
        try:
            result = function()
        except BaseException as failure:  # noqa: BLE001 - the caller's
            done.send_exception(failure)
        else:
            done.send(result)

    errands.add(errand)
    # One that comes after another may have to wait for long: that of a launcher ends with it.
    if begun.wait(BEGINS_WITHIN) is None and errands.take_back(errand):
        raise main_thread.NotLentError(
            f"which has not waited in anything of eventlet's for {BEGINS_WITHIN:g} s"
        )
    return done.wait()
