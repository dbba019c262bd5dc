"""A forked child begins with connections of its own.

Owns the RabbitMQ drivers and connection pools of this process, and what becomes of them in a child.
A parent of workers may make RPC calls, as designate's does to tell that it lives; a worker that is
forked later, in the place of one that was killed, would write into the parent's sockets and wait
for replies that the parent alone reads. What the child inherits is neither used nor closed: the
parent goes on with it, and its locks may have been held at that moment.
Rules: oslo_messaging/_drivers/pool.py and amqpdriver.py; fork(2).
"""

from __future__ import annotations

import collections
import os
import threading
from types import ModuleType
from typing import Any

from osloxide.threads import identity, inherited

_pools: identity.WeakIdentitySet[Any] = identity.WeakIdentitySet()
_drivers: identity.WeakIdentitySet[Any] = identity.WeakIdentitySet()


def amend_pool(pool: ModuleType) -> None:
    """Change ``oslo_messaging._drivers.pool.ConnectionPool``."""
    inherited.enter_instances(pool.ConnectionPool, _pools)


def amend_driver(amqpdriver: ModuleType) -> None:
    """Change ``oslo_messaging._drivers.amqpdriver.AMQPDriverBase``."""
    inherited.enter_instances(amqpdriver.AMQPDriverBase, _drivers)


def _begin_in_child() -> None:
    for pool in list(_pools):
        inherited.keep(pool._items, pool._cond)
        pool._cond, pool._items = threading.Condition(), collections.deque()
        pool._current_size = 0
    for driver in list(_drivers):
        inherited.keep(driver._reply_q_conn, driver._waiter, driver._reply_q_lock)
        # The connection on which the parent's servers reply (osloxide.messaging.rabbit.replies).
        inherited.keep(driver.__dict__.pop("_osloxide_replies", None))
        driver._reply_q = driver._reply_q_conn = driver._waiter = None
        driver._reply_q_lock = threading.Lock()


os.register_at_fork(after_in_child=_begin_in_child)
