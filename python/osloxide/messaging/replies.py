"""Replies over RabbitMQ: sent by the thread that has them, confirmed without a thread that waits.

Owns the way of a reply from an endpoint's thread to the broker's confirmation. Stock oslo.messaging
takes a connection for each reply and waits on it until the broker has confirmed: as many
connections, and two changes of thread a call, as requests end at a time. Here the replies of a
listener share one connection, their *lane*. Who has a reply writes it and goes on; the listener
reads the confirmations beside its requests. What the broker has not confirmed when a lane breaks is
sent again; a client that has had its reply no longer waits for the second.

Also here: a reply whose queue is missing is retried beside the endpoints' threads instead of
blocking one.
What a reply contains is oslo.messaging's business. So are all replies where there is no lane: over
TLS, compressed, or without heartbeats.
Rules: oslo_messaging/_drivers/amqpdriver.py (``AMQPIncomingMessage.reply``); RabbitMQ's publisher
confirms; AMQP 0-9-1, ``basic.publish`` with ``mandatory``.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from osloxide import _native

LOG = logging.getLogger(__name__)

#: Seconds between two attempts to reply to a queue that is missing (oslo.messaging's own pause).
RETRY_EVERY = 0.25

#: Seconds that a listener which closes waits for confirmations on a connection that is alive.
CLOSING = 15.0


class LateReplies:
    """Retries replies whose queue or connection is missing, so that no endpoint's thread waits.

    One thread, started with the first such reply and gone after the last.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: collections.deque[Reply] = collections.deque()
        self._running = False

    def add(self, reply: Reply) -> None:
        """Send *reply* as soon as it can be, or abandon it after its time."""
        with self._lock:
            self._waiting.append(reply)
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
            kept = [reply for reply in round_ if not reply.is_settled()]
            with self._lock:
                self._waiting.extendleft(reversed(kept))
                if not self._waiting:
                    self._running = False
                    return


class Reply:
    """One reply on its way."""

    __slots__ = ("_amqpdriver", "_deadline", "_incoming", "envelope", "queue")

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

    def attempt(self) -> bool:
        """Send it as oslo.messaging does: wait for the broker, as long as that is away.

        :returns: False when there is no such queue.
        """
        driver = self._incoming.listener.driver
        try:
            with driver._get_connection(self._amqpdriver.rpc_common.PURPOSE_SEND) as connection:
                connection.direct_send(self.queue, self.envelope)
        except (
            self._amqpdriver.oslo_messaging.MessageUndeliverable,
            self._amqpdriver.rpc_amqp.AMQPDestinationNotFound,
        ):
            return False
        return True

    def is_settled(self) -> bool:
        """Attempt it once more; abandoned when its queue has been missing for too long."""
        incoming = self._incoming
        try:
            if not incoming._obsolete_reply_queues.reply_q_valid(self.queue, incoming.msg_id):
                return True
            if self.attempt():
                return True
        except Exception:
            LOG.exception("Can not send reply for message")
            return True
        seconds = incoming.listener.driver.missing_destination_retry_timeout
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + seconds
        if now < self._deadline:
            return False
        incoming._obsolete_reply_queues.add(self.queue, incoming.msg_id)
        LOG.error(
            "reply to message %s: queue %s is missing for %d s; the client is gone, dropped",
            incoming.msg_id,
            self.queue,
            seconds,
        )
        return True


class _LaneBrokenError(Exception):
    """Nothing was sent: the lane's connection is gone."""


class _NoLaneError(Exception):
    """Replies of this transport cannot share a connection."""


