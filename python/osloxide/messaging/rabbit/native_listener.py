"""What servers and notification listeners get from RabbitMQ without kombu.

Owns the listeners that take the place of oslo.messaging's own where the operator wants messages to
go natively (:mod:`osloxide.messaging.rabbit.native_client`): which queues they consume, when a
message is acknowledged or given back, and the way of a reply. All listeners of a driver share one
connection (``src/amqp/client/subscriber.rs``), and their replies leave by that of its client.
A request is acknowledged by the thread that is about to run it, as by
:mod:`osloxide.messaging.rabbit.listener`; a notification after it was run. What a message contains
is oslo.messaging's business.

Imports oslo.messaging: to be imported after it, by what amends it.
Rules: ``listen`` and ``listen_for_notifications`` of oslo_messaging/_drivers/amqpdriver.py;
``declare_topic_consumer`` and ``declare_fanout_consumer`` of impl_rabbit.py; docs/rpc.md.
"""

from __future__ import annotations

import importlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import oslo_messaging
from oslo_messaging._drivers import amqpdriver, base, impl_rabbit

from osloxide import _native
from osloxide._typing import override
from osloxide.messaging.rabbit import envelope
from osloxide.messaging.rabbit.listener import (
    FAREWELL,
    PacedMessage,
    late_replies,
    pool_threads,
    received,
)
from osloxide.messaging.rabbit.native_arguments import consumer_arguments, queue_arguments
from osloxide.messaging.rabbit.reply import REFUSED, Reply, refuse
from osloxide.messaging.rabbit.waiting import Patience, warn_near_limit

LOG = logging.getLogger(__name__)

LONGEST_SLEEP = 60.0
"""Seconds after which a listener shows that its process is alive, at the latest."""

CLOSING = 15.0
"""Seconds that the end of a listener waits for the broker to confirm its replies."""

ClientOf = Callable[[Any], _native.AmqpClient | None]
"""The native client of a driver; None while its messages go by kombu."""

_MOST = 0xFFFF
"""Deliveries that AMQP has a number for."""


class _Answering(amqpdriver.AMQPIncomingMessage):
    """A request whose replies leave by the native client."""

    listener: NativeListener
    is_waited_for = True
    """A pool thread may wait for room before it replies."""

    def _send_reply(
        self, conn: Any, reply: Any = None, failure: Any = None, ending: bool = True
    ) -> None:
        if not self._obsolete_reply_queues.reply_q_valid(self.reply_q, self.msg_id):
            return
        if failure:
            failure = amqpdriver.rpc_common.serialize_remote_exception(failure)
        body = envelope.sealed(
            {
                "result": reply,
                "failure": failure,
                "ending": ending,
                "_msg_id": self.msg_id,
                amqpdriver.rpc_amqp.UNIQUE_ID: envelope.unique_id(),
            }
        )
        if amqpdriver.LOG.isEnabledFor(logging.DEBUG):
            amqpdriver.LOG.debug(
                "sending reply msg_id: %s reply queue: %s time elapsed: %ss",
                self.msg_id,
                self.reply_q,
                self.stopwatch.elapsed(),
            )
        self.listener.replies.send(self, body)

    def reply(self, reply: Any = None, failure: Any = None) -> None:
        if self.orig_msg_id:
            self._send_reply(None, reply, failure)

    def heartbeat(self) -> None:
        self._send_reply(None, None, None, ending=False)


class NativeMessage(_Answering, PacedMessage):
    """A request that is still the broker's until it is picked up."""

    origin: _native.AmqpDelivery  # type: ignore[assignment]


class NativeNotification(amqpdriver.AMQPIncomingMessage):
    """A notification, which is the broker's until it was run."""

    origin: _native.AmqpDelivery

    def acknowledge(self) -> None:
        if not self.origin.acknowledge():
            LOG.warning("Failed to acknowledge received message: its channel is closed")
        self.listener.msg_id_cache.add(self.unique_id)

    def requeue(self) -> None:
        if not self.origin.requeue():
            LOG.warning("Failed to requeue received message: its channel is closed")


class _GoneQueues(amqpdriver.ObsoleteReplyQueuesCache):
    """Reply queues of clients that have gone: mostly there are none."""

    _has_any = False

    def reply_q_valid(self, reply_q: str, msg_id: str) -> bool:
        return not self._has_any or bool(super().reply_q_valid(reply_q, msg_id))

    def add(self, reply_q: str, msg_id: str) -> None:
        self._has_any = True
        super().add(reply_q, msg_id)


