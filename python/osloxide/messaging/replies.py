"""Replies over RabbitMQ: sent by the thread that has them, confirmed without a thread that waits.

Owns the choice of a way for each reply. Stock oslo.messaging takes a connection for each and waits
on it until the broker has confirmed: as many connections, and two changes of thread a call, as
requests end at a time. Here the replies of a listener share one connection, their lane
(:mod:`osloxide.messaging.lane`). Who has a reply writes it and goes on; the listener reads the
confirmations beside its requests. What the broker has not confirmed when a lane breaks is sent
again; a client that has had its reply no longer waits for the second. A reply whose queue is
missing is retried beside the endpoints' threads instead of blocking one.
What a reply contains is oslo.messaging's business. So are all replies where there is no lane: over
TLS, compressed, or without heartbeats.
Rules: oslo_messaging/_drivers/amqpdriver.py (``AMQPIncomingMessage.reply``).
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from osloxide.messaging.lane import CLOSING, Lane, LaneBrokenError, NoLaneError

LOG = logging.getLogger(__name__)

#: Seconds between two attempts to reply to a queue that is missing (oslo.messaging's own pause).
RETRY_EVERY = 0.25


class LateReplies:
    """Retries replies whose queue or connection is missing, so that no endpoint's thread waits.

    One thread, started with the first such reply and gone after the last.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Reply] = []
        self._running = False

    def add(self, reply: Reply) -> None:
        """Send *reply* as soon as it can be, or abandon it after its time."""
        with self._changed:
            self._waiting.append(reply)
            if self._running:
                return
            self._running = True
        threading.Thread(target=self._run, name="osloxide-late-replies", daemon=True).start()

    def wait_attempted(self, seconds: float) -> int:
        """Wait until everything that waits has been attempted since it came here.

        :returns: how many replies were not within *seconds*.
        """

        def unattempted() -> int:
            return sum(not reply.was_attempted for reply in self._waiting)

        with self._changed:
            self._changed.wait_for(lambda: not unattempted(), seconds)
            return unattempted()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(RETRY_EVERY)
            for reply in list(self._waiting):
                is_settled = reply.is_settled()
                with self._changed:
                    if is_settled:
                        self._waiting.remove(reply)
                    self._changed.notify_all()
            with self._changed:
                if not self._waiting:
                    self._running = False
                    return


class Reply:
    """One reply on its way."""

    __slots__ = (
        "_amqpdriver",
        "_deadline",
        "_hindrance",
        "_incoming",
        "envelope",
        "queue",
        "was_attempted",
    )

    def __init__(self, amqpdriver: ModuleType, incoming: Any, queue: str, envelope: Any) -> None:
        """
        :param incoming: the request, an ``AMQPIncomingMessage``.
        :param queue: the client's.
        :param envelope: what is sent, as oslo.messaging made it.
        """
        self._amqpdriver = amqpdriver
        self._incoming = incoming
        self.queue = queue
        self.envelope = envelope
        self._deadline: float | None = None
        self._hindrance: Exception | None = None
        self.was_attempted = False
        """Once more, after what brought it to the late ones."""

    def attempt(self) -> bool:
        """Send it as oslo.messaging does: wait for the broker, as long as that is away.

        :returns: False when there is no such queue, or the connection was lost while it was made:
            then oslo.messaging does not try again.
        """
        driver = self._incoming.listener.driver
        try:
            with driver._get_connection(self._amqpdriver.rpc_common.PURPOSE_SEND) as connection:
                connection.direct_send(self.queue, self.envelope)
        except (
            self._amqpdriver.oslo_messaging.MessageUndeliverable,
            self._amqpdriver.rpc_amqp.AMQPDestinationNotFound,
        ):
            self._hindrance = None
            return False
        except Exception as error:  # noqa: BLE001  (whatever kombu's transport raises)
            self._hindrance = error
            return False
        return True

    def is_settled(self) -> bool:
        """Attempt it once more; abandoned when that has been of no use for too long."""
        incoming = self._incoming
        is_wanted = incoming._obsolete_reply_queues.reply_q_valid(self.queue, incoming.msg_id)
        if not is_wanted or self.attempt():
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


