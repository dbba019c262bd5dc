"""Connections for sending that go away again after a burst.

Owns the sweep of oslo.messaging's connection pools. Stock looks for expired connections only when
somebody takes one, and lets them live for 20 minutes: a server that once answered many calls at a
time keeps a socket, a thread and the broker's memory for each. Here a thread looks while there are
more connections than the least that the pool keeps, and leaves when there are not.
Rules: oslo_messaging/_drivers/pool.py; ``conn_pool_min_size`` and ``conn_pool_ttl``.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from types import ModuleType
from typing import Any

from osloxide.threads import own

LOG = logging.getLogger(__name__)

STOCK_TTL = 1200
"""Default of ``conn_pool_ttl`` in seconds; an operator's value is kept."""

TTL = 60
"""Seconds that an unused connection lives here."""


def amend(pool: ModuleType) -> None:
    """Change ``oslo_messaging._drivers.pool.ConnectionPool``."""
    cls = pool.ConnectionPool
    init, put = cls.__init__, cls.put

    @functools.wraps(init)
    def init_swept(
        self: Any, conf: Any, max_size: int, min_size: int, ttl: int, *rest: Any
    ) -> None:
        init(self, conf, max_size, min_size, TTL if ttl == STOCK_TTL else ttl, *rest)
        self._osloxide_sweeps = 0  # the process in which a thread sweeps

    @functools.wraps(put)
    def put_and_sweep(self: Any, item: Any) -> None:
        put(self, item)
        with self._cond:
            sweeps_here = self._osloxide_sweeps == os.getpid()
            if sweeps_here or len(self._items) <= self._min_size:
                return
            self._osloxide_sweeps = os.getpid()
        try:
            own.start("osloxide-connections", functools.partial(_sweep, self))
        except RuntimeError:
            # No thread now: what is idle waits for the next connection that comes back.
            with self._cond:
                self._osloxide_sweeps = 0

    cls.__init__, cls.put = init_swept, put_and_sweep


def _sweep(pool: Any) -> None:
    pause = threading.Event()
    while True:
        pause.wait(max(1.0, pool._item_ttl / 2))
        with pool._cond:
            try:
                pool.expire()
            except Exception:  # of one connection that could not be closed: the rest is for later
                LOG.warning("an idle connection could not be closed", exc_info=True)
            if len(pool._items) <= pool._min_size:
                pool._osloxide_sweeps = 0
                return