class _NativeListener(base.PollStyleListener):
    """Polls what has arrived for it."""

    message_cls: Callable[..., Any]

    def __init__(self, driver: Any, subscription: _native.AmqpSubscription, prefetch: int) -> None:
        super().__init__(prefetch)
        self.driver = driver
        self._subscription = subscription
        self._obsolete_reply_queues = _GoneQueues()
        self._shutdown = threading.Event()

    def _message(self, delivery: _native.AmqpDelivery) -> Any:
        """What oslo.messaging makes of *delivery*; None of one that is dropped."""
        try:
            text = delivery.message
            if text is not None:
                message = envelope.loads(text)
            else:
                message = amqpdriver.rpc_common.deserialize_msg(_content(delivery))
            return received(self, delivery, message, None)
        except Exception:
            LOG.exception("Failed to process message ... skipping it.")
            delivery.reject()
            return None

    msg_id_cache: Any

    def _is_done(self, deadline: float | None) -> bool:
        """Whether a poll that has found nothing returns; waits where nothing can come any more."""
        left = LONGEST_SLEEP if deadline is None else deadline - time.monotonic()
        if self._subscription.is_over and left > 0:
            # Closed beneath a listener that was not stopped: it ends as it would without messages.
            self._shutdown.wait(min(left, LONGEST_SLEEP))
        return self._shutdown.is_set() or (deadline is not None and time.monotonic() >= deadline)

    def stop(self) -> None:
        """Let the broker deliver nothing more. What was delivered can still be settled."""
        if not self._subscription.stop(FAREWELL):
            LOG.info("consumers are cancelled later: the broker does not answer")
        self._shutdown.set()

    def cleanup(self) -> None:
        """Give up what is not settled, and close the channel."""
        if not self._subscription.close(FAREWELL):
            LOG.info("the channel of a listener ends with its connection")


class _Begun:
    """Ids of requests that have begun to run here, as oslo.messaging asks for them."""

    def __init__(self, subscription: _native.AmqpSubscription) -> None:
        self._subscription = subscription

    def check_duplicate_message(self, message: dict[str, Any]) -> str | None:
        """See :meth:`Seen.check_duplicate_message`."""
        unique_id: str | None = message.pop(amqpdriver.rpc_amqp.UNIQUE_ID, None)
        if unique_id and self._subscription.has_begun(unique_id):
            raise amqpdriver.rpc_common.DuplicateMessageError(msg_id=unique_id)
        return unique_id


class NativeAdapter(base.PollStyleListenerAdapter):
    """Polls a :class:`NativeListener`, whose requests need not all come by its thread."""

    def start(self, on_incoming_callback: Callable[[list[Any]], Any]) -> None:
        super().start(on_incoming_callback)
        self._poll_style_listener.begin()


