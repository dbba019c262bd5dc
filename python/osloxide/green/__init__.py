"""eventlet's names on native threads: what ``import eventlet`` gets under ``osloxide run``.

Its modules have the names of eventlet's and keep their interfaces, semantics and errors. What code
may rely on, and where it differs from green threads, is in docs/eventlet.md. Never imports the real
eventlet or greenlet.
"""

from __future__ import annotations

from osloxide.green import (
    convenience,
    event,
    greenpool,
    greenthread,
    patcher,
    queue,
    semaphore,
    support,
    timeout,
)
from osloxide.green._core.greenlets import getcurrent
from osloxide.green._version import __version__ as __version__

connect = convenience.connect
listen = convenience.listen
serve = convenience.serve
StopServe = convenience.StopServe
wrap_ssl = convenience.wrap_ssl

Event = event.Event

GreenPool = greenpool.GreenPool
GreenPile = greenpool.GreenPile

sleep = greenthread.sleep
spawn = greenthread.spawn
spawn_n = greenthread.spawn_n
spawn_after = greenthread.spawn_after
kill = greenthread.kill

import_patched = patcher.import_patched
monkey_patch = patcher.monkey_patch

Queue = queue.Queue

Semaphore = semaphore.Semaphore
CappedSemaphore = semaphore.CappedSemaphore
BoundedSemaphore = semaphore.BoundedSemaphore

Timeout = timeout.Timeout
with_timeout = timeout.with_timeout
wrap_is_timeout = timeout.wrap_is_timeout
is_timeout = timeout.is_timeout

TimeoutError = support.wrap_deprecated("TimeoutError", "Timeout")(Timeout)
exc_after = support.wrap_deprecated("exc_after", "greenthread.exc_after")(greenthread.exc_after)
call_after_global = support.wrap_deprecated("call_after_global", "greenthread.call_after_global")(
    greenthread.call_after_global
)


class EventletDeprecationWarning(Warning):
    """eventlet's warning about itself; not given here."""


__all__ = [
    "BoundedSemaphore",
    "CappedSemaphore",
    "Event",
    "EventletDeprecationWarning",
    "GreenPile",
    "GreenPool",
    "Queue",
    "Semaphore",
    "StopServe",
    "Timeout",
    "connect",
    "getcurrent",
    "import_patched",
    "is_timeout",
    "kill",
    "listen",
    "monkey_patch",
    "serve",
    "sleep",
    "spawn",
    "spawn_after",
    "spawn_n",
    "with_timeout",
    "wrap_is_timeout",
    "wrap_ssl",
]
