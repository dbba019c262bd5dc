"""Epochs of AMQP channels: the time between two openings, in which delivery tags mean something.

Owns :class:`Epoch` and the change to py-amqp's channels. When a broker closes a channel (a request
that waited longer than its ``consumer_timeout``, a tag that it does not know) py-amqp opens the
same object again at once: tags of before would acknowledge other messages, and the prefetch is
gone.
Here each opening is an epoch of its own, and a channel that is opened again has the prefetch that
it had. Never decides what becomes of a message.
Rules: AMQP 0-9-1, ``channel.close`` and ``basic.deliver`` (a delivery tag is valid only within the
channel from which it was received); amqp/channel.py (``_on_close``, ``_do_revive``).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any


class Epoch:
    """One opening of a channel."""

    __slots__ = ("_lock", "is_over", "reason")

    def __init__(self) -> None:
        # Re-entrant: what is sent may find out that the connection is lost.
        self._lock = threading.RLock()
        self.is_over = False
        """Tags of this epoch mean nothing any more."""
        self.reason = ""
        """What the broker said when it ended the epoch; empty when this side did."""

    def run(self, operation: Callable[[], None]) -> bool:
        """Run *operation*, which sends something about a tag of this epoch, and must not wait.

        :returns: False when the epoch is over; nothing was done.
        """
        with self._lock:
            if self.is_over:
                return False
            operation()
            return True

    def end(self, reason: str = "") -> None:
        """Let no tag of this epoch be used from now on."""
        with self._lock:
            if not self.is_over:
                self.is_over, self.reason = True, reason


def of(channel: Any) -> Epoch:
    """The present epoch of *channel*; one without end where channels are never opened again, as
    those of kombu's own transports are not."""
    epoch: Epoch | None = getattr(channel, "_osloxide_epoch", None)
    if epoch is None:
        epoch = channel._osloxide_epoch = Epoch()
    return epoch


def amend_channel(module: ModuleType) -> None:
    """Change py-amqp's module ``amqp.channel``."""
    cls = module.Channel
    on_open_ok, on_close, revive = cls._on_open_ok, cls._on_close, cls._do_revive
    close, collect, basic_qos = cls.close, cls.collect, cls.basic_qos

    @functools.wraps(on_open_ok)
    def open_epoch(self: Any) -> Any:
        self._osloxide_epoch = Epoch()
        return on_open_ok(self)

    @functools.wraps(basic_qos)
    def remember_qos(self: Any, *arguments: Any, **keywords: Any) -> Any:
        self._osloxide_qos = arguments, keywords
        return basic_qos(self, *arguments, **keywords)

    @functools.wraps(revive)
    def revive_with_qos(self: Any) -> Any:
        revive(self)
        qos = getattr(self, "_osloxide_qos", None)
        if qos is not None:
            basic_qos(self, *qos[0], **qos[1])

    # Each epoch ends before the other side hears of it: an acknowledgement on a channel that is not
    # open costs the connection.
    @functools.wraps(on_close)
    def end_epoch_by_broker(self: Any, reply_code: int, reply_text: str, *where: Any) -> Any:
        of(self).end(f"{reply_code} {reply_text}")
        return on_close(self, reply_code, reply_text, *where)

    def ending(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def end_epoch(self: Any, *arguments: Any, **keywords: Any) -> Any:
            of(self).end()
            return function(self, *arguments, **keywords)

        return end_epoch

    cls._on_open_ok, cls._do_revive, cls.basic_qos = open_epoch, revive_with_qos, remember_qos
    cls._on_close, cls.close, cls.collect = end_epoch_by_broker, ending(close), ending(collect)