class NativeListener(_NativeListener):
    """Requests; acknowledged as they are picked up."""

    message_cls = NativeMessage

    #: Whether a server's threads pick the requests up. Otherwise :meth:`poll` does, as it hands
    #: them out: who calls it knows oslo.messaging's listeners, which acknowledge on arrival.
    is_served = False

    def __init__(
        self, driver: Any, subscription: _native.AmqpSubscription, client_of: ClientOf, most: int
    ) -> None:
        """
        :param most: see :class:`Patience`.
        """
        # Batches of one: the driver's own prefetch is for those who acknowledge on arrival.
        super().__init__(driver, subscription, -1)
        self.msg_id_cache = _Begun(subscription)
        self.replies = NativeReplies(self, client_of)
        self._patience = Patience(most)
        self._server: tuple[_native.Executor, Callable[[list[Any]], Any]] | None = None

    @property
    def is_stopped(self) -> bool:
        """Nothing more is picked up."""
        return self._shutdown.is_set()

    def poll(
        self,
        timeout: float | None = None,
        batch_size: int = 1,
        batch_timeout: float | None = None,
    ) -> list[Any]:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LONGEST_SLEEP if deadline is None else max(0.0, deadline - time.monotonic())
            sleep = self._patience.longest_sleep(LONGEST_SLEEP)
            delivery = self._subscription.next(min(left, sleep))
            for reason, waited in self._subscription.take_closures():
                self._patience.notice_closed(reason, waited)
            waits, early = self._subscription.acknowledge_old(
                self._patience.longest, self._patience.most
            )
            for waited in waits:
                LOG.warning(
                    "a request has waited %.0f s for a thread; acknowledged before it runs", waited
                )
            self._patience.notice_early(early)
            if delivery is None:
                if self._is_done(deadline):
                    return []
                continue
            incoming = self._message(delivery)
            if incoming is None:
                continue
            self._warn_near_limit(delivery)
            if self.is_served or incoming.pick_up():
                return [incoming]

    def pick_up(self, incoming: NativeMessage) -> bool:
        """See :meth:`PacedMessage.pick_up`. On the thread that would run it."""
        return self._may_run(incoming.origin.pick_up(incoming.unique_id), incoming.msg_id)

    def give_back(self, incoming: NativeMessage) -> bool:
        """See :meth:`PacedMessage.give_back`."""
        return incoming.origin.give_back()

    def _may_run(self, outcome: str, msg_id: str | None) -> bool:
        if outcome == "twice":
            LOG.warning("message %s was delivered twice and runs already; dropped", msg_id)
        elif outcome == "lost":
            LOG.info("message %s: its channel is closed; left to redelivery", msg_id)
        return outcome == "run"

    def serve(self, executor: _native.Executor, process: Callable[[list[Any]], Any]) -> None:
        """From :meth:`begin` on, have the threads of *executor* run *process* with each request.

        What looks otherwise than oslo.messaging writes it is polled for, and so is everything where
        *executor* takes nothing.
        """
        self._server = executor, process

    def begin(self) -> None:
        """Requests may be run from now on."""
        if self._server is not None:
            self._subscription.deliver_to(self._server[0], self._run)

    def _run(self, delivery: _native.AmqpDelivery, outcome: str) -> Any:
        """Run a request, whose *outcome* of being picked up is known. On a pool thread.

        :returns: what ``_process_incoming`` returns, which the executor counts or goes on with.
        """
        if delivery.delivery_count:
            self._warn_near_limit(delivery)
        try:
            message = envelope.loads(delivery.message or "")
            unique_id = message.pop(amqpdriver.rpc_amqp.UNIQUE_ID, None)
            context, msg_id, reply_queue, timeout = envelope.context_of(message)
            incoming = NativeMessage(
                self, context, message, unique_id, msg_id, reply_queue, timeout,
                self._obsolete_reply_queues, None,
            )  # fmt: skip
        except Exception:
            LOG.exception("Failed to process message ... skipping it.")
            return False
        if not self._may_run(outcome, msg_id):
            return True
        incoming.origin = delivery
        incoming.is_picked_up = True
        assert self._server is not None
        return self._server[1]([incoming])

    def _warn_near_limit(self, delivery: _native.AmqpDelivery) -> None:
        if delivery.delivery_count:
            limit = self.driver.conf.oslo_messaging_rabbit.rabbit_quorum_delivery_limit
            warn_near_limit(delivery.delivery_count, limit)

    @override
    def cleanup(self) -> None:
        self.replies.close()
        super().cleanup()


class NativeNotificationListener(_NativeListener):
    """Notifications; acknowledged after they were run, or given back."""

    message_cls = NativeNotification

    def __init__(self, driver: Any, subscription: _native.AmqpSubscription) -> None:
        super().__init__(driver, subscription, driver.prefetch_size)
        self.msg_id_cache = amqpdriver.rpc_amqp._MsgIdCache()

    @base.batch_poll_helper  # type: ignore[untyped-decorator]
    def poll(self, timeout: float | None = None) -> Any:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LONGEST_SLEEP if deadline is None else max(0.0, deadline - time.monotonic())
            delivery = self._subscription.next(min(left, LONGEST_SLEEP))
            for reason, _ in self._subscription.take_closures():
                LOG.warning("the broker closed the channel of a listener: %s", reason)
            if delivery is None:
                if self._is_done(deadline):
                    return None
                continue
            if self._shutdown.is_set() and delivery.requeue():
                continue
            incoming = self._message(delivery)
            if incoming is not None:
                return incoming


