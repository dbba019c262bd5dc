"""Replies over RabbitMQ: sent by the thread that has them, confirmed without a thread that waits.

Owns the choice of a way for each reply. Stock oslo.messaging takes a connection for each and waits
on it until the broker has confirmed: as many connections, and two changes of thread a call, as
requests end at a time. Here the replies of all listeners of a driver share one connection
(:mod:`osloxide.messaging.rabbit.reply_connection`). The thread that has a reply writes it and goes
on; the listener reads the confirmations beside its requests. What the broker has not confirmed
when that connection is lost is sent again; a client that has had its reply no longer waits for the
second. A reply whose queue is missing is retried beside the endpoints' threads instead of blocking
one. What a reply contains is oslo.messaging's business. So are all replies where there is no such
connection: compressed, without heartbeats, or over TLS that is OpenSSL's.
Rules: oslo_messaging/_drivers/amqpdriver.py (``AMQPIncomingMessage.reply``).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol

from oslo_messaging._drivers import common

from osloxide.messaging.rabbit import errors
from osloxide.messaging.rabbit.reply import CONNECT_EVERY, Reply, further_hosts
from osloxide.messaging.rabbit.reply_connection import (
    CLOSING,
    ConnectionLostError,
    FullError,
    ReplyConnection,
    Unsupported,
)
from osloxide.threads import inherited, own

LOG = logging.getLogger(__name__)

#: Seconds between two attempts to reply to a queue that is missing (oslo.messaging's own pause).
RETRY_EVERY = 0.25


_this_thread = threading.local()


def may_wait() -> bool:
    """False on the thread of late replies: others wait to be sent by it."""
    return not getattr(_this_thread, "is_of_late_replies", False)


class LateReplies:
    """Retries replies whose queue or connection is missing, so that no endpoint's thread waits.

    One thread a transport, started with the first such reply and gone after the last: one broker
    may be silent for long, and another's replies do not wait for it.
    """

    def __init__(self) -> None:
        self._begin()
        ours = weakref.WeakMethod(self._begin_in_child)
        os.register_at_fork(after_in_child=lambda: (begin := ours()) and begin())

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Reply] = []
        self._in_hand: list[Reply] = []
        # By driver: those which have a thread.
        self._hurried: dict[Any, threading.Event] = {}

    def _begin_in_child(self) -> None:
        """What waits is the parent's, and so are the thread and the holder of the lock."""
        inherited.keep(self._changed, self._waiting, self._in_hand, self._hurried)
        self._begin()

    def add(self, reply: Reply) -> None:
        """Send *reply* as soon as it can be, or abandon it after its time."""
        driver = reply.incoming.listener.driver
        with self._changed:
            self._waiting.append(reply)
            if driver in self._hurried:
                return
            hurried = threading.Event()
            try:
                own.start("osloxide-late-replies", functools.partial(self._run, driver, hurried))
            except RuntimeError:
                pass
            else:
                self._hurried[driver] = hurried
                return
        LOG.warning("no thread for replies that wait for their queue; the next one asks again")

    def hurry(self, driver: Any) -> None:
        """*driver* has a connection: wait no longer before the next attempts."""
        hurried = self._hurried.get(driver)
        if hurried is not None:
            hurried.set()

    def wait_sent(self, replies: Any, seconds: float) -> None:
        """Wait until none of those of *replies* is stranded any more, or for *seconds*."""

        def are_sent() -> bool:
            return not any(
                reply.incoming.listener.replies is replies
                # While it is sent it has no number yet that could be waited for.
                and (reply.is_stranded or reply in self._in_hand)
                for reply in self._waiting
            )

        with self._changed:
            self._changed.wait_for(are_sent, seconds)

    def wait_attempted(self, replies: Any, seconds: float) -> int:
        """Wait until those of *replies* that wait have been attempted since they came here.

        :returns: how many were not within *seconds*.
        """

        def unattempted() -> int:
            return sum(
                not reply.was_attempted and reply.incoming.listener.replies is replies
                for reply in self._waiting
            )

        with self._changed:
            self._changed.wait_for(lambda: not unattempted(), seconds)
            return unattempted()

    def _of(self, driver: Any) -> list[Reply]:
        with self._changed:
            return [reply for reply in self._waiting if reply.incoming.listener.driver is driver]

    def _run(self, driver: Any, hurried: threading.Event) -> None:
        _this_thread.is_of_late_replies = True
        while True:
            hurried.wait(RETRY_EVERY)
            hurried.clear()
            for reply in self._of(driver):
                with self._changed:
                    self._in_hand.append(reply)
                try:
                    is_settled = reply.is_settled()
                except Exception:
                    LOG.exception("a reply could not be sent and is dropped")
                    is_settled = True
                with self._changed:
                    self._in_hand.remove(reply)
                    if is_settled:
                        self._waiting.remove(reply)
                    self._changed.notify_all()
            with self._changed:
                if not self._of(driver):
                    del self._hurried[driver]
                    return


