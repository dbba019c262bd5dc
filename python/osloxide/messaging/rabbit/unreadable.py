"""Messages whose properties py-amqp cannot read: rejected one by one, the others are served.

Owns what becomes of such a message over kombu. py-amqp raises where it reads a content header, in
the middle of a connection's frames: the connection is given up, the message is delivered again on
the next one, and so on for ever. Brokers pass a header on as its publisher wrote it: a short string
that is no UTF-8, a date beyond the year 9999, tables nested deeper than Python's stack. What is no
UTF-8 is read with surrogates. Never looks at a body, nor at a frame that is none.
Rules: ``GenericContent`` and ``loads`` of py-amqp; ``Consumer._callback`` of
oslo_messaging/_drivers/impl_rabbit.py; the native listeners do the same
(``src/amqp/client/listening.rs``).
"""

from __future__ import annotations

import functools
import logging
import struct
from types import ModuleType
from typing import Any

from osloxide._typing import override

LOG = logging.getLogger(__name__)


class _Lenient(bytes):
    """Bytes of which every slice can be read as text."""

    @override
    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Lenient(found) if isinstance(found, bytes) else found

    @override
    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return super().decode(encoding, "surrogateescape")


def amend_serialization(module: ModuleType) -> None:
    """Change py-amqp's module ``amqp.serialization``."""
    cls, loads = module.GenericContent, module.loads
    load_properties = cls._load_properties
    unreadable = (
        ArithmeticError, IndexError, OSError, RecursionError, ValueError, module.FrameSyntaxError,
        struct.error,
    )  # fmt: skip

    @functools.wraps(loads)
    def loads_leniently(format: Any, buf: Any, offset: int) -> Any:
        try:
            return loads(format, buf, offset)
        except UnicodeDecodeError:
            return loads(format, _Lenient(buf), offset)

    @functools.wraps(load_properties)
    def load_properties_or_none(self: Any, class_id: int, buf: Any, offset: int) -> Any:
        try:
            try:
                return load_properties(self, class_id, buf, offset)
            except UnicodeDecodeError:
                return load_properties(self, class_id, _Lenient(buf), offset)
        except unreadable as error:
            self.properties = {}
            self.unreadable = f"{type(error).__name__}: {error}"
            return offset

    module.loads = loads_leniently  # type: ignore[attr-defined]
    cls._load_properties = load_properties_or_none


def amend_consumer(impl_rabbit: ModuleType) -> None:
    """Change ``oslo_messaging._drivers.impl_rabbit.Consumer``."""
    cls = impl_rabbit.Consumer
    callback = cls._callback

    @functools.wraps(callback)
    def callback_or_reject(self: Any, message: Any) -> None:
        why = getattr(message, "unreadable", None)
        if why is None:
            callback(self, message)
            return
        place = message.delivery_info
        LOG.error(
            "a message whose properties cannot be read is rejected: queue %r, exchange %r, "
            "routing key %r, %d bytes: %s",
            self.queue_name,
            place["exchange"],
            place["routing_key"],
            message.body_size,
            why,
        )
        self.queue.channel.message_to_python(message).reject()

    cls._callback = callback_or_reject
