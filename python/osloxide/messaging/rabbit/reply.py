"""One reply on its way to a client, and the slow way of sending it.

Owns what is sent to which queue, and how often that was attempted. The slow way is oslo.messaging's
own: a connection of the driver's pool, on which the thread waits for the broker. What the reply
contains is oslo.messaging's business.
Imports oslo.messaging: to be imported after it, by what amends it.
Rules: oslo_messaging/_drivers/amqpdriver.py (``AMQPIncomingMessage.reply``).
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import oslo_messaging
from oslo_messaging._drivers import amqp, common

from osloxide.messaging.rabbit import errors

LOG = logging.getLogger(__name__)

REFUSED = "is refused by the broker"
"""By which the error in the place of a reply is known, when it is refused as well."""


class Reply:
    """One reply on its way."""

    __slots__ = (
        "_deadline",
        "_hindrance",
        "envelope",
        "incoming",
        "is_stranded",
        "queue",
        "was_attempted",
    )

    def __init__(self, incoming: Any, queue: str, envelope: Any) -> None:
        """
        :param incoming: the request, an ``AMQPIncomingMessage``.
        :param queue: the client's.
        :param envelope: what is sent, as oslo.messaging made it.
        """
        self.incoming = incoming
        self.queue = queue
        self.envelope = envelope
        self._deadline: float | None = None
        self._hindrance: Exception | None = None
        self.is_stranded = False
        """It has no connection: its own was lost, or there was none. Its queue may be there."""
        self.was_attempted = False
        """Once more, after what brought it to the late ones."""

    def attempt(self) -> bool:
        """Send it as oslo.messaging does: wait for the broker, as long as that is away.

        A reply that the broker refuses for good is replaced by an error, and counts as sent.

        :returns: False when there is no such queue, or the connection was lost while it was made:
            then oslo.messaging does not try again.
        """
        driver = self.incoming.listener.driver
        try:
            with driver._get_connection(common.PURPOSE_SEND) as connection:
                connection.direct_send(self.queue, self.envelope)
        except (
            oslo_messaging.MessageUndeliverable,
            amqp.AMQPDestinationNotFound,
        ):
            self._hindrance = None
            return False
        except Exception as error:  # noqa: BLE001  (kombu's transport raises many)
            refused = errors.refusal(error)
            if refused is not None:
                self._give_up(refused)
                return True
            self._hindrance = error
            return False
        return True

    def _give_up(self, refused: str) -> None:
        """Replace it by an error, unless it is that error."""
        incoming = self.incoming
        is_error = getattr(incoming, "is_refused", False)
        incoming.is_refused = True
        refuse(incoming, len(str(self.envelope)), refused, is_error=is_error)

    def is_settled(self) -> bool:
        """Attempt it once more; abandoned when that has been of no use for too long.

        A stranded one is kept for as long as there is no broker.
        """
        incoming = self.incoming
        is_wanted = incoming._obsolete_reply_queues.reply_q_valid(self.queue, incoming.msg_id)
        if not is_wanted:
            return True
        if self.is_stranded:
            return bool(incoming.listener.replies.send_stranded(self))
        if self.attempt():
            return True
        self.was_attempted = True
        seconds = incoming.listener.driver.missing_destination_retry_timeout
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + seconds
        if now < self._deadline:
            return False
        if self._hindrance is None:  # the client is gone
            incoming._obsolete_reply_queues.add(self.queue, incoming.msg_id)
        LOG.error(
            "reply to message %s dropped after %d s of attempts: %s",
            incoming.msg_id,
            seconds,
            self._hindrance or f"there is no queue {self.queue}",
        )
        return True


def refuse(incoming: Any, size: int, refused: str, *, is_error: bool) -> None:
    """Tell the caller, in place of a reply that the broker will never take.

    :param incoming: the request, an ``AMQPIncomingMessage``.
    :param size: of the reply, in bytes.
    :param refused: what the broker says.
    :param is_error: the reply was this error; its caller is not told.
    """
    LOG.error(
        "reply to message %s, of about %d bytes, is refused by the broker: %s",
        incoming.msg_id,
        size,
        refused,
    )
    if is_error:
        return
    try:
        raise oslo_messaging.MessageDeliveryFailure(
            f"the reply of about {size} bytes {REFUSED}: {refused}; send less, "
            "or raise its max_message_size"
        )
    except oslo_messaging.MessageDeliveryFailure:
        incoming.reply(failure=sys.exc_info())
