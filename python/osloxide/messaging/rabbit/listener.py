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
import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from oslo_messaging._drivers import amqpdriver

from osloxide import _native
from osloxide.messaging.executor import DEFAULT_WORKERS
from osloxide.messaging.rabbit import heartbeats
from osloxide.messaging.rabbit.replies import LateReplies, Replies

LOG = logging.getLogger(__name__)

_late_replies = LateReplies()

#: Longest sleep of a listener, in seconds: how often it looks after a connection that is silent.
LONGEST_SLEEP = 5.0

#: Seconds without a request after which a listener sleeps for long, and on the connection for
#: replies as well. Before that, their confirmations are read with the next request: no thread waits
#: for them, and to be woken by each would cost more than to read it.
LULL = 0.05


class _Wakeup:
    """Wakes the thread that sleeps on a socket. Never blocks."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._closed = False

    def wake(self) -> None:
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._fd, 1)

    def wait(self, sockets: Iterable[Any], timeout: float) -> bool:
        """Sleep until :meth:`wake` is called or one of *sockets* is readable.

        :param timeout: in seconds.
        :returns: False when time has passed and nothing else happened.
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        for sock in sockets:
            if sock is not None and sock.fileno() >= 0:
                # TLS may hold bytes that the kernel no longer shows.
                if getattr(sock, "pending", int)():
                    return True
                poll.register(sock.fileno(), select.POLLIN)
        ready = poll.poll(timeout * 1000)
        for fd, _ in ready:
            if fd == self._fd:
                os.eventfd_read(self._fd)
        return bool(ready)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._fd)


class _Seen:
    """Ids of requests that ran here. oslo.messaging keeps 16, fewer than may run at a time."""

    MOST = 1024

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def check_duplicate_message(self, message: dict[str, Any]) -> str | None:
        """The id of *message*, which is taken out of it.

        :raises DuplicateMessageError: it ran here already.
        """
        unique_id: str | None = message.pop(amqpdriver.rpc_amqp.UNIQUE_ID, None)
        if unique_id in self._ids:
            raise amqpdriver.rpc_common.DuplicateMessageError(msg_id=unique_id)
        return unique_id

    def add(self, unique_id: str | None) -> None:
        if unique_id:
            self._ids[unique_id] = None
            with contextlib.suppress(StopIteration, RuntimeError):  # another thread was faster
                if len(self._ids) > self.MOST:
                    self._ids.pop(next(iter(self._ids)), None)

    def discard(self, unique_id: str | None) -> None:
        if unique_id:
            self._ids.pop(unique_id, None)


class _Delivered:
    """What the broker wants to hear about one request that was read natively."""

    __slots__ = ("_native", "_seconds", "channel", "tag")

    #: Any thread may acknowledge: on a listener's connection no thread sends more than one frame.
    is_free = True

    def __init__(self, channel: Any, transport: Any, tag: int) -> None:
        self.channel = channel
        self.tag = tag
        self._native = transport._osloxide_connection
        self._seconds = transport.sock.gettimeout()

    def acknowledge(self) -> None:
        """Let the broker forget it."""
        self._native.write(_native.amqp_ack(self.channel.channel_id, self.tag), self._seconds)

    def requeue(self) -> None:
        """Give it back. On the thread that polls."""
        self.channel.basic_reject(self.tag, requeue=True)


class _Decoded:
    """The same about one that kombu has read."""

    __slots__ = ("_message", "channel")

    def __init__(self, message: Any) -> None:
        self._message = message
        self.channel = message._raw_message.channel

    @property
    def is_free(self) -> bool:
        """Whether any thread may acknowledge; otherwise the one that polls."""
        return heartbeats.writes_are_ordered(self.channel.connection)

    def acknowledge(self) -> None:
        """Let the broker forget it."""
        self._message.acknowledge()

    def requeue(self) -> None:
        """Give it back. On the thread that polls."""
        self._message.requeue()


def _threads(driver: Any) -> int:
    """How many requests a server on *driver* runs at a time; it becomes the prefetch, unless
    ``[oslo_messaging_rabbit] rabbit_qos_prefetch_count`` says otherwise."""
    # The option is the server's: who listens without one has its default.
    return int(getattr(driver.conf, "executor_thread_pool_size", DEFAULT_WORKERS))


class PacedMessage(amqpdriver.AMQPIncomingMessage):
    """A request that is still the broker's until :meth:`pick_up`."""

    is_picked_up = False

    def pick_up(self) -> bool:
        """Acknowledge the request, now that a thread is about to run it.

        :returns: False when it must not run here: the listener has stopped, or the connection
            it came from is gone, and the broker gives it to another server.
        """
        if not self.is_picked_up:
            self.is_picked_up = self.listener.pick_up(self)
        return self.is_picked_up

    def acknowledge(self) -> None:
        """What servers call first that are no ``RPCServer``, or run it on code of their own."""
        self.pick_up()

    def reply(self, reply: Any = None, failure: Any = None) -> None:
        if self.orig_msg_id:
            self._send_reply(self.listener.replies.to(self), reply, failure)


