"""RabbitMQ consumed at the pace of the endpoints: acknowledged when picked up, not on arrival.

Owns the listener that takes the place of oslo.messaging's own for RPC over RabbitMQ. Stock
oslo.messaging acknowledges a request as it arrives and keeps it in an unbounded queue of the
process; what has not run when the process ends is lost. Here the broker keeps what no thread is
free for: the prefetch equals the number of threads, a request is acknowledged at the moment a
thread picks it up, and what was fetched but not picked up goes back to the broker when the listener
stops. It also stops at once instead of at the end of its poll.
Requests that look as oslo.messaging makes them are read natively, many at a time; kombu reads the
others, and owns connections, queues and everything that goes wrong. What becomes of the replies is
in :mod:`osloxide.messaging.rabbit.replies`.

Rules: oslo_messaging/_drivers/amqpdriver.py (AMQPListener, AMQPIncomingMessage); RabbitMQ's
consumer prefetch and acknowledgements.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from oslo_messaging._drivers import amqpdriver

from osloxide import _native
from osloxide.activation.import_hook import refuse_if_monkey_patched
from osloxide.messaging.executor import DEFAULT_WORKERS
from osloxide.messaging.rabbit import envelope, epochs, heartbeats
from osloxide.messaging.rabbit.bindings import Bindings
from osloxide.messaging.rabbit.replies import LateReplies, Replies
from osloxide.messaging.rabbit.reply_waiter import POLL_EVERY
from osloxide.messaging.rabbit.waiting import Waiting, warn_near_limit
from osloxide.messaging.rabbit.wakeup import Wakeup

LOG = logging.getLogger(__name__)

late_replies = LateReplies()

#: Longest sleep of a listener, in seconds: how often it looks after a connection that is silent.
LONGEST_SLEEP = 15.0

#: Seconds without a request after which a listener sleeps for long, and on the connection for
#: replies as well. Before that, their confirmations are read with the next request: no thread waits
#: for them, and to be woken by each would cost more than to read it.
LULL = 0.05


#: Seconds that the broker has for each answer to a listener that stops.
FAREWELL = 5.0

#: Class and method of ``basic.nack``, RabbitMQ's extension of AMQP 0-9-1.
_BASIC_NACK = (60, 120)


class Seen:
    """Ids of requests that ran here. oslo.messaging keeps 16, fewer than may run at a time."""

    MOST = 1024

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}
        self._lock = threading.Lock()

    def check_duplicate_message(self, message: dict[str, Any]) -> str | None:
        """The id of *message*, which is taken out of it.

        :raises DuplicateMessageError: it ran here already.
        """
        unique_id: str | None = message.pop(amqpdriver.rpc_amqp.UNIQUE_ID, None)
        if unique_id in self._ids:
            raise amqpdriver.rpc_common.DuplicateMessageError(msg_id=unique_id)
        return unique_id

    def claim(self, unique_id: str | None) -> bool:
        """Note that a request begins to run here; False when it has before."""
        if not unique_id:
            return True
        with self._lock:
            if unique_id in self._ids:
                return False
            self._ids[unique_id] = None
            if len(self._ids) > self.MOST:
                self._ids.pop(next(iter(self._ids)))
        return True

    def discard(self, unique_id: str | None) -> None:
        """Take a claim back: the request did not run."""
        if unique_id:
            with self._lock:
                self._ids.pop(unique_id, None)


class _Delivered:
    """What the broker wants to hear about one request that was read natively."""

    __slots__ = ("_channel", "_native", "_tag", "epoch")

    #: Any thread may acknowledge: on a listener's connection no thread sends more than one frame.
    is_free = True

    #: From a queue, which keeps what is not acknowledged.
    is_kept = True

    def __init__(self, channel: Any, epoch: epochs.Epoch, transport: Any, tag: int) -> None:
        self._channel = channel
        self.epoch = epoch
        self._tag = tag
        self._native = transport._osloxide_connection

    def acknowledge(self) -> bool:
        """Let the broker forget it; False when its epoch is over."""
        frame = _native.amqp_ack(self._channel.channel_id or 0, self._tag)
        return self.epoch.run(lambda: self._native.post(frame))

    def requeue(self) -> bool:
        """Give it back. On the thread that polls."""
        return self.epoch.run(lambda: _give_back(self._channel, self._tag))

    def refuse(self) -> bool:
        """Drop what cannot be read. On the thread that polls."""
        return self.epoch.run(lambda: self._channel.basic_reject(self._tag, requeue=False))


class _Decoded:
    """The same about one that kombu has read."""

    __slots__ = ("_channel", "_message", "epoch", "is_kept")

    def __init__(self, message: Any) -> None:
        self._message = message
        raw = message._raw_message
        self._channel = raw.channel
        self.epoch = epochs.of(raw.channel)
        # A stream delivers nothing a second time: its consumers go on behind what they have read.
        self.is_kept = "x-stream-offset" not in (raw.headers or {})

    @property
    def is_free(self) -> bool:
        """Whether any thread may acknowledge; otherwise the one that polls."""
        link = getattr(self._channel, "connection", None)
        return link is not None and heartbeats.writes_are_ordered(link)

    def acknowledge(self) -> bool:
        """Let the broker forget it; False when its epoch is over."""
        return self.epoch.run(self._message.acknowledge)

    def requeue(self) -> bool:
        """Give it back. On the thread that polls."""
        if not hasattr(self._channel, "send_method"):  # a transport of kombu's own
            return self.epoch.run(self._message.requeue)
        tag = self._message._raw_message.delivery_tag
        return self.epoch.run(lambda: _give_back(self._channel, tag))


def _give_back(channel: Any, tag: int) -> None:
    """Return a delivery to its queue by ``basic.nack``, which kombu does not know.

    Quorum queues drop a message that was returned too often: by ``basic.reject`` always, by
    ``basic.nack`` up to RabbitMQ 4.2 as well, since 4.3 no more.
    """
    channel.send_method(_BASIC_NACK, "Lbb", (tag, False, True))


def pool_threads(driver: Any) -> int:
    """How many requests a server on *driver* runs at a time; it becomes the prefetch, unless
    ``[oslo_messaging_rabbit] rabbit_qos_prefetch_count`` says otherwise."""
    # The option is the server's: who listens without one has its default.
    return int(getattr(driver.conf, "executor_thread_pool_size", DEFAULT_WORKERS))


class PacedMessage(amqpdriver.AMQPIncomingMessage):
    """A request that is still the broker's until :meth:`pick_up`."""

    is_picked_up = False
    origin: _Delivered | _Decoded
    arrived: float
    is_acknowledged = False

    def pick_up(self) -> bool:
        """Acknowledge the request, now that a thread is about to run it.

        :returns: False when it must not run here: the listener has stopped, it runs already, or the
            channel it came from was closed, and the broker delivers it again.
        """
        if not self.is_picked_up:
            self.is_picked_up = self.listener.pick_up(self)
        return self.is_picked_up

    def give_back(self) -> bool:
        """Let the broker deliver the request again, which no thread will pick up here.

        :returns: False when nothing can deliver it: it is lost.
        """
        return bool(self.listener.give_back(self))

    def acknowledge(self) -> None:
        """What servers call first that are no ``RPCServer``, or run it on code of their own."""
        self.pick_up()

    def reply(self, reply: Any = None, failure: Any = None) -> None:
        if self.orig_msg_id:
            self._send_reply(self.listener.replies.to(self), reply, failure)


