"""RabbitMQ consumed at the pace of the endpoints: acknowledged when picked up, not on arrival.

Owns the listener that takes the place of oslo.messaging's own for RPC over RabbitMQ. Stock
oslo.messaging acknowledges a request as it arrives and keeps it in an unbounded queue of the
process; whatever has not run when the process ends is lost. Here the broker keeps what no thread is
free for: the prefetch equals the number of threads, a request is acknowledged at the moment a
thread picks it up, and what was fetched but not picked up goes back to the broker when the listener
stops.
It never speaks AMQP itself: kombu does.

Also here, because they live in the same objects: a reply to a client that has vanished is retried
beside the endpoints' threads instead of blocking one, and a listener stops at once instead of at
the end of its poll.

Rules: oslo_messaging/_drivers/amqpdriver.py (AMQPListener, AMQPIncomingMessage); RabbitMQ's
consumer prefetch and acknowledgements.
"""

import collections
import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from osloxide.messaging import heart

LOG = logging.getLogger(__name__)

#: Seconds between two attempts to reply to a queue that is missing (oslo.messaging's own pause).
RETRY_EVERY = 0.25

#: Longest sleep of a listener, in seconds: how often it looks after a connection that is silent.
LONGEST_SLEEP = 5.0


class _Bell:
    """Wakes the thread that sleeps on a socket. Never blocks, and rings until it is silenced."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._closed = False

    def ring(self) -> None:
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._fd, 1)

    def wait(self, socket: Any, timeout: float) -> None:
        """Sleep until the bell rings, *socket* is readable or *timeout* seconds have passed."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if socket is not None and socket.fileno() >= 0:
            # TLS may hold bytes that the kernel no longer shows.
            if getattr(socket, "pending", int)():
                return
            poll.register(socket.fileno(), select.POLLIN)
        for fd, _ in poll.poll(timeout * 1000):
            if fd == self._fd:
                os.eventfd_read(self._fd)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._fd)


class _Seen:
    """Ids of requests that ran here. oslo.messaging keeps 16, fewer than may run at a time."""

    MOST = 1024

    def __init__(self, amqpdriver: ModuleType) -> None:
        self._ids: dict[str, None] = {}
        self._amqpdriver = amqpdriver

    def check_duplicate_message(self, message: dict[str, Any]) -> str | None:
        """The id of *message*, which is taken out of it.

        :raises DuplicateMessageError: it ran here already.
        """
        unique_id: str | None = message.pop(self._amqpdriver.rpc_amqp.UNIQUE_ID, None)
        if unique_id in self._ids:
            raise self._amqpdriver.rpc_common.DuplicateMessageError(msg_id=unique_id)
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