class PacedListener(amqpdriver.AMQPListener):
    """Polls a connection for as many requests as there are threads."""

    message_cls = PacedMessage

    #: Whether a server's threads pick the requests up. Otherwise :meth:`poll` does, as it hands
    #: them out: who calls it knows oslo.messaging's listeners, which acknowledge on arrival.
    is_served = False

    def __init__(self, driver: Any, conn: Any) -> None:
        super().__init__(driver, conn)
        self.msg_id_cache = _Seen()
        # Batches of one: the driver's own prefetch is for those who acknowledge on arrival.
        self.prefetch_size = -1
        self._wakeup = _Wakeup()
        # *conn* is a context that lends the driver's connection, which lends kombu's.
        self._lent = conn.connection
        self.replies = Replies(driver, _threads(driver), _late_replies, self._wakeup.wake)
        self._is_quiet = False
        self._looked_after = time.monotonic()
        if self._lent.rabbit_qos_prefetch_count <= 0:
            self._lent.rabbit_qos_prefetch_count = _threads(driver)
            if self._lent.channel is not None:
                self._lent._set_qos(self._lent.channel)

    def __call__(self, message: Any) -> None:
        self._take(_Decoded(message), message)

    def _take(self, origin: _Delivered | _Decoded, message: Any) -> None:
        context = amqpdriver.rpc_amqp.unpack_context(message)
        try:
            unique_id = self.msg_id_cache.check_duplicate_message(message)
        except amqpdriver.rpc_common.DuplicateMessageError:
            # It ran here, and its acknowledgement was lost with the connection.
            LOG.warning("message %s was redelivered after it ran; dropped", context.msg_id)
            origin.acknowledge()
            return
        incoming = self.message_cls(
            self,
            context.to_dict(),
            message,
            unique_id,
            context.msg_id,
            context.reply_q,
            context.client_timeout,
            self._obsolete_reply_queues,
            self._message_operations_handler,
        )
        incoming.origin = origin
        self.incoming.append(incoming)

    def pick_up(self, incoming: Any) -> bool:
        origin = incoming.origin
        channel = origin.channel
        if channel is None or channel.connection is None or channel is not self._lent.channel:
            LOG.info("message %s: its connection is gone; left to redelivery", incoming.msg_id)
            return False
        if self._shutdown.is_set():
            self._do(origin.requeue)
            return False
        self.msg_id_cache.add(incoming.unique_id)
        if not origin.is_free:
            self._do(origin.acknowledge)
            return True
        try:
            origin.acknowledge()
        except Exception as error:  # noqa: BLE001  (kombu's transports raise what they like)
            # Before anything ran: the broker still has it, and will deliver it again.
            self.msg_id_cache.discard(incoming.unique_id)
            LOG.info("message %s: %s; left to redelivery", incoming.msg_id, error)
            return False
        return True

    def _do(self, operation: Callable[[], None]) -> None:
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
            left = LONGEST_SLEEP if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return []
            self._consume(min(left, self._longest_sleep()))
        self._message_operations_handler.process()
        while self.incoming:
            self.pick_up(self.incoming.pop(0))  # stopped: gives it back
        self._message_operations_handler.process()
        self._shutoff.set()
        return []

    def _longest_sleep(self) -> float:
        heartbeat = self._lent.heartbeat_timeout_threshold
        if heartbeat <= 0:
            return LONGEST_SLEEP
        return float(min(LONGEST_SLEEP, heartbeat / max(1, self._lent.heartbeat_rate) / 2))

    def _consume(self, seconds: float) -> None:
        """Sleep until there is something to do, and do it."""
        connection = self._lent.connection
        if connection.connected and not self._lent._new_tags:
            transport = getattr(connection._connection, "transport", None)
            sockets = [getattr(transport, "sock", None)]
            if self._is_quiet:
                sockets.append(self.replies.socket)
            is_woken = self._wakeup.wait(sockets, seconds if self._is_quiet else min(seconds, LULL))
            self._look_after_replies()
            if self._shutdown.is_set() or not self._message_operations_handler._tasks.empty():
                return
            if self._read_ahead():
                self._is_quiet = False
                return
            if not is_woken and not self._is_quiet and self.replies.is_idle:
                self._is_quiet = True
                return
        self._consume_by_kombu()

    def _look_after_replies(self) -> None:
        self.replies.settle()
        now = time.monotonic()
        if now > self._looked_after + self._longest_sleep():
            self._looked_after = now
            self.replies.check_alive()

    def _consume_by_kombu(self) -> None:
        """Let kombu read one message, beat, and do what else the connection needs."""
        with contextlib.suppress(amqpdriver.rpc_common.Timeout):
            self.conn.consume(timeout=0.001)

    def _read_ahead(self) -> bool:
        """Take the requests that have arrived, without kombu where they are as usual.

        :returns: False when nothing has arrived, or nothing can be read in this way.
        """
        channel = self._lent.channel
        link: Any = getattr(channel, "connection", None)
        transport: Any = getattr(link, "_transport", None)
        # A place in a stream is noted by kombu's consumers.
        if not hasattr(transport, "_osloxide_connection") or self._lent.rabbit_stream_fanout:
            return False
        try:
            received = transport._osloxide_connection.receive()
        except OSError:  # kombu finds out for itself
            return False
        if not received:
            return False
        transport._read_buffer += received
        while True:
            found, used, frames, is_foreign = _native.amqp_deliveries(
                transport._read_buffer, channel.channel_id
            )
            rest = transport._read_buffer = transport._read_buffer[used:]
            link.bytes_recv += frames
            for tag, _, body in found:
                self._take_body(_Delivered(channel, transport, tag), body)
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
            origin.channel.basic_reject(origin.tag, requeue=False)

    def stop(self) -> None:
        self._shutdown.set()
        self._wakeup.wake()
        super().stop()

    def cleanup(self) -> None:
        self.replies.close()
        super().cleanup()
        self._wakeup.close()
