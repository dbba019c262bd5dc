"""The client's thread that waits for replies: asleep on its socket, awake when it has to end.

Owns the loop of ``oslo_messaging._drivers.amqpdriver.ReplyWaiter``. Stock polls, for up to 5 s at a
time, so that closing a transport takes as long. Reads nothing itself: kombu does.
Rules: oslo_messaging/_drivers/amqpdriver.py (``ReplyWaiter.poll``).
"""

from __future__ import annotations

import functools
import logging
from types import ModuleType
from typing import Any

from osloxide.activation.import_hook import refuse_if_monkey_patched
from osloxide.messaging.rabbit.wakeup import Wakeup

LOG = logging.getLogger(__name__)

LONGEST_SLEEP = 15.0
"""Seconds after which a silent connection is looked at; sooner where heartbeats are frequent."""


AFTER_ERROR = 0.25
"""Seconds until the next attempt to read, so that what does not pass fills no disk with its log."""

POLL_EVERY = 0.01
"""Seconds between two looks at a transport of kombu's own, ``kombu+memory://`` for one."""


def amend(amqpdriver: ModuleType) -> None:
    """Change ``oslo_messaging._drivers.amqpdriver.ReplyWaiter``."""
    cls = amqpdriver.ReplyWaiter
    init, stop, poll_stock = cls.__init__, cls.stop, cls.poll
    timeout_error = amqpdriver.rpc_common.Timeout

    @functools.wraps(init)
    def init_with_wakeup(self: Any, *arguments: Any, **keywords: Any) -> None:
        refuse_if_monkey_patched()  # an error of the call: the thread could not sleep
        self._osloxide_wakeup = Wakeup()  # the thread starts in there
        init(self, *arguments, **keywords)

    @functools.wraps(stop)
    def stop_at_once(self: Any) -> None:
        self._thread_exit_event.set()
        self._osloxide_wakeup.wake()
        stop(self)
        self._osloxide_wakeup.close()

    @functools.wraps(poll_stock)
    def poll_asleep(self: Any) -> None:
        lent = self.conn.connection
        if not hasattr(lent, "heartbeat_timeout_threshold"):
            poll_stock(self)  # another driver's connection
            return
        while not self._thread_exit_event.is_set():
            try:
                _sleep(self._osloxide_wakeup, lent)
                if not self._thread_exit_event.is_set():
                    self.conn.consume(timeout=0.001)
            except timeout_error:
                continue
            except Exception:
                LOG.exception("Failed to process incoming message, retrying..")
                self._thread_exit_event.wait(AFTER_ERROR)

    cls.__init__, cls.stop, cls.poll = init_with_wakeup, stop_at_once, poll_asleep


def _sleep(wakeup: Wakeup, lent: Any) -> None:
    """Sleep until there is something to read, or the connection has to be looked at."""
    kombu_connection = lent.connection
    if kombu_connection is None or not kombu_connection.connected or lent._new_tags:
        return
    transport = getattr(kombu_connection._connection, "transport", None)
    sock = getattr(transport, "sock", None)
    seconds = LONGEST_SLEEP
    if lent.heartbeat_timeout_threshold > 0:
        rate = max(1, lent.heartbeat_rate)
        seconds = min(seconds, lent.heartbeat_timeout_threshold / rate / 2)
    if sock is None:  # a transport of kombu's own: nothing to sleep on
        seconds = min(seconds, POLL_EVERY)
    wakeup.wait([sock], seconds)
