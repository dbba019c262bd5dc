"""A forked child begins without the message servers of its parent, and can start its own.

Owns the servers of oslo.messaging that this process has, and what becomes of them in a child. A
parent may launch workers and then start the same service itself. In a worker that is forked later,
in the place of one that ended, that server would be one that has been started: it would not
listen, and a stop would wait for a thread that the parent alone has. So it
has ended in the child, as after ``stop()`` and ``wait()``, and may be started there. What served in
the parent is neither used nor closed: the parent goes on with it. Starts and stops no server.

Rules: oslo_messaging/server.py; fork(2). Looping calls do the same (osloxide.loopingcall).
"""

from __future__ import annotations

import os
import threading
from types import ModuleType
from typing import Any

from osloxide.threads import identity, inherited

_servers: identity.WeakIdentitySet[Any] = identity.WeakIdentitySet()


def register(server: ModuleType) -> None:
    """Enter each ``oslo_messaging.server.MessageHandlingServer`` that is made from now on."""
    inherited.enter_instances(server.MessageHandlingServer, _servers)


def _end_all_in_child() -> None:
    for server in list(_servers):
        # Another thread may have held it.
        server._reset_lock = threading.Lock()
        states = server._states
        inherited.keep(states)
        server.reset_states()
        if states["start"]._state != states["start"].INIT:
            _end_in_child(server)


def _end_in_child(server: Any) -> None:
    inherited.keep(server.listener, server._work_executor)
    server.listener = server._work_executor = None
    server._started = False
    for task in server._states.values():
        task._state = task.COMPLETE


os.register_at_fork(after_in_child=_end_all_in_child)