class _Lane:
    """A connection for replies alone, and those which the broker has not confirmed yet.

    Any thread may publish; one thread at a time reads, whichever comes first.
    """

    def __init__(self, lent: Any, most: int, give_back: Callable[[Reply], None]) -> None:
        """
        :param lent: a connection of the driver that nobody else uses; closed with the lane.
        :param most: how many replies may be unconfirmed; then publishers wait.
        :param give_back: takes a reply that has to be sent in another way.
        :raises _NoLaneError: *lent* has no native line.
        """
        self._lent = lent
        self._most = most
        self._give_back = give_back
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._unconfirmed: dict[int, Reply] = {}
        self._published = 0
        self.is_broken = False
        """Nothing can be sent any more."""
        self._channel = lent.connection.connection.channel()
        self._link = self._channel.connection
        # Kept: to ask a closed connection for it would open it again.
        self._transport = self._link.transport
        line = getattr(self._transport, "_osloxide_line", None)
        if line is None or lent.connection.kombu_compression:
            raise _NoLaneError
        self._line = line
        self._is_mandatory = bool(lent.connection.direct_mandatory_flag)
        self.socket: socket.socket = self._transport.sock
        self._channel.events["basic_return"].add(self._on_return)
        self._channel.events["basic_nack"].add(self._on_nack)
        self._channel.confirm_select()

    @property
    def is_idle(self) -> bool:
        """Every reply is confirmed."""
        return not self._unconfirmed

    def publish(self, reply: Reply) -> None:
        """Write *reply*, and leave its confirmation to whoever reads.

        :raises _LaneBrokenError: it was not written; otherwise it is the lane's from now on.
        """
        body = json.dumps(reply.envelope)
        if len(self._unconfirmed) >= self._most:
            self._wait_for_room()
        with self._lock:
            if self.is_broken:
                raise _LaneBrokenError
            number = self._published + 1
            frames = _native.amqp_publish(
                self._channel.channel_id,
                reply.queue,
                str(number),
                self._is_mandatory,
                body,
                self._link.frame_max,
            )
            self._published = number
            self._unconfirmed[number] = reply
            try:
                # The lock makes the numbers those that the broker counts.
                self._line.write(frames, self.socket.gettimeout())
            except Exception as error:  # noqa: BLE001  (whatever happened, it is broken)
                broken: Exception | None = error
            else:
                broken = None
        if broken is not None:
            self.break_off(broken)

    def _wait_for_room(self) -> None:
        """Read confirmations until there is room, or the lane is broken.

        A broker that is short of memory takes nothing for as long as that lasts, and goes on
        sending heartbeats: then everybody waits here, as they would for confirmations of their own.
        """
        while len(self._unconfirmed) >= self._most and not self.is_broken:
            if self._reading.acquire(blocking=False):
                try:
                    self._wait_readable(1.0)
                    self._read()
                finally:
                    self._reading.release()
                self.check_alive()
            else:
                with self._reading:  # whoever reads has read something then
                    pass

    def settle(self) -> None:
        """Read the confirmations that have arrived. Never waits."""
        if self._reading.acquire(blocking=False):
            try:
                self._read()
            finally:
                self._reading.release()

    def check_alive(self) -> None:
        """Break off when the broker has been silent for two heartbeats."""
        try:
            if not self.is_broken:
                self._link.heartbeat_tick()
        except Exception as error:  # noqa: BLE001  (whatever py-amqp's transport raises)
            self.break_off(error)

    def break_off(self, error: Exception) -> None:
        """Give up the connection, and give back what it has not confirmed."""
        with self._lock:
            if self.is_broken:
                return
            self.is_broken = True
            lost = list(self._unconfirmed.values())
            self._unconfirmed.clear()
        LOG.log(
            logging.WARNING if lost else logging.INFO,
            "connection for replies lost (%s); %d replies are sent again",
            error,
            len(lost),
        )
        self._line.close()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # whoever sleeps on it wakes up
        for reply in lost:
            self._give_back(reply)

    def close(self) -> None:
        """Wait until everything is confirmed or the connection is lost; then close it."""
        deadline = time.monotonic() + CLOSING
        with self._reading:
            while self._unconfirmed and not self.is_broken:
                left = deadline - time.monotonic()
                if left <= 0:
                    self.break_off(TimeoutError(f"no confirmation within {CLOSING:g} s"))
                    break
                self._wait_readable(min(1.0, left))
                self._read()
            if self.is_broken:
                # No farewell to a peer that would not answer.
                with contextlib.suppress(Exception):
                    self._link.collect()
            with contextlib.suppress(Exception):
                self._lent.close()

    def _wait_readable(self, seconds: float) -> None:
        if self.socket.fileno() < 0:
            return
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        poll.poll(seconds * 1000)

    def _read(self) -> None:
        try:
            while not self.is_broken and self._read_some():
                pass
        except Exception as error:  # noqa: BLE001  (whatever py-amqp makes of the broker's words)
            self.break_off(error)

    def _read_some(self) -> bool:
        """Whether there may be more to read."""
        transport = self._transport
        received = self._line.receive()
        if received is None:
            return False
        if not received:
            raise ConnectionResetError("the broker has closed it")
        transport._read_buffer += received
        while not self.is_broken:
            confirms, used, frames, is_foreign = _native.amqp_confirms(
                transport._read_buffer, self._channel.channel_id
            )
            transport._read_buffer = transport._read_buffer[used:]
            self._link.bytes_recv += frames
            with self._lock:
                for tag, multiple in confirms:
                    self._confirm(tag, multiple)
            if not is_foreign:
                return True
            try:
                self._link.blocking_read(0)
            except TimeoutError:
                return True
        return False

    def _confirm(self, tag: int, multiple: bool) -> None:
        if multiple:
            for number in [number for number in self._unconfirmed if number <= tag]:
                del self._unconfirmed[number]
        else:
            self._unconfirmed.pop(tag, None)

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: Any) -> None:
        """There is no such queue. The confirmation that follows finds nothing to confirm."""
        with self._lock:
            reply = self._unconfirmed.pop(int(message.properties["message_id"]), None)
        if reply is not None:
            self._give_back(reply)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        """The broker could not take responsibility."""
        with self._lock:
            refused = [n for n in self._unconfirmed if n == tag or (multiple and n < tag)]
            replies = [self._unconfirmed.pop(number) for number in refused]
        for reply in replies:
            self._give_back(reply)


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
        self._lane: _Lane | None = None
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
            except _LaneBrokenError:
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
        """Return when the broker has everything that was sent."""
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.close()

    def _new_lane(self) -> _Lane | None:
        """Another thread's, if one was faster. None: replies go one by one."""
        with self._lock:
            if self._lane is not None or not self._is_possible:
                return self._lane
            # Not for sending, as far as oslo.messaging knows: such a connection is our own, and has
            # no thread that reads it.
            lent = self._driver._get_connection(self._amqpdriver.rpc_common.PURPOSE_LISTEN)
            try:
                self._lane = _Lane(lent, self._most, self._late.add)
            except _NoLaneError:
                self._is_possible = False
                lent.close()
                return None
            except Exception as error:  # noqa: BLE001  (whatever kombu's transport raises)
                LOG.info("no connection for replies: %s", error)
                lent.close()
                return None
            lane = self._lane
        self._on_new_lane()
        return lane

    def _without(self, lane: _Lane) -> _Lane | None:
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
