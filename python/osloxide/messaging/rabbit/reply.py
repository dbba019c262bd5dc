"""One reply on its way to a client, and the slow way of sending it.

Owns what is sent to which queue, and how often that was attempted. The slow way is oslo.messaging's
own: a connection of the driver's pool, on which the thread waits until the broker has the reply.
Unlike oslo.messaging's it never waits for a broker that is away. What the reply contains is
oslo.messaging's business.
Imports oslo.messaging: to be imported after it, by what amends it.
Rules: oslo_messaging/_drivers/amqpdriver.py (``AMQPIncomingMessage.reply``).
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from typing import Any

import oslo_messaging
from amqp.exceptions import MessageNacked  # type: ignore[import-untyped]
from oslo_messaging._drivers import amqp, common

from osloxide.messaging.rabbit import errors

LOG = logging.getLogger(__name__)

CONNECT_EVERY = 1.0
"""Seconds between two attempts of a driver to connect, while no broker takes replies."""

REFUSED = "is refused by the broker"
"""By which the error in the place of a reply is known, when it is refused as well."""


class _RefusedError(Exception):
    """The broker will never take it."""


class _NotSentError(Exception):
    """The broker was there, and has not taken it. Others' replies may fare better."""


class _NoneFreeError(Exception):
    """All connections of the pool are in use, and there may be no more."""


class _Unwaiting:
    """A connection pool in which nobody waits for a connection to come back."""

    NEEDS = ("_cond", "_current_size", "_items", "_max_size")
    """What it knows of ``Pool``. In a release that lacks one of them, it waits as ``Pool`` does."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.create, self.put = pool.create, pool.put
        if not all(hasattr(pool, name) for name in self.NEEDS):
            self.get = pool.get  # type: ignore[method-assign]

    def get(self, retry: int | None = None) -> Any:
        """As ``Pool.get`` does it.

        :raises _NoneFreeError: it would wait.
        """
        pool = self._pool
        with pool._cond:
            if pool._items:
                _, item = pool._items.pop()
                pool.expire()
                return item
            if pool._current_size >= pool._max_size:
                raise _NoneFreeError("all rpc_conn_pool_size connections are in use")
            pool._current_size += 1
        try:
            return pool.create(retry=retry)
        except BaseException:
            with pool._cond:
                pool._current_size -= 1
            raise


class Reply:
    """One reply on its way."""

    __slots__ = (
        "_again_at",
        "_deadline",
        "_hindrance",
        "_is_kept",
        "envelope",
        "incoming",
        "is_stranded",
        "losses",
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
        # What hinders it passes, and is not the reply's: it is kept while its listener serves.
        self._is_kept = False
        # Not attempted by itself before that.
        self._again_at = float("-inf")
        self.losses = 0
        """How many connections were lost on which it was unconfirmed beside others."""
        self.is_stranded = False
        """It has no connection: its own was lost, or there was none. Its queue may be there."""
        self.was_attempted = False
        """Once more, after what brought it to the late ones, and a broker was there."""

    def attempt(self, *, may_wait: bool = True) -> bool:
        """Send it on a connection of the driver's pool, and wait until the broker has it.

        One attempt is made at each host of the URL. A reply that the broker refuses for good is
        replaced by an error, and counts as sent.

        :param may_wait: where all connections of the pool are in use, until one is free.
        :returns: False when there is no such queue, or no connection.
        """
        driver = self.incoming.listener.driver
        retries = further_hosts(driver)
        self._hindrance = None
        pool = driver._connection_pool
        try:
            with common.ConnectionContext(
                pool if may_wait else _Unwaiting(pool), common.PURPOSE_SEND, retries
            ) as connection:
                self._send_on(connection.connection, retries)
        except (
            oslo_messaging.MessageUndeliverable,
            amqp.AMQPDestinationNotFound,
        ):
            return False
        except _RefusedError as refused:
            self._give_up(str(refused))
            return True
        except _NoneFreeError as error:
            self._hindrance, self._is_kept = error, True
            return False
        except _NotSentError as error:
            self._hindrance = error.__cause__  # type: ignore[assignment]
            # A broker under an alarm takes nothing for as long as that lasts.
            self._is_kept = errors.is_silent(error)
            self.was_attempted = not self._is_kept
            self._again_at = time.monotonic() + CONNECT_EVERY
            return False
        except Exception as error:  # noqa: BLE001  (kombu's transport raises many)
            self._hindrance, self._is_kept = error, errors.is_away(error)
            driver._osloxide_hindrance = time.monotonic(), error
            return False
        return True

    def _send_on(self, lent: Any, retries: int) -> None:
        """Send it on *lent*, a connection of the driver's; on a new one where that was lost.

        :raises _RefusedError: the broker has refused the reply, and not only the connection.
        :raises _NotSentError: it could not be sent, though there was a connection.
        """
        for is_last in (False, True):
            _connect(lent, retries, is_lost=is_last)
            # By itself it would try again for ever.
            lent._ensure_publishing = functools.partial(lent._ensure_publishing, retry=0)
            try:
                lent.direct_send(self.queue, self.envelope)
            except (
                oslo_messaging.MessageUndeliverable,
                amqp.AMQPDestinationNotFound,
            ):
                raise
            except Exception as error:
                refused = errors.refusal(error)
                if refused is not None:
                    raise _RefusedError(refused) from error
                if is_last or errors.has(error, MessageNacked):
                    raise _NotSentError from error
            else:
                return
            finally:
                del lent._ensure_publishing

    def _give_up(self, refused: str) -> None:
        """Replace it by an error, unless it is that error."""
        incoming = self.incoming
        is_error = getattr(incoming, "is_refused", False)
        incoming.is_refused = True
        refuse(incoming, len(str(self.envelope)), refused, is_error=is_error)

    def is_settled(self) -> bool:
        """Attempt it once more; abandoned when that has been of no use for too long.

        It is kept for as long as there is no broker and its listener serves.
        """
        incoming = self.incoming
        is_wanted = incoming._obsolete_reply_queues.reply_q_valid(self.queue, incoming.msg_id)
        if not is_wanted:
            return True
        if self.is_stranded:
            return bool(incoming.listener.replies.send_stranded(self))
        if time.monotonic() < self._again_at:
            return False
        driver = incoming.listener.driver
        failed_at, hindrance = driver.__dict__.get("_osloxide_hindrance", (float("-inf"), None))
        if time.monotonic() < failed_at + CONNECT_EVERY:
            # Another's: the same would happen to this one.
            self._hindrance, self._is_kept = hindrance, errors.is_away(hindrance)
        elif self.attempt(may_wait=False):
            return True
        if self._hindrance is None:
            self.was_attempted = True
        elif self._is_kept and incoming.listener.replies.is_open:
            self._deadline = None
            return False
        seconds = driver.missing_destination_retry_timeout
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


def further_hosts(driver: Any) -> int:
    """How many more attempts to connect make one at each host of the URL."""
    return max(0, len(driver._url.hosts) - 1)


def _connect(lent: Any, retries: int, *, is_lost: bool) -> None:
    """Have *lent*, a connection of the driver's, connected, without a wait for a broker.

    :param retries: at how many more hosts to try.
    :param is_lost: it is not, although it may not know yet.
    """
    link = lent.connection
    with lent._connection_lock:
        if is_lost or not link.connected:
            link.collect()
            lent._set_current_channel(None)
            link.ensure_connection(max_retries=retries)
        if lent.channel is None:
            lent._set_current_channel(link.channel())
            lent.set_transport_socket_timeout()


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