def received(listener: Any, origin: Any, message: dict[str, Any], operations: Any) -> Any:
    """What oslo.messaging's driver makes of a message; None where it ran here already.

    :param listener: has ``message_cls`` and ``msg_id_cache``.
    :param origin: what the broker wants to hear about it.
    :param operations: by which oslo.messaging reaches the thread that polls, where it has to.
    """
    context, msg_id, reply_queue, timeout = envelope.context_of(message)
    try:
        unique_id = listener.msg_id_cache.check_duplicate_message(message)
    except amqpdriver.rpc_common.DuplicateMessageError:
        # Its acknowledgement was lost with the channel.
        LOG.warning("message %s was redelivered after it ran; dropped", msg_id)
        origin.acknowledge()
        return None
    incoming = listener.message_cls(
        listener,
        context,
        message,
        unique_id,
        msg_id,
        reply_queue,
        timeout,
        listener._obsolete_reply_queues,
        operations,
    )
    incoming.origin = origin
    # Releases up to 14.7 have one name for it, which stands for no reply where it is blank.
    incoming.orig_msg_id = msg_id
    return incoming


class PacedListener(amqpdriver.AMQPListener):
    """Polls a connection for as many requests as there are threads."""

    message_cls = PacedMessage

    #: Whether a server's threads pick the requests up. Otherwise :meth:`poll` does, as it hands
    #: them out: who calls it knows oslo.messaging's listeners, which acknowledge on arrival.
    is_served = False

    def __init__(self, driver: Any, conn: Any) -> None:
        refuse_if_monkey_patched()
        super().__init__(driver, conn)
        self.msg_id_cache = Seen()
        # Batches of one: the driver's own prefetch is for those who acknowledge on arrival.
        self.prefetch_size = -1
        self._wakeup = Wakeup()
        # *conn* is a context that lends the driver's connection, which lends kombu's.
        self._lent = conn.connection
        self.replies = Replies(driver, pool_threads(driver), late_replies, self._on_sent)
        self._is_quiet = False
        self._looked_after = time.monotonic()
        self._is_cancelled = False
        self._bindings = Bindings()
        self._epoch: epochs.Epoch | None = None
        if self._lent.rabbit_qos_prefetch_count <= 0:
            self._lent.rabbit_qos_prefetch_count = pool_threads(driver)
            if self._lent.channel is not None:
                self._lent._set_qos(self._lent.channel)
        self._waiting = Waiting(self._lent.rabbit_qos_prefetch_count)

    def __call__(self, message: Any) -> None:
        headers = message._raw_message.headers or {}
        # Up to 12.13 there are no quorum queues.
        quorum = getattr(self._lent, "rabbit_quorum_queue_config", None)
        limit = quorum.delivery_limit if quorum else None
        warn_near_limit(headers.get("x-delivery-count", 0), limit)
        self._take(_Decoded(message), message)

    def _take(self, origin: _Delivered | _Decoded, message: Any) -> None:
        incoming = received(self, origin, message, self._message_operations_handler)
        if incoming is not None:
            self._waiting.add(incoming)
            self.incoming.append(incoming)

    def pick_up(self, incoming: PacedMessage) -> bool:
        """See :meth:`PacedMessage.pick_up`. On the thread that would run it."""
        origin = incoming.origin
        self._waiting.remove(incoming)
        if incoming.is_acknowledged or not origin.is_kept:
            # Nothing delivers it again: it runs here or nowhere, also when the listener stops.
            may_run = self.msg_id_cache.claim(incoming.unique_id)
            if not incoming.is_acknowledged:
                self._acknowledge(origin)
            return may_run
        if origin.epoch.is_over:
            LOG.info("message %s: its channel is closed; left to redelivery", incoming.msg_id)
            return False
        if self._shutdown.is_set():
            self._do(origin.requeue)
            return False
        if not self.msg_id_cache.claim(incoming.unique_id):
            LOG.warning("message %s was delivered twice and runs already; dropped", incoming.msg_id)
            self._acknowledge(origin)
            return False
        if not origin.is_free:
            self._do(origin.acknowledge)
            return True
        try:
            is_acknowledged, error = origin.acknowledge(), "its channel is closed"
        except Exception as raised:  # noqa: BLE001  (kombu's transports raise what they like)
            is_acknowledged, error = False, str(raised)
        if not is_acknowledged:
            # Before anything ran: the broker still has it, and will deliver it again.
            self.msg_id_cache.discard(incoming.unique_id)
            LOG.info("message %s: %s; left to redelivery", incoming.msg_id, error)
        return is_acknowledged

    def give_back(self, incoming: PacedMessage) -> bool:
        """See :meth:`PacedMessage.give_back`."""
        origin = incoming.origin
        self._waiting.remove(incoming)
        if incoming.is_picked_up or incoming.is_acknowledged or not origin.is_kept:
            return False
        if not origin.epoch.is_over:
            self._do(origin.requeue)
        return True

    def _acknowledge(self, origin: _Delivered | _Decoded) -> None:
        if not origin.is_free:
            self._do(origin.acknowledge)
            return
        # A channel that is gone will deliver it again, and it is known then.
        with contextlib.suppress(Exception):
            origin.acknowledge()

    def _notice_closed(self) -> None:
        channel = self._lent.channel
        epoch = None if channel is None else epochs.of(channel)
        before, self._epoch = self._epoch, epoch
        if before is not None and before is not epoch and before.reason:
            self._waiting.notice_closed(before.reason)

    def _do(self, operation: Callable[[], object]) -> None:
        """Run *operation* on the polling thread: kombu's connections are not thread safe."""

        def guarded() -> None:
            try:
                operation()
            except Exception as error:  # noqa: BLE001  (kombu's transports raise what they like)
                LOG.warning("RabbitMQ connection lost before an acknowledgement: %s", error)

        self._message_operations_handler.do(guarded)
        self._wakeup.wake()

    def poll(
        self,
        timeout: float | None = None,
        batch_size: int = 1,
        batch_timeout: float | None = None,
    ) -> list[Any]:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._shutdown.is_set():
            self._message_operations_handler.process()
            if self.incoming:
                incoming = self.incoming.pop(0)
                if self.is_served:
                    return [incoming]
                if incoming.pick_up():
                    self._message_operations_handler.process()
                    return [incoming]
                continue
            self._waiting.acknowledge_old()
            left = LONGEST_SLEEP if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return []
            self._consume(min(left, self._longest_sleep()))
        # What is given back must not come here once more: quorum queues count deliveries.
        self._cancel_consumers()
        self._message_operations_handler.process()
        while self.incoming:
            incoming = self.incoming.pop(0)
            if incoming.is_acknowledged or not incoming.origin.is_kept:
                # Runs here or nowhere.
                if self.is_served or incoming.pick_up():
                    return [incoming]
                continue
            self.pick_up(incoming)  # stopped: gives it back
        self._message_operations_handler.process()
        self._shutoff.set()
        return []

    def _cancel_consumers(self) -> None:
        consumers = [] if self._is_cancelled else list(self._lent._consumers.items())
        self._is_cancelled = True
        with contextlib.suppress(Exception):  # there is no connection, or no socket
            self._lent.set_transport_socket_timeout(FAREWELL)
        for consumer, tag in consumers:
            try:
                consumer.cancel(tag)
            except Exception as error:  # noqa: BLE001  (kombu's transports raise what they like)
                LOG.info("consumers end with their connection: %s", error)
                return

    def _longest_sleep(self) -> float:
        longest = LONGEST_SLEEP
        heartbeat = self._lent.heartbeat_timeout_threshold
        if heartbeat > 0:
            longest = min(longest, heartbeat / max(1, self._lent.heartbeat_rate) / 2)
        return float(self._waiting.longest_sleep(longest))

    def _consume(self, seconds: float) -> None:
        """Sleep until there is something to do, and do it."""
        connection = self._lent.connection
        if connection.connected and not self._lent._new_tags:
            transport = getattr(connection._connection, "transport", None)
            sockets = [getattr(transport, "sock", None)]
            if sockets == [None]:  # a transport of kombu's own: nothing to sleep on
                seconds = min(seconds, POLL_EVERY)
            if self._is_quiet:
                sockets.append(self.replies.socket)
            is_woken = self._wakeup.wait(sockets, seconds if self._is_quiet else min(seconds, LULL))
            self._look_after_replies()
            self._bindings.bind_now_and_then(self._lent)
            if self._shutdown.is_set() or not self._message_operations_handler._tasks.empty():
                return
            if self._read_ahead():
                self._is_quiet = False
                return
            if not is_woken and not self._is_quiet and self.replies.is_idle:
                self._is_quiet = True
                return
        self._consume_by_kombu()

    def _on_sent(self) -> None:
        """A reply was sent: let the thread that polls look for its confirmation."""
        if self._is_quiet:
            self._wakeup.wake()

    def _look_after_replies(self) -> None:
        self.replies.settle()
        now = time.monotonic()
        if now > self._looked_after + self._longest_sleep():
            self._looked_after = now
            self.replies.check_alive()

    def _consume_by_kombu(self) -> None:
        """Let kombu read one message, beat, and do what else the connection needs."""
        try:
            self.conn.consume(timeout=0.001)
        except amqpdriver.rpc_common.Timeout:
            return
        finally:
            self._notice_closed()

    def _read_ahead(self) -> bool:
        """Take the requests that have arrived, without kombu where they are as usual.

        :returns: False when nothing has arrived, or nothing can be read in this way.
        """
        channel = self._lent.channel
        link: Any = getattr(channel, "connection", None)
        transport: Any = getattr(link, "_transport", None)
        if not hasattr(transport, "_osloxide_connection"):
            return False
        try:
            received = transport._osloxide_connection.receive()
        except OSError:  # kombu finds out for itself
            return False
        if not received:
            return False
        transport._read_buffer += received
        while True:
            # Kombu may have closed the channel, or opened it again, in the round before.
            if channel.channel_id is None:
                return True
            epoch = epochs.of(channel)
            # Deliveries of a stream have headers and are kombu's, which notes their places.
            found, used, frames, is_foreign = _native.amqp_deliveries(
                transport._read_buffer, channel.channel_id
            )
            rest = transport._read_buffer = transport._read_buffer[used:]
            link.bytes_recv += frames
            for tag, _, body in found:
                self._take_body(_Delivered(channel, epoch, transport, tag), body)
            if not is_foreign:
                return True
            self._consume_by_kombu()
            if self._lent.channel is not channel or transport._read_buffer == rest:
                return True  # connected again, or waiting for more

    def _take_body(self, origin: _Delivered, body: str) -> None:
        try:
            self._take(origin, amqpdriver.rpc_common.deserialize_msg(json.loads(body)))
        except Exception:
            LOG.exception("Failed to process message ... skipping it.")
            origin.refuse()

    def stop(self) -> None:
        self._shutdown.set()
        self._wakeup.wake()
        super().stop()

    def cleanup(self) -> None:
        self.replies.close()
        super().cleanup()
        self._wakeup.close()
