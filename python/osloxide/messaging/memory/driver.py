"""The transport ``osloxide+memory://``: RPC between services of one process.

Owns the driver that oslo.messaging loads for that URL (``transport_url = osloxide+memory://``).
Calls, casts, fanout and notifications keep the meaning they have over RabbitMQ (bodies travel as
JSON, remote exceptions are rebuilt from the allowed modules, monitored calls get heartbeats),
without a broker and without polling. Never crosses a process border: workers that are forked do not
hear each other, which is what RabbitMQ is for.
Rules: oslo_messaging/_drivers/base.py and amqpdriver.py.
"""

import functools
import itertools
import json
import logging
import queue
import sys
import time
from collections.abc import Callable, Hashable
from typing import Any

import oslo_messaging
from oslo_messaging._drivers import base, common
from oslo_serialization import jsonutils

from osloxide.messaging.memory import exchange as exchanges

LOG = logging.getLogger(__name__)

_message_ids = itertools.count(1)

#: What ``jsonutils.dumps`` does, without an encoder made for each message.
_dumps = json.JSONEncoder(default=jsonutils.to_primitive).encode


class _Incoming(base.RpcIncomingMessage):
    """One message as an endpoint's server sees it."""

    def __init__(
        self, envelope: exchanges.Envelope, requeue: Callable[[exchanges.Envelope], None]
    ) -> None:
        context, message = jsonutils.loads(envelope.body)
        super().__init__(context, message)
        # Up to 14.7 the base class does not take one.
        self.msg_id = f"memory-{next(_message_ids)}"
        self.client_timeout = message.pop("_timeout", None)
        self._envelope = envelope
        self._requeue = requeue

    def reply(self, reply: Any = None, failure: Any = None) -> None:
        """Send the result, or *failure* as ``sys.exc_info()`` gives it. Does nothing for a cast."""
        answer = self._envelope.reply
        if answer is None:
            return
        if failure is None:
            try:
                answer(_dumps(reply), None)
                return
            except (TypeError, ValueError):
                # What cannot travel is the endpoint's mistake; its caller must not wait in vain.
                LOG.exception("The reply to message %s cannot be serialised", self.msg_id)
                failure = sys.exc_info()
        answer(None, common.serialize_remote_exception(failure))

    def heartbeat(self) -> None:
        """Tell a caller that monitors its call that the endpoint is still at work."""
        if self._envelope.reply is not None:
            self._envelope.reply(None, None)

    def requeue(self) -> None:
        """Give the message back, for this or another listener."""
        self._requeue(self._envelope)


class _RpcListener(base.Listener):
    """Hands each message to the server's callback on the sender's thread: no thread of its own."""

    def __init__(
        self, exchange: exchanges.Exchange, addresses: list[Hashable], fanout: Hashable
    ) -> None:
        super().__init__(batch_size=1, batch_timeout=None)
        self._exchange = exchange
        self._fanout = fanout
        self._consumers = []
        for address in [*addresses, fanout]:
            consumer = exchanges.Consumer(functools.partial(self._accept, address))
            exchange.subscribe(address, consumer)
            self._consumers.append(consumer)

    def _accept(self, address: Hashable, envelope: exchanges.Envelope) -> bool:
        callback = self.on_incoming_callback
        if callback is None:
            return False
        requeue = functools.partial(self._exchange.requeue, address)
        incoming = _Incoming(envelope, requeue)
        try:
            callback([incoming])
        except RuntimeError as error:
            # That the executor was shut down, between stop() and this call, only its text tells:
            # concurrent.futures, futurist and osloxide all have the word.
            if "shutdown" in str(error):
                LOG.debug("Listener of %s has stopped; the message is kept", address)
                return False
            LOG.exception("A message to %s was not taken; the listener goes on", address)
            incoming.reply(failure=sys.exc_info())
        return True

    def start(self, on_incoming_callback: Callable[[list[Any]], None]) -> None:
        super().start(on_incoming_callback)
        for consumer in self._consumers:
            self._exchange.start(consumer)

    def stop(self) -> None:
        for consumer in self._consumers:
            self._exchange.stop(consumer)
        super().stop()

    def cleanup(self) -> None:
        for consumer in self._consumers:
            self._exchange.unsubscribe(consumer, drop=self._fanout)


