"""Requests that a listener has taken from RabbitMQ and that no thread has picked up yet.

Owns how long the broker may wait for their acknowledgement: it closes a channel on which one is
overdue (``consumer_timeout``). Acknowledges those that have waited for long, as many as may be
fetched from a queue and no more, and learns from a channel that was closed over one. Reads nothing
from the broker.

Rules: RabbitMQ's consumer acknowledgement timeout; docs/rpc.md.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from osloxide.messaging.rabbit.listener import PacedMessage

LOG = logging.getLogger(__name__)

#: Seconds that a request waits for a thread before it is acknowledged into the process: a sixth of
#: RabbitMQ's default ``consumer_timeout``, after which the broker closes the channel. Less where a
#: broker has closed one sooner.
LONGEST_WAIT = 300.0

#: Returns to a quorum queue after which RabbitMQ 4 drops a message, where no other limit is set.
_DELIVERY_LIMIT = 20


class Patience:
    """How long a request may wait for a thread, and how many are acknowledged while they do."""

    def __init__(self, most: int) -> None:
        """
        :param most: requests that may be the process's own while no thread runs them. Each makes
            room for another one to be fetched; without a bound the queue would move in here.
        """
        self.longest = LONGEST_WAIT
        self.most = most
        self._is_exhausted = False

    def notice_early(self, early: int) -> None:
        """Say once that no more are acknowledged before they run.

        :param early: how many are now.
        """
        was_exhausted, self._is_exhausted = self._is_exhausted, early >= self.most
        if self._is_exhausted and not was_exhausted:
            LOG.warning(
                "%d requests are acknowledged and wait for a thread; no more are, so that the "
                "broker keeps the others and closes the channel after its consumer_timeout, which "
                "loses none: look at what the threads wait for, or raise "
                "executor_thread_pool_size",
                early,
            )

    def longest_sleep(self, longest: float) -> float:
        """Seconds after which to look again where requests may wait, at most *longest*."""
        return min(longest, self.longest / 3)

    def notice_closed(self, reason: str, waited: float | None) -> None:
        """Wait less where the broker has closed the channel because a request waited too long.

        :param reason: the broker's.
        :param waited: seconds that the first request had waited then which no thread had picked up.
        """
        LOG.warning("the broker closed the channel of a listener: %s", reason)
        if "timed out" not in reason or waited is None:
            return
        self.longest = max(0.5, min(self.longest, waited / 3))
        LOG.warning(
            "a request had waited %.0f s for a thread when the channel was closed; "
            "from now on they are acknowledged after %.1f s (raise executor_thread_pool_size, or "
            "the broker's consumer_timeout)",
            waited,
            self.longest,
        )


class Waiting:
    """In the order of their arrival."""

    def __init__(self, most: int) -> None:
        """
        :param most: see :class:`Patience`.
        """
        self._lock = threading.Lock()
        self._requests: dict[PacedMessage, None] = {}
        #: Those that were acknowledged.
        self._early: set[PacedMessage] = set()
        self._patience = Patience(most)

    def add(self, incoming: PacedMessage) -> None:
        """*incoming* has arrived."""
        incoming.arrived = time.monotonic()
        with self._lock:
            self._requests[incoming] = None

    def remove(self, incoming: PacedMessage) -> None:
        """A thread picks *incoming* up."""
        with self._lock:
            self._requests.pop(incoming, None)
            self._early.discard(incoming)

    def longest_sleep(self, longest: float) -> float:
        """Seconds after which to look again, at most *longest*."""
        return self._patience.longest_sleep(longest) if self._requests else longest

    def acknowledge_old(self) -> None:
        """Acknowledge what has waited for long, before the broker closes the channel over it.

        Such a request is the process's from now on, as all are in stock oslo.messaging: a stop
        waits for it, and a kill loses it.
        """
        limit = time.monotonic() - self._patience.longest
        while True:
            self._patience.notice_early(len(self._early))
            with self._lock:
                incoming = next(iter(self._requests), None)
                if incoming is None or incoming.arrived > limit:
                    return
                if len(self._early) >= self._patience.most:
                    return
                del self._requests[incoming]
                # What cannot be acknowledged is delivered again, and known then.
                with contextlib.suppress(Exception):
                    incoming.is_acknowledged = incoming.origin.acknowledge()
                if incoming.is_acknowledged:
                    self._early.add(incoming)
            if incoming.is_acknowledged:
                LOG.warning(
                    "message %s has waited %.0f s for a thread; acknowledged before it runs",
                    incoming.msg_id,
                    time.monotonic() - incoming.arrived,
                )

    def notice_closed(self, reason: str) -> None:
        """See :meth:`Patience.notice_closed`."""
        with self._lock:
            oldest = next(iter(self._requests), None)
            # The broker delivers them again.
            for incoming in [it for it in self._requests if it.origin.epoch.is_over]:
                del self._requests[incoming]
        waited = None if oldest is None else time.monotonic() - oldest.arrived
        self._patience.notice_closed(reason, waited)


def warn_near_limit(returns: int, limit: int | None) -> None:
    """Tell of a request that the broker may drop soon.

    :param returns: how often it was returned to its queue.
    :param limit: ``rabbit_quorum_delivery_limit``; None or 0 for RabbitMQ's own.
    """
    limit = limit or _DELIVERY_LIMIT
    if returns >= limit / 2:
        LOG.warning(
            "a request was returned to its queue %d times, and is dropped at %d if the queue "
            "has that limit: look for servers that lose their connections",
            returns,
            limit,
        )
