"""What a client does when its broker was away: nothing sent into the void, no wait in vain.

Owns three changes to oslo.messaging's RabbitMQ driver. After a reconnection the queues of servers
may not be there yet, and the broker drops without a word what it cannot route; so sending to a
topic is repeated until a queue takes the message, for as long as servers may need to come back.
Where a queue took messages before and none does now, the exchange was deleted, and with it the
binding, of which no server is told: the queue is bound again, as by the native client
(``src/amqp/client/bindings.rs``). And when the broker has lost its transient queues, requests that
waited in them are gone: calls that nobody answers within a few seconds after that are ended,
instead of after their whole timeout.
Sends nothing twice that a queue has taken: what a server runs already must not be run again.
Rules: AMQP 0-9-1, ``basic.publish`` with ``mandatory``; docs/rpc.md counts what is lost.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import threading
import time
from types import ModuleType
from typing import Any, ClassVar

from osloxide.causes import chain

LOG = logging.getLogger(__name__)

SETTLING = 15.0
"""Seconds after a reconnection in which a missing queue is waited for."""

RETRY_EVERY = 0.1
"""Seconds between two attempts to send to a queue that is missing."""

GRACE = 15.0
"""Seconds that servers have for the replies to calls whose requests may be lost: their connections
come back with a growing pause between two attempts, one second and two more each time. Nothing in
AMQP tells a client whether its request waited in a queue or was being run (docs/rpc.md)."""


MOST_BINDINGS = 4096
"""Places that are remembered; what is sent to more of them is never bound again."""

RESTORING = 15.0
"""Seconds for which a message is sent again whose exchange was deleted beneath it. While RabbitMQ
deletes an exchange, it confirms a declaration of it and does nothing (``declare`` of
``rabbit_exchange.erl``); with little of a processor, that takes a while."""


_NOT_FOUND = 404


class _Link:
    """When this process last connected again."""

    reconnected_at = float("-inf")


class _Bindings:
    """Places where a queue has taken a message: broker, exchange and topic."""

    lock = threading.Lock()
    known: ClassVar[dict[tuple[str, str, str], float]] = {}
    """When the queue was bound again."""

    @classmethod
    def begin_in_child(cls) -> None:
        cls.lock = threading.Lock()


os.register_at_fork(after_in_child=_Bindings.begin_in_child)


class _Restoring:
    """How long one message is sent again whose exchange was deleted beneath it."""

    def __init__(self, ends: float) -> None:
        self._ends = ends
        self._has_begun = False

    def may_go_on(self) -> bool:
        """Whether to try once more: at once, then after a pause each time."""
        now = time.monotonic()
        if not self._has_begun:
            self._has_begun = True
            self._ends = min(self._ends, now + RESTORING)
            return True
        if now < self._ends:
            time.sleep(RETRY_EVERY)
        return now < self._ends


class _Lost:
    """In the place of a reply: there will be none."""


def amend_connection(impl_rabbit: ModuleType) -> None:
    """Change ``oslo_messaging._drivers.impl_rabbit.Connection``."""
    import oslo_messaging

    undeliverable = oslo_messaging.MessageUndeliverable
    failure = oslo_messaging.MessageDeliveryFailure
    mandatory = oslo_messaging.TransportOptions(at_least_once=True)
    cls = impl_rabbit.Connection
    topic_send, ensure_publishing = cls.topic_send, cls._ensure_publishing
    set_current_channel = cls._set_current_channel

    @functools.wraps(set_current_channel)
    def set_channel_and_notice(self: Any, new_channel: Any) -> None:
        set_current_channel(self, new_channel)
        link = getattr(new_channel, "connection", None)
        if link is not None:
            before = self.__dict__.setdefault("_osloxide_link", link)
            if before is not link:
                self._osloxide_link = link
                _Link.reconnected_at = time.monotonic()

    def use_another_channel(conn: Any) -> None:
        # A broken connection is the next message's to notice.
        with contextlib.suppress(Exception), conn._connection_lock:
            conn._set_current_channel(conn.connection.channel())

    @functools.wraps(ensure_publishing)
    def ensure_publishing_once(self: Any, *arguments: Any, **keywords: Any) -> Any:
        try:
            return ensure_publishing(self, *arguments, **keywords)
        except undeliverable:
            # The confirmation of this message is still to come: on the same channel the next
            # message would take it for its own.
            use_another_channel(self)
            raise

    @functools.wraps(topic_send)
    def topic_send_somewhere(
        self: Any,
        exchange_name: str,
        topic: str,
        msg: Any,
        timeout: float | None = None,
        retry: int | None = None,
        transport_options: Any = None,
    ) -> None:
        arguments = (exchange_name, topic, msg, timeout, retry)
        must_arrive = transport_options is not None and transport_options.at_least_once
        place = (getattr(self, "_url", ""), exchange_name, topic)
        ends = time.monotonic() + timeout if timeout else math.inf
        restoring = _Restoring(ends)
        while True:
            sent_at = time.monotonic()
            try:
                topic_send(self, *arguments, transport_options if must_arrive else mandatory)
            except undeliverable:
                may_restore = place in _Bindings.known and restoring.may_go_on()
                if may_restore and _bind_again(self, place, sent_at):
                    continue
                if must_arrive:
                    raise
                # As ever where no server listens: it is dropped, and a call ends by its timeout.
                if time.monotonic() > min(_Link.reconnected_at + SETTLING, ends):
                    LOG.debug("no queue takes what was sent to %s; dropped", topic)
                    return
                time.sleep(RETRY_EVERY)
            except failure as error:
                is_known = place in _Bindings.known and _is_missing(error)
                if not (is_known and restoring.may_go_on()):
                    raise
                # The exchange was deleted; it is declared again on the next channel.
                use_another_channel(self)
            else:
                if len(_Bindings.known) < MOST_BINDINGS:
                    _Bindings.known.setdefault(place, float("-inf"))
                return

    cls._set_current_channel = set_channel_and_notice
    cls._ensure_publishing = ensure_publishing_once
    cls.topic_send = topic_send_somewhere


def _is_missing(error: BaseException) -> bool:
    """Whether the broker has said that there is no such exchange."""
    return any(getattr(one, "code", None) == _NOT_FOUND for one in chain(error))


def _bind_again(conn: Any, place: tuple[str, str, str], sent_at: float) -> bool:
    """Bind the queue of *place*, where one took messages before.

    :param sent_at: when the message was sent that came back.
    :returns: whether one has been bound since then.
    """
    _, exchange, topic = place
    with _Bindings.lock:
        bound_at = _Bindings.known.get(place)
        if bound_at is None or bound_at > sent_at:
            return bound_at is not None
        errors = (*conn.connection.channel_errors, *conn.connection.connection_errors)
        try:
            with conn._connection_lock:
                channel = conn.connection.channel()
                # oslo.messaging gives both the same name.
                channel.queue_bind(topic, exchange, topic)
                channel.close()
        except errors as error:
            del _Bindings.known[place]
            LOG.debug("queue %s is not bound to exchange %s again: %s", topic, exchange, error)
            return False
        _Bindings.known[place] = time.monotonic()
    LOG.warning(
        'exchange "%s" had lost its binding to queue "%s", as when it is deleted; bound again',
        exchange, topic,
    )  # fmt: skip
    return True


def amend_waiters(amqpdriver: ModuleType) -> None:
    """Change ``oslo_messaging._drivers.amqpdriver.ReplyWaiter``."""
    cls = amqpdriver.ReplyWaiter
    init, wait, process_reply = cls.__init__, cls.wait, cls._process_reply
    timed_out = amqpdriver.oslo_messaging.MessagingTimeout

    @functools.wraps(init)
    def init_and_watch(self: Any, reply_q: str, conn: Any, *arguments: Any) -> None:
        self._osloxide_monitored = set()
        init(self, reply_q, conn, *arguments)
        for consumer in conn.connection._consumers:
            if consumer.queue_name == reply_q:
                _watch(consumer, self)

    @functools.wraps(wait)
    def wait_or_learn(
        self: Any, msg_id: str, timeout: Any, call_monitor_timeout: Any, *reply_q: str
    ) -> Any:
        # Releases up to 14.4 do not name the queue.
        if not call_monitor_timeout:
            return wait(self, msg_id, timeout, call_monitor_timeout, *reply_q)
        # Heartbeats tell it sooner whether the call is still at work.
        self._osloxide_monitored.add(msg_id)
        try:
            return wait(self, msg_id, timeout, call_monitor_timeout, *reply_q)
        finally:
            self._osloxide_monitored.discard(msg_id)

    @functools.wraps(process_reply)
    def process_reply_or_fail(self: Any, data: Any) -> Any:
        if isinstance(data, _Lost):
            raise timed_out(
                f"no reply within {GRACE:g} s after the broker lost its queues: the request is "
                "lost, or was run without an answer"
            )
        return process_reply(self, data)

    cls.__init__, cls.wait, cls._process_reply = (
        init_and_watch,
        wait_or_learn,
        process_reply_or_fail,
    )


def _watch(consumer: Any, waiter: Any) -> None:
    """Notice when *consumer*'s queue is declared again although it was there before."""
    declare = consumer.declare

    def declare_again(conn: Any) -> None:
        existed = _exists(conn, consumer.queue_name)
        declare(conn)
        # Requests in durable queues wait for their servers, as their callers do for them.
        if not existed and not conn.durable:
            _give_up_soon(waiter)

    consumer.declare = declare_again


def _exists(conn: Any, queue: str) -> bool:
    """Asked on a channel of its own, since the answer "no" closes it."""
    errors = conn.connection.channel_errors
    channel = conn.connection.channel()
    try:
        channel.queue_declare(queue, passive=True)
    except errors as error:
        if getattr(error, "code", None) == _NOT_FOUND:
            return False
        raise
    with contextlib.suppress(errors):
        channel.close()
    return True


def _give_up_soon(waiter: Any) -> None:
    waiting = set(waiter.waiters._queues) - waiter._osloxide_monitored
    if not waiting:
        return
    LOG.warning(
        "the broker has lost its queues; %d calls in flight have %g s left", len(waiting), GRACE
    )

    def give_up() -> None:
        for msg_id in waiting:
            replies = waiter.waiters._queues.get(msg_id)
            if replies is not None:
                replies.put(_Lost())

    timer = threading.Timer(GRACE, give_up)
    timer.daemon = True
    timer.start()