class LateReplies:
    """Retries replies whose queue is missing, so that no endpoint's thread waits for them.

    One thread, started with the first such reply and gone after the last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: collections.deque[tuple[float, Callable[[], bool], Callable[[], None]]] = (
            collections.deque()
        )
        self._running = False

    def add(self, seconds: float, attempt: Callable[[], bool], give_up: Callable[[], None]) -> None:
        """
        :param seconds: how long to go on trying; 0 gives up after the attempt already made.
        :param attempt: sends the reply; False when the queue is still missing.
        :param give_up: called when time has run out.
        """
        with self._lock:
            self._waiting.append((time.monotonic() + seconds, attempt, give_up))
            if self._running:
                return
            self._running = True
        threading.Thread(target=self._run, name="osloxide-late-replies", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(RETRY_EVERY)
            with self._lock:
                round_ = list(self._waiting)
                self._waiting.clear()
            kept = [item for item in round_ if not self._settled(*item)]
            with self._lock:
                self._waiting.extendleft(reversed(kept))
                if not self._waiting:
                    self._running = False
                    return

    @staticmethod
    def _settled(deadline: float, attempt: Callable[[], bool], give_up: Callable[[], None]) -> bool:
        try:
            if attempt():
                return True
        except Exception:
            LOG.exception("Can not send reply for message")
            return True
        if time.monotonic() < deadline:
            return False
        give_up()
        return True


def pace(amqpdriver: ModuleType, threads: Callable[[Any], int]) -> type:
    """Replace the RPC listener of oslo.messaging's AMQP driver.

    :param amqpdriver: the module ``oslo_messaging._drivers.amqpdriver``.
    :param threads: how many requests a server on the given driver runs at a time; it becomes the
        prefetch, unless ``[oslo_messaging_rabbit] rabbit_qos_prefetch_count`` says otherwise.
    :returns: the listener class that is in place now.
    """
    late_replies = LateReplies()

    class PacedMessage(amqpdriver.AMQPIncomingMessage):  # type: ignore[name-defined]
        """A request that is still the broker's until :meth:`pick_up`."""

        def pick_up(self) -> bool:
            """Acknowledge the request, now that a thread is about to run it.

            :returns: False when it must not run here: the listener has stopped, or the connection
                it came from is gone, and the broker gives it to somebody else.
            """
            return self.listener.pick_up(self)  # type: ignore[no-any-return]

        def reply(self, reply: Any = None, failure: Any = None) -> None:
            if not self.orig_msg_id or self._sent(reply, failure):
                return
            seconds = self.listener.driver.missing_destination_retry_timeout
            late_replies.add(
                seconds, lambda: self._sent(reply, failure), lambda: self._abandon(seconds)
            )

        def _sent(self, reply: Any, failure: Any) -> bool:
            if not self._obsolete_reply_queues.reply_q_valid(self.reply_q, self.msg_id):
                return True
            purpose = amqpdriver.rpc_common.PURPOSE_SEND
            try:
                with self.listener.driver._get_connection(purpose) as connection:
                    self._send_reply(connection, reply, failure)
            except (
                amqpdriver.oslo_messaging.MessageUndeliverable,
                amqpdriver.rpc_amqp.AMQPDestinationNotFound,
            ):
                return False
            return True

        def _abandon(self, seconds: float) -> None:
            self._obsolete_reply_queues.add(self.reply_q, self.msg_id)
            LOG.error(
                "reply to message %s: queue %s is missing for %d s; the client is gone, dropped",
                self.msg_id,
                self.reply_q,
                seconds,
            )

    class PacedListener(amqpdriver.AMQPListener):  # type: ignore[name-defined]
        """Polls a connection for as many requests as there are threads."""

        message_cls = PacedMessage

        def __init__(self, driver: Any, conn: Any) -> None:
            super().__init__(driver, conn)
            self.msg_id_cache = _Seen(amqpdriver)
            # Batches of one: the driver's own prefetch is for those who acknowledge on arrival.
            self.prefetch_size = -1
            self._bell = _Bell()
            # *conn* is a context that lends the driver's connection, which lends kombu's.
            self._lent = conn.connection
            if self._lent.rabbit_qos_prefetch_count <= 0:
                self._lent.rabbit_qos_prefetch_count = threads(driver)
                if self._lent.channel is not None:
                    self._lent._set_qos(self._lent.channel)

        def __call__(self, message: Any) -> None:
            context = amqpdriver.rpc_amqp.unpack_context(message)
            try:
                unique_id = self.msg_id_cache.check_duplicate_message(message)
            except amqpdriver.rpc_common.DuplicateMessageError:
                # It ran here, and its acknowledgement was lost with the connection.
                LOG.warning("message %s was redelivered after it ran; dropped", context.msg_id)
                message.acknowledge()
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
            incoming.origin = message
            self.incoming.append(incoming)

        def pick_up(self, incoming: Any) -> bool:
            message = incoming.origin
            channel = message._raw_message.channel
            if channel is None or channel.connection is None or channel is not self._lent.channel:
                LOG.info("message %s: its connection is gone; left to redelivery", incoming.msg_id)
                return False
            if self._shutdown.is_set():
                self._do(message.requeue)
                return False
            self.msg_id_cache.add(incoming.unique_id)
            if not heart.writes_are_ordered(channel.connection):
                self._do(message.acknowledge)
                return True
            try:
                message.acknowledge()
            except Exception as error:  # noqa: BLE001  (whatever kombu's transport raises)
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
                except Exception as error:  # noqa: BLE001  (whatever kombu's transport raises)
                    LOG.warning("RabbitMQ connection lost before an acknowledgement: %s", error)

            self._message_operations_handler.do(guarded)
            self._bell.ring()

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
                    return [self.incoming.pop(0)]
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
            """Sleep until there is something to do, then let kombu read and beat."""
            connection = self._lent.connection
            if connection.connected and not self._lent._new_tags:
                transport = getattr(connection._connection, "transport", None)
                socket = getattr(transport, "sock", None)
                self._bell.wait(socket, seconds)
                if self._shutdown.is_set() or not self._message_operations_handler._tasks.empty():
                    return
            with contextlib.suppress(amqpdriver.rpc_common.Timeout):
                self.conn.consume(timeout=0.001)

        def stop(self) -> None:
            self._shutdown.set()
            self._bell.ring()
            super().stop()

        def cleanup(self) -> None:
            super().cleanup()
            self._bell.close()

    amqpdriver.RpcAMQPListener = PacedListener  # type: ignore[attr-defined]
    return PacedListener