class SharedConnection:
    """The one connection for replies of a driver, open while one of its listeners is.

    A process may have hundreds of servers on one transport: a connection for the replies of each
    would cost it descriptors, and the first caller of each the time to connect.
    """

    def __init__(self, driver: Any, late: LateReplies) -> None:
        self._driver = driver
        self._late = late
        #: Never held while a broker is waited for: a listener that stops needs it.
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._connection: ReplyConnection | None = None
        self._failed_at = float("-inf")
        self.is_possible = True
        """Replies of this transport can share a connection, as far as is known."""
        self.is_awaited = True
        """There will be one as soon as there is a broker: nothing else has hindered the last
        attempt to connect."""
        self._listeners = 0
        self._most = 0

    @classmethod
    def of(cls, driver: Any, late: LateReplies) -> SharedConnection:
        """The same one for each listener of *driver*."""
        with _sharing:
            shared: SharedConnection | None = driver.__dict__.get("_osloxide_replies")
            if shared is None:
                shared = driver._osloxide_replies = cls(driver, late)
            return shared

    def join(self, most: int) -> None:
        """Have one more listener, of which *most* replies may be unconfirmed."""
        with self._lock:
            self._listeners += 1
            self._allow(self._most + most)

    def leave(self, most: int) -> ReplyConnection | None:
        """Have one listener less.

        :returns: what the last one has to close.
        """
        with self._lock:
            self._listeners -= 1
            if self._listeners:
                self._allow(self._most - most)
                return None
            self._most = 0
            connection, self._connection = self._connection, None
            return connection

    def _allow(self, most: int) -> None:
        self._most = most
        if self._connection is not None:
            self._connection.most = most

    def current(self) -> ReplyConnection | None:
        """The connection, if it is open."""
        return self._connection

    def connect(self) -> ReplyConnection | None:
        """The connection, opened unless another thread was faster.

        One attempt at each host of the URL, and none within a second of one that failed: to wait
        for the broker is not the business of a thread that has other things to do.

        :returns: None when there is none, or another thread is about to open it.
        """
        if not self._connecting.acquire(blocking=False):
            return self._connection
        try:
            is_soon = time.monotonic() < self._failed_at + CONNECT_EVERY
            if self._connection is not None or not self.is_possible or is_soon:
                return self._connection
            return self._open()
        finally:
            self._connecting.release()

    def _open(self) -> ReplyConnection | None:
        lent = None
        try:
            # Not for sending, as far as oslo.messaging knows: such a connection is our own, and
            # has no thread that reads it.
            lent = self._lend()
            opened = ReplyConnection(lent, self._most, self._late.add)
        except Exception as error:  # noqa: BLE001  (kombu's transport raises many)
            self.is_possible = not isinstance(error, Unsupported)
            self.is_awaited = errors.is_away(error)
            self._failed_at = time.monotonic()
            LOG.info("no connection for replies: %s", error)
            if lent is not None:
                with contextlib.suppress(Exception):  # it may be lost
                    lent.close()
            return None
        self.is_awaited = True
        with self._lock:
            if self._listeners:
                opened.most = self._most
                self._connection = opened
                self._late.hurry(self._driver)
                return opened
        opened.close()  # the last listener has left
        return None

    def _lend(self) -> Any:
        retries = further_hosts(self._driver)
        connection = self._driver._connection_pool.create(common.PURPOSE_LISTEN, retry=retries)
        return SimpleNamespace(connection=connection, close=connection.close)

    def without(self, connection: ReplyConnection) -> ReplyConnection | None:
        """The one that there is instead of the lost *connection*, if any."""
        with self._lock:
            current = self._connection
            if current is not connection:
                return current
            self._connection = None
        connection.close()
        return None


_sharing = threading.Lock()


def _share_anew() -> None:
    """In a forked child: another thread of the parent may have held the lock."""
    global _sharing
    _sharing = threading.Lock()


os.register_at_fork(after_in_child=_share_anew)


