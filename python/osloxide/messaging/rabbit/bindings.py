"""Bindings of a server's queues, made again where they went with their exchange.

Owns how often a listener that kombu connects has its queues bound again. RabbitMQ tells no server
that an operator has deleted an exchange, and with it all bindings: a fanout then reaches none, and
who sends it is not told either. The native listener does the same (``bind_again`` of
``src/amqp/client/subscriber.rs``). Declares no queue, and consumes nothing.

Rules: AMQP 0-9-1, ``exchange.delete`` and ``queue.bind``; ``Consumer.declare`` of
oslo_messaging/_drivers/impl_rabbit.py.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

LOG = logging.getLogger(__name__)

BIND_EVERY = 60.0
"""Seconds. Both commands change nothing where nothing is missing."""

ANSWER_WITHIN = 5.0
"""Seconds that the broker has for each answer, on the thread that polls."""


class Bindings:
    """Of the queues that one connection consumes."""

    def __init__(self) -> None:
        self._bound_at = time.monotonic()

    def bind_now_and_then(self, connection: Any) -> None:
        """Bind them, where it was not done for a while. On the thread that polls.

        :param connection: ``impl_rabbit.Connection``, which is connected.
        """
        now = time.monotonic()
        # Kombu's own transports have no broker.
        if now < self._bound_at + BIND_EVERY or not hasattr(connection.channel, "send_method"):
            return
        self._bound_at = now
        errors = (
            *connection.connection.channel_errors,
            *connection.connection.connection_errors,
        )
        connection.set_transport_socket_timeout(ANSWER_WITHIN)
        try:
            # What is refused closes the channel: not that by which requests are consumed.
            channel = connection.connection.channel()
            try:
                _bind(connection, channel)
            finally:
                # py-amqp opens a channel again that the broker has closed.
                with contextlib.suppress(*errors):
                    channel.close()
        except errors as error:
            LOG.debug("queues are not bound again: %s", error)
        finally:
            connection.set_transport_socket_timeout()


def _bind(connection: Any, channel: Any) -> None:
    queues = [consumer.queue for consumer in connection._consumers]
    queues = [queue for queue in queues if queue is not None and queue.exchange.name]
    for queue in queues:
        queue.exchange.declare(nowait=True, channel=channel)
        # One answer is waited for, which comes after any refusal.
        queue.queue_bind(nowait=queue is not queues[-1], channel=channel)
