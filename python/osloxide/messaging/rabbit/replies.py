"""Replies over RabbitMQ: sent by the thread that has them, confirmed without a thread that waits.

Owns the choice of a way for each reply. Stock oslo.messaging takes a connection for each and waits
on it until the broker has confirmed: as many connections, and two changes of thread a call, as
requests end at a time. Here the replies of a listener share one connection
(:mod:`osloxide.messaging.rabbit.reply_connection`). The thread that has a reply writes it and goes
on; the listener reads the confirmations beside its requests. What the broker has not confirmed
when that connection is lost is sent again; a client that has had its reply no longer waits for the
second. A reply whose queue is missing is retried beside the endpoints' threads instead of blocking
one. What a reply contains is oslo.messaging's business. So are all replies where there is no such
connection: over TLS, compressed, or without heartbeats.
Rules: oslo_messaging/_drivers/amqpdriver.py (``AMQPIncomingMessage.reply``).
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

from oslo_messaging._drivers import common

from osloxide.messaging.rabbit.reply import Reply
from osloxide.messaging.rabbit.reply_connection import (
    CLOSING,
    ConnectionLostError,
    ReplyConnection,
    Unsupported,
)

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


class Replies:
    """The replies to what one listener has received."""

    def __init__(
        self,
        driver: Any,
        most: int,
        late: LateReplies,
        on_connected: Callable[[], None],
    ) -> None:
        """
        :param most: how many replies may be unconfirmed: as many as requests may run.
        :param on_connected: called when there is another socket to look at.
        """
        self._driver = driver
        self._most = most
        self._late = late
        self._on_connected = on_connected
        self._lock = threading.Lock()
        self._connection: ReplyConnection | None = None
        self._is_possible = True

    def to(self, incoming: Any) -> _Sender:
        """In the place of a connection: what oslo.messaging sends a reply to *incoming* with."""
        return _Sender(self, incoming)

    def send(self, reply: Reply) -> None:
        """Send *reply* now or, when that is not possible, later."""
        connection = self._connection
        for _ in range(2):
            if connection is None:
                connection = self._connect()
            if connection is None:
                break
            try:
                connection.publish(reply)
            except ConnectionLostError:
                connection = self._without(connection)
            else:
                return
        if not reply.attempt():
            self._late.add(reply)

    @property
    def socket(self) -> socket.socket | None:
        """To sleep on: readable when there is something to settle."""
        connection = self._connection
        return None if connection is None or connection.is_lost else connection.socket

    @property
    def is_idle(self) -> bool:
        """Nothing waits for the broker's confirmation."""
        connection = self._connection
        return connection is None or connection.is_idle

    def settle(self) -> None:
        """Read the confirmations that have arrived. Never waits for any."""
        connection = self._connection
        if connection is not None:
            connection.settle()
            if connection.is_lost:
                self._without(connection)

    def check_alive(self) -> None:
        """Notice a broker that is silent. To be called now and then."""
        connection = self._connection
        if connection is not None:
            connection.check_alive()

    def close(self) -> None:
        """Return when the broker has every reply, as far as it can be had within reason."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.close()
        lost = self._late.wait_attempted(CLOSING)
        if lost:
            LOG.error("%d replies are lost: no broker takes them within %g s", lost, CLOSING)

    def _connect(self) -> ReplyConnection | None:
        """Another thread's, if one was faster. None: replies go one by one."""
        with self._lock:
            if self._connection is not None or not self._is_possible:
                return self._connection
            lent = None
            try:
                # Not for sending, as far as oslo.messaging knows: such a connection is our own, and
                # has no thread that reads it.
                lent = self._driver._get_connection(common.PURPOSE_LISTEN)
                connection = self._connection = ReplyConnection(lent, self._most, self._late.add)
            except Exception as error:  # noqa: BLE001  (kombu's transport raises many)
                self._is_possible = not isinstance(error, Unsupported)
                LOG.info("no connection for replies: %s", error)
                if lent is not None:
                    lent.close()
                return None
        self._on_connected()
        return connection

    def _without(self, connection: ReplyConnection) -> ReplyConnection | None:
        """The one that there is instead of the lost *connection*, if any."""
        with self._lock:
            if self._connection is connection:
                self._connection = None
                connection.close()
            return self._connection


class _Sender:
    """Has the one method of a connection that a reply is sent with."""

    __slots__ = ("_incoming", "_replies")

    def __init__(self, replies: Replies, incoming: Any) -> None:
        self._replies = replies
        self._incoming = incoming

    def direct_send(self, queue: str, envelope: Any) -> None:
        replies = self._replies
        replies.send(Reply(self._incoming, queue, envelope))