class _PollListener(base.PollStyleListener):
    """Collects notifications in batches; its adapter's thread sleeps until one arrives."""

    def __init__(self, sources: list[tuple[exchanges.Exchange, Hashable]]) -> None:
        super().__init__()
        self._arrived: queue.SimpleQueue[_Incoming | None] = queue.SimpleQueue()
        self._stopped = False
        self._consumers = []
        for exchange, address in sources:
            requeue = functools.partial(exchange.requeue, address)
            consumer = exchanges.Consumer(functools.partial(self._accept, requeue))
            exchange.subscribe(address, consumer)
            exchange.start(consumer)
            self._consumers.append((exchange, consumer))

    def _accept(
        self, requeue: Callable[[exchanges.Envelope], None], envelope: exchanges.Envelope
    ) -> bool:
        if self._stopped:
            return False
        self._arrived.put(_Incoming(envelope, requeue))
        return True

    def poll(
        self,
        timeout: float | None = None,
        batch_size: int = 1,
        batch_timeout: float | None = None,
    ) -> list[_Incoming]:
        """Up to *batch_size* messages; fewer when *timeout* or *batch_timeout* seconds pass."""
        batch: list[_Incoming] = []
        wait = timeout
        deadline: float | None = None
        while len(batch) < batch_size:
            try:
                if self._stopped:
                    item = self._arrived.get_nowait()
                else:
                    item = self._arrived.get(timeout=wait)
            except queue.Empty:
                break
            if item is None:  # stop() woke us up
                continue
            batch.append(item)
            if batch_timeout is not None:
                deadline = deadline or time.monotonic() + batch_timeout
                wait = max(0.0, deadline - time.monotonic())
        return batch

    def stop(self) -> None:
        for exchange, consumer in self._consumers:
            exchange.stop(consumer)
        self._stopped = True
        self._arrived.put(None)

    def cleanup(self) -> None:
        for exchange, consumer in self._consumers:
            exchange.unsubscribe(consumer)