class Replies:
    """The replies to what one listener has received."""

    def __init__(
        self,
        driver: Any,
        most: int,
        late: LateReplies,
        on_sent: Callable[[], None],
    ) -> None:
        """
        :param most: how many replies may be unconfirmed: as many as requests may run.
        :param on_sent: called when there is a confirmation to be read.
        """
        self._most = most
        self._late = late
        self._on_sent = on_sent
        self._shared = SharedConnection.of(driver, late)
        self._lock = threading.Lock()
        # With the first reply: a listener that could not be set up is never closed.
        self._is_joined = False
        self._is_closed = False
        # The last of this listener's, and where it was sent; written with the lock.
        self._last: tuple[ReplyConnection, int] | None = None

    def to(self, incoming: Any) -> Sender:
        """In the place of a connection: what oslo.messaging sends a reply to *incoming* with."""
        return Sender(self, incoming)

    def send(self, reply: Reply) -> None:
        """Send *reply* now or, when that is not possible, later."""
        connection = self._shared.current() if self._is_joined or self._join() else None
        for _ in range(2):
            if connection is None and self._is_joined:
                connection = self._shared.connect()
            if connection is None:
                break
            try:
                self._publish(reply, connection)
            except ConnectionLostError:
                connection = self._shared.without(connection)
            except FullError:
                self._strand(reply)
                return
            else:
                return
        if self._is_joined and self._shared.is_possible and self._shared.is_awaited:
            self._strand(reply)
            if self._shared.current() is not None:
                # Another thread has opened it meanwhile.
                self._late.hurry(reply.incoming.listener.driver)
        elif not reply.attempt(may_wait=may_wait()):
            self._late.add(reply)

    def _publish(self, reply: Reply, connection: ReplyConnection) -> None:
        number = connection.publish(reply, may_wait=may_wait())
        with self._lock:
            # Another thread may have been faster, on this connection or on the next one.
            last = self._last
            is_later = number > last[1] if last and last[0] is connection else True
            if is_later and not connection.is_lost:
                self._last = connection, number
        self._on_sent()

    def _strand(self, reply: Reply) -> None:
        reply.is_stranded = True
        self._late.add(reply)

    def send_stranded(self, reply: Reply) -> bool:
        """Send *reply*, whose connection was lost, if there is one again; whether it is sent."""
        if not self._is_joined or not self._shared.is_possible:
            reply.is_stranded = False  # one by one
            return False
        connection = self._shared.current() or self._shared.connect()
        if connection is None:
            reply.is_stranded = self._shared.is_awaited
            return False
        reply.is_stranded = False
        try:
            self._publish(reply, connection)
        except ConnectionLostError:
            reply.is_stranded = True
            self._shared.without(connection)
            return False
        except FullError:
            reply.is_stranded = True
            return False
        return True

    def _join(self) -> bool:
        with self._lock:
            if not self._is_closed and not self._is_joined:
                self._shared.join(self._most)
                self._is_joined = True
            return self._is_joined

    @property
    def is_open(self) -> bool:
        """Its listener serves."""
        return not self._is_closed

    @property
    def socket(self) -> socket.socket | None:
        """To sleep on: readable when there is something to settle. None when this listener's
        replies are all confirmed: others wait for theirs."""
        last = self._last
        return None if last is None or self.is_idle else last[0].socket

    @property
    def is_idle(self) -> bool:
        """None of this listener's replies waits for the broker's confirmation."""
        last = self._last
        return last is None or last[0].is_confirmed(last[1])

    def settle(self) -> None:
        """Read the confirmations that have arrived. Never waits for any."""
        connection = self._shared.current()
        if connection is not None:
            connection.settle()
            if connection.is_lost:
                self._shared.without(connection)

    def check_alive(self) -> None:
        """Notice a broker that is silent. To be called now and then."""
        connection = self._shared.current()
        if connection is not None:
            connection.check_alive()

    def close(self) -> None:
        """Return when the broker has every reply, as far as it can be had within reason."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
            if was_closed or not self._is_joined:
                return
        self._late.wait_sent(self, CLOSING)
        self._is_joined = False  # from now on late ones go one by one
        connection = self._shared.leave(self._most)
        if connection is not None:
            connection.close()
        elif self._last is not None:
            self._last[0].wait_confirmed(self._last[1])
        lost = self._late.wait_attempted(self, CLOSING)
        if lost:
            LOG.error("%d replies are lost: no broker takes them within %g s", lost, CLOSING)


class _Sends(Protocol):
    """The replies of one listener."""

    def send(self, reply: Reply) -> None: ...


class Sender:
    """Has the one method of a connection that a reply is sent with."""

    __slots__ = ("_incoming", "_replies")

    def __init__(self, replies: _Sends, incoming: Any) -> None:
        self._replies = replies
        self._incoming = incoming

    def direct_send(self, queue: str, envelope: Any) -> None:
        self._replies.send(Reply(self._incoming, queue, envelope))
