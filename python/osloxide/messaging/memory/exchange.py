"""The exchanges of one process: named queues between senders and listeners.

Owns the routing of AMQP as oslo.messaging uses it (topic, topic.server, fanout, pools), without a
broker, a thread or a timer: a message goes from the sender's thread straight to the listener's
callback. Never interprets a message. Routing rules: oslo_messaging/_drivers/base.py, ``send`` and
``listen``; what a message meets on the way is drawn in docs/rpc.md.
"""

import collections
import logging
import os
import threading
from collections.abc import Callable, Hashable

LOG = logging.getLogger(__name__)

#: Messages that one queue keeps without a consumer. A broker would keep them on disk; here they
#: cost the process's own memory, so the sender is told instead of the process growing for ever.
QUEUE_LIMIT = 10_000


class QueueFullError(Exception):
    """A queue without a listener holds :data:`QUEUE_LIMIT` messages; the message was not taken."""


class Envelope:
    """One message on its way: its JSON text and the way back to the sender."""

    __slots__ = ("body", "reply")

    def __init__(self, body: str, reply: Callable[[str | None, str | None], None] | None) -> None:
        """
        :param body: JSON of the pair (context, message): what a listener gets is always its own
            copy, as it would be from a broker.
        :param reply: called with (result, failure) as JSON texts, or ``(None, None)`` for a
            heartbeat; ``None`` for a cast.
        """
        self.body = body
        self.reply = reply


class Consumer:
    """What receives from queues: a callback that may refuse."""

    __slots__ = ("accept", "started")

    def __init__(self, accept: Callable[[Envelope], bool]) -> None:
        """
        :param accept: takes one envelope; ``False`` means that the listener has stopped and the
            envelope must go to another one.
        """
        self.accept = accept
        self.started = False


class _Queue:
    """Messages of one address, and those who take turns to receive them."""

    __slots__ = ("consumers", "overflowed", "waiting")

    def __init__(self) -> None:
        self.overflowed = False
        self.consumers: collections.deque[Consumer] = collections.deque()
        self.waiting: collections.deque[Envelope] = collections.deque()

    def take(self) -> tuple[Consumer, Envelope] | None:
        """The next envelope and whose turn it is, or ``None``. Call with the lock held."""
        if not self.waiting:
            return None
        for _ in range(len(self.consumers)):
            consumer = self.consumers[0]
            self.consumers.rotate(-1)
            if consumer.started:
                return consumer, self.waiting.popleft()
        return None


class Exchange:
    """Queues by address; any thread may publish and subscribe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[Hashable, _Queue] = {}

    def declare(self, address: Hashable, like: Hashable | None = None) -> None:
        """Make the queue *address* exist; a new one starts with a copy of what waits in *like*."""
        with self._lock:
            if address in self._queues:
                return
            queue = self._queues[address] = _Queue()
            if like is not None and like in self._queues:
                queue.waiting.extend(self._queues[like].waiting)

    def addresses(self, wanted: Callable[[Hashable], bool]) -> list[Hashable]:
        """The declared addresses for which *wanted* holds."""
        with self._lock:
            return [address for address in self._queues if wanted(address)]

    def has_consumer(self, address: Hashable) -> bool:
        """True when *address* has a consumer now."""
        with self._lock:
            queue = self._queues.get(address)
            return queue is not None and any(c.started for c in queue.consumers)

    def publish(self, address: Hashable, envelope: Envelope, *, drop_oldest: bool = False) -> None:
        """Hand *envelope* to the next consumer of *address*, or keep it until there is one.

        :param drop_oldest: in a full queue make room instead of refusing, and say so once.
        :raises QueueFullError: no consumer, and the queue holds :data:`QUEUE_LIMIT` messages.
        """
        with self._lock:
            queue = self._queues.get(address)
            if queue is None:
                queue = self._queues[address] = _Queue()
            if len(queue.waiting) >= QUEUE_LIMIT:
                if not drop_oldest:
                    raise QueueFullError(address)
                queue.waiting.popleft()
                self._report_overflow(address, queue)
            queue.waiting.append(envelope)
        self._deliver(queue)

    def requeue(self, address: Hashable, envelope: Envelope) -> None:
        """Put *envelope* back at the head of *address*, for any consumer."""
        with self._lock:
            queue = self._queues.setdefault(address, _Queue())
            queue.waiting.appendleft(envelope)
        self._deliver(queue)

    def subscribe(self, address: Hashable, consumer: Consumer) -> None:
        """Let *consumer* take turns on *address*, once it has started."""
        with self._lock:
            self._queues.setdefault(address, _Queue()).consumers.append(consumer)

    def start(self, consumer: Consumer) -> None:
        """Begin to deliver to *consumer*, first what has been waiting for it."""
        with self._lock:
            consumer.started = True
            queues = [q for q in self._queues.values() if consumer in q.consumers]
        for queue in queues:
            self._deliver(queue)

    def stop(self, consumer: Consumer) -> None:
        """Deliver nothing more to *consumer*; what arrives from now on waits or goes to others."""
        with self._lock:
            consumer.started = False

    def unsubscribe(self, consumer: Consumer, *, drop: Hashable | None = None) -> None:
        """Forget *consumer*, and the queue *drop* when it has no other consumer."""
        with self._lock:
            consumer.started = False
            for queue in self._queues.values():
                if consumer in queue.consumers:
                    queue.consumers.remove(consumer)
            if drop is not None and drop in self._queues and not self._queues[drop].consumers:
                del self._queues[drop]

    @staticmethod
    def _report_overflow(address: Hashable, queue: _Queue) -> None:
        if not queue.overflowed:
            queue.overflowed = True
            LOG.warning(
                "%s: nobody listens and %d messages wait; the oldest are dropped from now on",
                address,
                QUEUE_LIMIT,
            )

    def _deliver(self, queue: _Queue) -> None:
        """Hand out what waits in *queue*. Callbacks run without the lock: they may publish."""
        while True:
            with self._lock:
                turn = queue.take()
            if turn is None:
                return
            consumer, envelope = turn
            if not consumer.accept(envelope):
                with self._lock:
                    consumer.started = False
                    queue.waiting.appendleft(envelope)


_exchanges: dict[str, Exchange] = {}
_exchanges_lock = threading.Lock()


def exchange(name: str) -> Exchange:
    """The exchange *name* of this process."""
    with _exchanges_lock:
        return _exchanges.setdefault(name, Exchange())


def _forget_exchanges() -> None:
    """A forked child starts without messages: those it inherited belong to its parent."""
    global _exchanges_lock
    _exchanges_lock = threading.Lock()
    _exchanges.clear()


os.register_at_fork(after_in_child=_forget_exchanges)
