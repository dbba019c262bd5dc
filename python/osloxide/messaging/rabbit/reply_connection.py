"""A connection for replies that many threads publish on and no thread waits on.

Owns one connection of oslo.messaging's driver, the numbers of what is published on it, and the
replies that the broker has not confirmed yet. Those which it never will are given back: there is no
such queue, the broker refuses, or the connection is lost. Any thread publishes; one thread at a
time reads, whichever comes first.
Never opens a connection, and never sends anything twice.
Rules: RabbitMQ's publisher confirms; AMQP 0-9-1, ``basic.publish`` with ``mandatory``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from osloxide import _native
from osloxide.messaging.rabbit import errors

if TYPE_CHECKING:
    from osloxide.messaging.rabbit.reply import Reply

LOG = logging.getLogger(__name__)

#: Seconds that a connection that is closed waits for confirmations while the broker is alive.
CLOSING = 15.0

#: Bytes of replies that may wait for a broker which takes none; then their threads wait as well.
MOST_UNSENT = 64 * 1024 * 1024


#: How many connections a reply may lose with others beside it; from then on it is sent alone. It
#: may be the one that ends them, without a word from the broker that it refuses it.
MOST_LOSSES = 3


class ConnectionLostError(Exception):
    """Nothing was sent: the connection is gone."""


class FullError(Exception):
    """Nothing was sent: as much is unconfirmed, or unsent, as there may be."""


class Unsupported(Exception):
    """Replies of this transport cannot share a connection."""


class ReplyConnection:
    """A connection for replies alone, and those which the broker has not confirmed yet.

    Any thread may publish; one thread at a time reads, whichever comes first.
    """

    def __init__(self, lent: Any, most: int, give_back: Callable[[Reply], None]) -> None:
        """
        :param lent: a connection of the driver that has no other user; closed with this one.
        :param most: how many replies may be unconfirmed; then publishers wait.
        :param give_back: takes a reply that has to be sent in another way.
        :raises Unsupported: *lent* has no native connection.
        """
        self._lent = lent
        self.most = most
        """How many replies may be unconfirmed; then publishers wait."""
        self._give_back = give_back
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._unconfirmed: dict[int, Reply] = {}
        self._published = 0
        self.is_lost = False
        """Nothing can be sent any more."""
        self._channel = lent.connection.connection.channel()
        try:
            self._link = self._channel.connection
            # Kept: to ask a closed connection for it would open it again.
            self._transport = self._link.transport
        except AttributeError as error:  # a transport of kombu's own
            raise Unsupported(str(error)) from error
        native = getattr(self._transport, "_osloxide_connection", None)
        if native is None or lent.connection.kombu_compression:
            raise Unsupported("compression, no heartbeats, or TLS that is OpenSSL's")
        self._native = native
        self._is_mandatory = bool(lent.connection.direct_mandatory_flag)
        self.socket: socket.socket = self._transport.sock
        self._channel.events["basic_return"].add(self._on_return)
        self._channel.events["basic_nack"].add(self._on_nack)
        self._channel.confirm_select()

    @property
    def is_idle(self) -> bool:
        """Every reply is confirmed."""
        return not self._unconfirmed

    def is_confirmed(self, number: int) -> bool:
        """Whether nothing waits that was published up to *number*."""
        with self._lock:
            return next(iter(self._unconfirmed), number + 1) > number

    def publish(self, reply: Reply, *, may_wait: bool = True) -> int:
        """Write *reply*, and leave its confirmation to the thread that reads.

        :param may_wait: until there is room for it.
        :returns: its number: they count from one.
        :raises ConnectionLostError: it was not written; else it is this connection's from now on.
        :raises FullError: there is no room, and it may not wait.
        """
        if self._is_full:
            if not may_wait and not self.is_lost:
                raise FullError
            self._wait_for_room()
        body = json.dumps(reply.envelope)
        with self._lock:
            if self.is_lost:
                raise ConnectionLostError
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
                self._native.post(frames)
            except Exception as error:  # noqa: BLE001  (the connection is lost in any case)
                lost: Exception | None = error
            else:
                lost = None
        if lost is not None:
            self.break_off(lost)
        return number

    @property
    def _is_full(self) -> bool:
        return len(self._unconfirmed) >= self.most or self._native.unsent > MOST_UNSENT

    def _wait_for_room(self) -> None:
        """Read confirmations until there is room, or the connection is lost.

        A broker that is short of memory takes nothing for as long as that lasts, and goes on
        sending heartbeats: then all threads wait here, as for confirmations of their own.
        """
        while self._is_full and not self.is_lost:
            if self._reading.acquire(blocking=False):
                try:
                    self._wait_readable(1.0)
                    self._read()
                finally:
                    self._reading.release()
                self.check_alive()
            else:
                with self._reading:  # the thread that reads has read something then
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
        if self.is_lost:
            return
        try:
            self._link.heartbeat_tick()
        except Exception as error:  # noqa: BLE001  (py-amqp's transport raises many)
            self.break_off(error)

    def break_off(self, error: Exception) -> None:
        """Give up the connection, and give back what it has not confirmed."""
        with self._lock:
            if self.is_lost:
                return
            self.is_lost = True
            lost = list(self._unconfirmed.values())
            self._unconfirmed.clear()
        LOG.log(
            logging.WARNING if lost else logging.INFO,
            "connection for replies lost (%s); %d replies are sent again",
            error,
            len(lost),
        )
        self._native.close()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # a thread that sleeps on it wakes up
        # One of those that the broker refuses for good would end the next connection as well: then
        # each goes alone, and the one that is refused is found.
        may_share = errors.refusal(error) is None
        for reply in lost:
            reply.losses += 1
            reply.is_stranded = may_share and reply.losses < MOST_LOSSES
            self._give_back(reply)

    def wait_confirmed(self, number: int) -> None:
        """Wait until everything up to *number* is confirmed or the connection is lost.

        It is broken off when that takes too long.
        """
        deadline = time.monotonic() + CLOSING
        while not self.is_confirmed(number) and not self.is_lost:
            left = deadline - time.monotonic()
            if left <= 0:
                self.break_off(TimeoutError(f"no confirmation within {CLOSING:g} s"))
                return
            # For a moment only: others read as well, and need this lock for it.
            self._wait_readable(min(0.05, left))
            with self._reading:
                self._read()

    def close(self) -> None:
        """Wait until everything is confirmed or the connection is lost; then close it."""
        self.wait_confirmed(self._published)
        with self._reading:
            if self.is_lost:
                # No farewell to a peer that would not answer.
                with contextlib.suppress(Exception):
                    self._link.collect()
            with contextlib.suppress(Exception):
                self._lent.close()

    def _wait_readable(self, seconds: float) -> None:
        if self.socket.fileno() < 0 or getattr(self.socket, "pending", int)():
            return
        poll = select.poll()
        poll.register(self.socket.fileno(), select.POLLIN)
        poll.poll(seconds * 1000)

    def _read(self) -> None:
        try:
            while not self.is_lost and self._read_some():
                pass
        except Exception as error:  # noqa: BLE001  (py-amqp raises many)
            self.break_off(error)

    def _read_some(self) -> bool:
        """Whether there may be more to read."""
        transport = self._transport
        received = self._native.receive()
        if received is None:
            return False
        if not received:
            raise ConnectionResetError("the broker has closed it")
        transport._read_buffer += received
        while not self.is_lost:
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