class MemoryDriver(base.BaseDriver):
    """``osloxide+memory://``. Constructing it starts nothing, so it may be built before a fork."""

    def _exchange(self, target: Any) -> exchanges.Exchange:
        return exchanges.exchange(target.exchange or self._default_exchange or "openstack")

    def require_features(self, requeue: bool = True) -> None:
        """Every feature that oslo.messaging can ask for is supported."""

    def send(
        self,
        target: Any,
        ctxt: dict[str, Any],
        message: dict[str, Any],
        wait_for_reply: bool | None = None,
        timeout: float | None = None,
        call_monitor_timeout: float | None = None,
        retry: int | None = None,
        transport_options: Any = None,
    ) -> Any:
        """Send one RPC request; see :meth:`oslo_messaging._drivers.base.BaseDriver.send`.

        :param timeout: seconds to wait for the reply; ``None`` waits for ever.
        :param call_monitor_timeout: seconds without a heartbeat after which a call is given up;
            ``None`` or 0 asks for no heartbeats.
        :raises oslo_messaging.MessagingTimeout: no reply in time.
        :raises oslo_messaging.MessageDeliveryFailure: no server listens and the queue is full.
        :raises oslo_messaging.MessageUndeliverable: ``at_least_once`` is set and no server listens.
        """
        exchange = self._exchange(target)
        replies: queue.SimpleQueue[tuple[str | None, str | None]] = queue.SimpleQueue()
        if wait_for_reply:
            message = {**message, "_timeout": call_monitor_timeout}
        body = _dumps([ctxt, message])
        answer = (lambda *reply: replies.put(reply)) if wait_for_reply else None
        if target.fanout:
            addresses = exchange.addresses(
                lambda address: address[:2] == ("fanout", target.topic)  # type: ignore[index]
            )
        elif target.server:
            addresses = [("server", target.topic, target.server)]
        else:
            addresses = [("topic", target.topic)]
        if getattr(transport_options, "at_least_once", False):
            for address in addresses or [("fanout", target.topic)]:
                if not exchange.has_consumer(address):
                    raise oslo_messaging.MessageUndeliverable(
                        f"no server listens on {target}", target.exchange, address, message
                    )
        for address in addresses:
            self._publish(exchange, address, exchanges.Envelope(body, answer))
        if not wait_for_reply:
            return None
        return self._await_reply(replies, target, timeout, call_monitor_timeout)

    @staticmethod
    def _publish(
        exchange: exchanges.Exchange, address: Hashable, envelope: exchanges.Envelope
    ) -> None:
        try:
            exchange.publish(address, envelope)
        except exchanges.QueueFullError as error:
            raise oslo_messaging.MessageDeliveryFailure(
                f"{address}: {exchanges.QUEUE_LIMIT} messages wait and nobody listens; start the "
                "service that serves this topic, or use a broker"
            ) from error

    def _await_reply(
        self,
        replies: "queue.SimpleQueue[tuple[str | None, str | None]]",
        target: Any,
        timeout: float | None,
        call_monitor_timeout: float | None,
    ) -> Any:
        now = time.monotonic()
        deadline = None if timeout is None else now + timeout
        monitor = now + call_monitor_timeout if call_monitor_timeout else None
        while True:
            ends = [end for end in (deadline, monitor) if end is not None]
            wait = max(0.0, min(ends) - time.monotonic()) if ends else None
            try:
                result, failure = replies.get(timeout=wait)
            except queue.Empty:
                raise oslo_messaging.MessagingTimeout(
                    f"no reply on topic {target.topic} within {timeout} s"
                ) from None
            if failure is not None:
                raise common.deserialize_remote_exception(failure, self._allowed_remote_exmods)
            if result is not None:
                return jsonutils.loads(result)
            if call_monitor_timeout:  # a heartbeat
                monitor = time.monotonic() + call_monitor_timeout

    def send_notification(
        self,
        target: Any,
        ctxt: dict[str, Any],
        message: dict[str, Any],
        version: float,
        retry: int | None = None,
    ) -> None:
        """Store a notification for each pool of listeners, and for those still to come."""
        exchange = self._exchange(target)
        body = _dumps([ctxt, message])
        unpooled = ("notification", target.topic, None)
        exchange.declare(unpooled)
        for address in exchange.addresses(
            lambda address: address[:2] == unpooled[:2]  # type: ignore[index]
        ):
            exchange.publish(address, exchanges.Envelope(body, None), drop_oldest=True)

    def listen(self, target: Any, batch_size: int, batch_timeout: float | None) -> base.Listener:
        """Subscribe an RPC server to its topic, to its own name and to fanout."""
        addresses: list[Hashable] = [("topic", target.topic)]
        if target.server:
            addresses.append(("server", target.topic, target.server))
        fanout = ("fanout", target.topic, object())
        return _RpcListener(self._exchange(target), addresses, fanout)

    def listen_for_notifications(
        self,
        targets_and_priorities: list[tuple[Any, str]],
        pool: str | None,
        batch_size: int,
        batch_timeout: float | None,
    ) -> base.Listener:
        """Subscribe to ``topic.priority`` of each target; each *pool* gets its own copy."""
        sources: list[tuple[exchanges.Exchange, Hashable]] = []
        for target, priority in targets_and_priorities:
            exchange = self._exchange(target)
            topic = f"{target.topic}.{priority}"
            exchange.declare(("notification", topic, pool), like=("notification", topic, None))
            sources.append((exchange, ("notification", topic, pool)))
        listener = _PollListener(sources)
        return base.PollStyleListenerAdapter(listener, batch_size, batch_timeout)

    def cleanup(self) -> None:
        """Nothing to release: queues belong to the process and listeners to their servers."""
