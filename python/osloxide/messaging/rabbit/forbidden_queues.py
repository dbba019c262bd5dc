"""Queues that a broker no longer permits: one error that says what to set.

Owns what is made of that answer to ``queue.declare`` over kombu; what is said of it is the native
client's as well (``src/amqp/client/refusals.rs``). RabbitMQ answers by closing the connection
with 541, as for an internal error, and oslo.messaging takes it for one that passes: it connects and
declares again every two seconds, for ever. Never changes how a queue is declared: the peers of a
service declare the same queues.
Rules: RabbitMQ's deprecated features (``deprecated_features.permit.*``, since 3.12);
oslo_messaging/_drivers/impl_rabbit.py (``Consumer.declare``).
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from osloxide import _native

_INTERNAL_ERROR = 541


class ForbiddenQueueError(Exception):
    """The broker does not permit queues of this kind. Final: no connection error, to kombu."""


def explanation(queue: str, error: BaseException) -> str | None:
    """What an operator can do about *error*, the answer to the declaration of *queue*.

    :returns: None where it is another error.
    """
    if getattr(error, "code", None) != _INTERNAL_ERROR:
        return None
    remedy = _native.amqp_remedy(_INTERNAL_ERROR, str(error))
    return remedy and f"the broker does not permit the queue {queue!r}: {remedy}"


def amend_channel(module: ModuleType) -> None:
    """Change py-amqp's module ``amqp.channel``."""
    cls = module.Channel
    queue_declare = cls.queue_declare

    @functools.wraps(queue_declare)
    def queue_declare_or_explain(self: Any, queue: str = "", *rest: Any, **keywords: Any) -> Any:
        try:
            return queue_declare(self, queue, *rest, **keywords)
        except Exception as error:
            why = explanation(queue, error)
            if why is None:
                raise
            raise ForbiddenQueueError(why) from error

    cls.queue_declare = queue_declare_or_explain