class NativeReplies:
    """The replies to what one listener has received."""

    def __init__(self, listener: NativeListener, client_of: ClientOf) -> None:
        self._listener = listener
        self._client_of = client_of
        self._most = pool_threads(listener.driver)
        self._lock = threading.Lock()
        self._is_closed = False
        #: What fails now was counted as lost.
        self._is_over = False
        self._settings: tuple[bool, float] | None = None
        #: One attribute, which is read without the lock.
        self._current: tuple[_native.AmqpClient, _native.AmqpOutbox] | None = None

    def send(self, incoming: _Answering, body: str) -> None:
        """Send *body*, a reply to *incoming*; its confirmation is left to the native client."""
        driver = self._listener.driver
        client = self._client_of(driver)
        if client is None:  # it was refused since, and messages go by kombu for a while
            reply = Reply(incoming, incoming.reply_q, json.loads(body))
            # Otherwise this is the client's own thread.
            if not (incoming.is_waited_for and reply.attempt()):
                late_replies.add(reply)
            return
        outbox = self._outbox_of(client)
        while (
            incoming.is_waited_for
            and not outbox.wait_for_room(self._most, 1.0)
            and not self._listener.is_stopped
        ):
            pass
        if self._settings is None:
            # Read once, as impl_rabbit reads them for a connection.
            self._settings = (
                bool(driver.conf.oslo_messaging_rabbit.direct_mandatory_flag),
                driver.missing_destination_retry_timeout,
            )
        is_mandatory, missing_for = self._settings
        outbox.reply(incoming.reply_q, body, mandatory=is_mandatory, missing_for=missing_for)

    @property
    def is_open(self) -> bool:
        """Its listener serves."""
        return not self._is_closed

    def _outbox_of(self, client: _native.AmqpClient) -> _native.AmqpOutbox:
        current = self._current
        if current is not None and current[0] is client:
            return current[1]
        with self._lock:
            if self._is_closed:
                return _native.AmqpOutbox(client, self._failed)
            if self._current is None or self._current[0] is not client:
                self._current = client, _native.AmqpOutbox(client, self._failed)
            return self._current[1]

    def _failed(self, queue: str, body: bytes, kind: str, detail: Any) -> None:
        """What becomes of a reply that the broker does not have. On the client's thread."""
        sent = json.loads(body)
        content = amqpdriver.rpc_common.deserialize_msg(sent)
        answered = _Answered(self._listener, queue, content.get("_msg_id"))
        if kind == "undeliverable":
            LOG.error(
                "reply to message %s dropped after %d s of attempts: there is no queue %s",
                answered.msg_id,
                self._listener.driver.missing_destination_retry_timeout,
                queue,
            )
            self._listener._obsolete_reply_queues.add(queue, answered.msg_id)
        elif kind == "unusable":
            late_replies.add(Reply(answered, queue, sent))
        elif not self._is_closed:
            is_error = REFUSED in str(content.get("failure"))
            refuse(answered, len(body), str(detail), is_error=is_error)
        elif not self._is_over:
            LOG.error("reply to message %s is lost: %s", answered.msg_id, detail)

    def close(self) -> None:
        """Return when the broker has every reply, as far as it can be had within reason."""
        with self._lock:
            # An outbox holds this object, and the garbage collector does not see how.
            self._is_closed, current, self._current = True, self._current, None
        lost, late = (0, 0) if current is None else current[1].wait_confirmed(CLOSING)
        self._is_over = True
        lost += late_replies.wait_attempted(self, CLOSING)  # what goes by kombu for a while
        if lost:
            LOG.error("%d replies are lost: no broker takes them within %g s", lost, CLOSING)
        if late:
            LOG.info("%d replies still wait for queues that are missing", late)


class _Answered(_Answering):
    """A request of which only the way back is known any more."""

    is_waited_for = False
    """It is answered by the client's own thread."""

    def __init__(self, listener: NativeListener, queue: str, msg_id: str | None) -> None:
        super().__init__(
            listener, {}, {}, None, msg_id, queue, None, listener._obsolete_reply_queues, None
        )


def _content(delivery: _native.AmqpDelivery) -> Any:
    """What was sent, before oslo.messaging looks at it."""
    if delivery.is_plain_json:
        return json.loads(delivery.body)
    body = delivery.body
    if isinstance(body, str):
        body = body.encode()
    if delivery.compression:
        compression: Any = importlib.import_module("kombu.compression")
        body = compression.decompress(body, delivery.compression)
    serialization: Any = importlib.import_module("kombu.serialization")
    return serialization.loads(body, delivery.content_type, delivery.content_encoding or "utf-8")


# ---- what is declared ---------------------------------------------------------------------------


