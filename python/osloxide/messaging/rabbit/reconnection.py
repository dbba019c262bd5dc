"""How a connection that consumes comes back: to one host of the URL after the other.

Owns the attempts to connect again that ``oslo_messaging._drivers.impl_rabbit.Connection.consume``
needs. In stock two layers take the next host when a connection is lost, ``consume`` and kombu's
``ensure``, and a third one is taken when an attempt fails while the time of ``consume`` is over: a
millisecond here, up to 5 s in stock. With a URL of three hosts that is the same host each time, and
where it is the dead one the consumer stays away for as long as it is dead.
Here one attempt is made at one host, and its failure takes exactly the next one, also where no
time is left.
Never sends, and never decides what becomes of a message.
Rules: oslo_messaging/_drivers/impl_rabbit.py (``Connection.consume``, ``ensure_connection``);
kombu/connection.py (``ensure``, ``maybe_switch_next``); ``[oslo_messaging_rabbit]
rabbit_retry_interval``, ``rabbit_retry_backoff``, ``rabbit_interval_max``,
``kombu_reconnect_delay`` and ``kombu_reconnect_splay``.
"""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from types import ModuleType
from typing import Any

LOG = logging.getLogger(__name__)

LONGEST_PAUSE = 5.0
"""Seconds between two rounds over the hosts of the URL, at most. ``rabbit_interval_max`` is for
those who send: in stock a consumer begins to count again with each poll, of 5 s."""

SHORTEST_PAUSE = 0.1
"""The same at least, where the options say 0."""


class _Outage:
    """The time in which a connection is lost."""

    def __init__(self, lent: Any) -> None:
        self.failures = 0
        splay = max(0.0, getattr(lent, "kombu_reconnect_splay", 0.0))  # older releases lack it
        delay = max(0.0, lent.kombu_reconnect_delay) + random.uniform(0, splay)  # noqa: S311
        self._due: float = time.monotonic() + delay

    @property
    def left(self) -> float:
        """Seconds until the next attempt; 0 or less when it is due."""
        return self._due - time.monotonic()

    def fail(self, lent: Any) -> float:
        """Note that an attempt has failed; the seconds until the next one."""
        pause = 0.0
        if lent.connection.completes_cycle(self.failures):
            rounds = self.failures // max(1, len(lent.connection.alt))
            pause = float(lent.interval_start + rounds * lent.interval_stepping)
            pause = min(pause, max(lent.interval_start, lent.interval_max), LONGEST_PAUSE)
            pause = max(pause, SHORTEST_PAUSE)
        self.failures += 1
        self._due = time.monotonic() + pause
        return pause


def amend_connection(impl_rabbit: ModuleType) -> None:
    """Change ``oslo_messaging._drivers.impl_rabbit.Connection``."""
    cls = impl_rabbit.Connection
    consume, stop_consuming = cls.consume, cls.stop_consuming
    timed_out = impl_rabbit.rpc_common.Timeout
    unreachable = impl_rabbit.kombu.exceptions.OperationalError

    @functools.wraps(consume)
    def consume_connected(self: Any, timeout: float | None = None) -> None:
        if self.connection.connected:
            self.__dict__.pop("_osloxide_outage", None)
        else:
            ends = None if timeout is None else time.monotonic() + timeout
            with self._connection_lock:
                if not _reconnect(self, ends, timed_out, unreachable):
                    return
        consume(self, timeout)

    @functools.wraps(stop_consuming)
    def stop_at_once(self: Any) -> None:
        stop_consuming(self)
        _stopped(self).set()

    cls.consume, cls.stop_consuming = consume_connected, stop_at_once


def _stopped(lent: Any) -> threading.Event:
    """Set when *lent* is not to consume any more."""
    stopped: threading.Event = lent.__dict__.setdefault("_osloxide_stopped", threading.Event())
    return stopped


def _reconnect(
    lent: Any, ends: float | None, timed_out: type[Exception], unreachable: type[Exception]
) -> bool:
    """Connect *lent* again. At least one attempt is made, when it is due.

    :param ends: when no further attempt is to be made, by ``time.monotonic()``.
    :returns: False when it is not to consume any more.
    :raises timed_out: none has succeeded.
    """
    outage = lent.__dict__.get("_osloxide_outage")
    if outage is None:
        outage = lent._osloxide_outage = _Outage(lent)
    while not _stopped(lent).wait(max(0.0, outage.left)):
        if _attempt(lent, outage, unreachable):
            del lent._osloxide_outage
            return True
        if ends is not None and time.monotonic() >= ends:
            raise timed_out
    return False


def _attempt(lent: Any, outage: _Outage, unreachable: type[Exception]) -> bool:
    """Connect with one host, or take the next one.

    :raises Exception: no loss of a connection: a login or a queue was refused.
    """
    link = lent.connection
    if not outage.failures and link._connection is not None:
        link.maybe_switch_next()  # kombu has not noticed, and not taken another host
    # All consumers begin again.
    lent._new_tags = set(lent._consumers.values())
    try:
        link.collect()
        lent._set_current_channel(None)
        link.ensure_connection(max_retries=0)
        lent._set_current_channel(link.channel())
        lent.set_transport_socket_timeout()
    except Exception as error:
        host, port = link.hostname, link.port
        pause = outage.fail(lent)
        LOG.error(
            "[%s] AMQP server on %s:%s is unreachable: %s. Trying %s in %.1f seconds.",
            lent.connection_id,
            host,
            port,
            error,
            "the next host" if link.alt and len(link.alt) > 1 else "again",
            pause,
        )
        link.collect()
        link.maybe_switch_next()
        if isinstance(error, (unreachable, *link.recoverable_connection_errors)):
            return False
        raise
    LOG.info(
        "[%s] Reconnected to AMQP server on %s:%s", lent.connection_id, link.hostname, link.port
    )
    return True