class Replies:
    """The replies to what one listener has received."""

    def __init__(
        self,
        amqpdriver: ModuleType,
        driver: Any,
        most: int,
        late: LateReplies,
        on_new_lane: Callable[[], None],
    ) -> None:
        """
        :param most: how many replies may be unconfirmed: as many as requests may run.
        :param on_new_lane: called when there is another socket to look at.
        """
        self._amqpdriver = amqpdriver
        self._driver = driver
        self._most = most
        self._late = late
        self._on_new_lane = on_new_lane
        self._lock = threading.Lock()
        self._lane: Lane | None = None
        self._is_possible = True

    def to(self, incoming: Any) -> _Sender:
        """In the place of a connection: what oslo.messaging sends a reply to *incoming* with."""
        return _Sender(self, incoming)

    def send(self, reply: Reply) -> None:
        """Send *reply* now or, when that is not possible, later."""
        lane = self._lane
        for _ in range(2):
            if lane is None:
                lane = self._new_lane()
            if lane is None:
                break
            try:
                lane.publish(reply)
            except LaneBrokenError:
                lane = self._without(lane)
            else:
                return
        if not reply.attempt():
            self._late.add(reply)

    @property
    def socket(self) -> socket.socket | None:
        """To sleep on: readable when there is something to settle."""
        lane = self._lane
        return None if lane is None or lane.is_broken else lane.socket

    @property
    def is_idle(self) -> bool:
        """Nothing waits for the broker's confirmation."""
        lane = self._lane
        return lane is None or lane.is_idle

    def settle(self) -> None:
        """Read the confirmations that have arrived. Never waits for any."""
        lane = self._lane
        if lane is not None:
            lane.settle()
            if lane.is_broken:
                self._without(lane)

    def check_alive(self) -> None:
        """Notice a broker that is silent. To be called now and then."""
        lane = self._lane
        if lane is not None:
            lane.check_alive()

    def close(self) -> None:
        """Return when the broker has every reply, as far as it can be had within reason."""
        lane, self._lane = self._lane, None
        if lane is None:
            return
        lane.close()
        lost = self._late.wait_attempted(CLOSING)
        if lost:
            LOG.error("%d replies are lost: no broker takes them within %g s", lost, CLOSING)

    def _new_lane(self) -> Lane | None:
        """Another thread's, if one was faster. None: replies go one by one."""
        with self._lock:
            if self._lane is not None or not self._is_possible:
                return self._lane
            lent = None
            try:
                # Not for sending, as far as oslo.messaging knows: such a connection is our own, and
                # has no thread that reads it.
                lent = self._driver._get_connection(self._amqpdriver.rpc_common.PURPOSE_LISTEN)
                lane = self._lane = Lane(lent, self._most, self._late.add)
            except Exception as error:  # noqa: BLE001  (whatever kombu's transport raises)
                self._is_possible = not isinstance(error, NoLaneError)
                LOG.info("no connection for replies: %s", error)
                if lent is not None:
                    lent.close()
                return None
        self._on_new_lane()
        return lane

    def _without(self, lane: Lane) -> Lane | None:
        """The lane that there is instead of the broken *lane*, if any."""
        with self._lock:
            if self._lane is lane:
                self._lane = None
                lane.close()
            return self._lane


class _Sender:
    """Has the one method of a connection that a reply is sent with."""

    __slots__ = ("_incoming", "_replies")

    def __init__(self, replies: Replies, incoming: Any) -> None:
        self._replies = replies
        self._incoming = incoming

    def direct_send(self, queue: str, envelope: Any) -> None:
        replies = self._replies
        replies.send(Reply(replies._amqpdriver, self._incoming, queue, envelope))