class Declarations:
    """The queues of a driver's listeners, as its options want them."""

    def __init__(self, driver: Any) -> None:
        """
        :raises RuntimeError: options contradict each other.
        """
        self._driver = driver
        self._conf = driver.conf.oslo_messaging_rabbit

    def topic(self, exchange: str, topic: str, queue: str | None = None) -> _native.AmqpQueue:
        """That of *topic*, called *queue* where that is given."""
        conf = self._conf
        return _native.AmqpQueue(
            queue or topic,
            exchange,
            topic,
            durable=conf.amqp_durable_queues or conf.rabbit_quorum_queue,
            exchange_auto_delete=conf.amqp_auto_delete,
            auto_delete=conf.amqp_auto_delete,
            arguments=queue_arguments(impl_rabbit, conf, 0, is_quorum=conf.rabbit_quorum_queue),
            consumer_arguments=consumer_arguments(conf),
        )

    def fanout(self, topic: str) -> _native.AmqpQueue:
        """One that each server of *topic* has for itself; with streams, shares."""
        conf, driver = self._conf, self._driver
        exchange = f"{topic}_fanout"
        if conf.rabbit_stream_fanout:
            queue = exchange
        else:
            unique = driver._q_manager.get() if driver._q_manager else uuid.uuid4().hex
            queue = f"{exchange}_{unique}"
        return _native.AmqpQueue(
            queue,
            exchange,
            topic,
            fanout=True,
            durable=conf.rabbit_transient_quorum_queue or conf.rabbit_stream_fanout,
            exchange_auto_delete=True,
            arguments=queue_arguments(
                impl_rabbit,
                conf,
                conf.rabbit_transient_queues_ttl,
                is_quorum=conf.rabbit_transient_quorum_queue,
                is_stream=conf.rabbit_stream_fanout,
            ),
            consumer_arguments=consumer_arguments(conf),
            stream=conf.rabbit_stream_fanout,
            own=not conf.rabbit_stream_fanout and not conf.use_queue_manager,
        )


class UnusableError(Exception):
    """No broker of the URL can be used natively."""


def listener_for_requests(
    driver: Any, subscriber: _native.AmqpSubscriber, target: Any, client_of: ClientOf
) -> NativeListener:
    """What ``listen`` of *driver* polls, once the queues of *target* are consumed.

    :param client_of: by which its replies leave.
    :raises MessageDeliveryFailure: the broker refuses one of them.
    :raises UnusableError: see there.
    """
    declarations = Declarations(driver)
    exchange = driver._get_exchange(target)
    queues = [
        declarations.topic(exchange, target.topic),
        declarations.topic(exchange, f"{target.topic}.{target.server}"),
        declarations.fanout(target.topic),
    ]
    prefetch = driver.conf.oslo_messaging_rabbit.rabbit_qos_prefetch_count
    if prefetch <= 0:
        prefetch = pool_threads(driver)
    prefetch = min(prefetch, _MOST)
    subscription = subscriber.subscribe(queues, prefetch)
    _wait_consuming(subscription, target.topic)
    return NativeListener(driver, subscription, client_of, prefetch)


def listener_for_notifications(
    driver: Any,
    subscriber: _native.AmqpSubscriber,
    targets_and_priorities: Any,
    pool: str | None,
    batch_size: int,
) -> NativeNotificationListener:
    """As :func:`listener_for_requests`, for ``listen_for_notifications``."""
    declarations = Declarations(driver)
    queues = [
        declarations.topic(driver._get_exchange(target), f"{target.topic}.{priority}", pool)
        for target, priority in targets_and_priorities
    ]
    prefetch = driver.conf.oslo_messaging_rabbit.rabbit_qos_prefetch_count
    if prefetch <= 0:
        # Stock takes all there are, one read after the other; here what arrives is read at once.
        prefetch = pool_threads(driver) * max(1, batch_size)
    subscription = subscriber.subscribe(queues, min(prefetch, _MOST))
    _wait_consuming(subscription, ", ".join(target.topic for target, _ in targets_and_priorities))
    return NativeNotificationListener(driver, subscription)


def _wait_consuming(subscription: _native.AmqpSubscription, topic: str) -> None:
    kind, detail = subscription.wait_standing()
    if kind == "closed":
        raise oslo_messaging.MessageDeliveryFailure(
            f"Unable to declare the queues of topic {topic}: the transport was closed"
        )
    if kind == "unusable":
        raise UnusableError(detail)
    if kind == "refused":
        LOG.error("Failed to declare consumer for topic '%s': %s", topic, detail)
        raise oslo_messaging.MessageDeliveryFailure(
            f"Unable to declare the queues of topic {topic}: {detail}"
        )
