"""Queues that a broker no longer permits: one error that says what to set.

Owns the recognition of that answer to ``queue.declare``. RabbitMQ answers by closing the connection
with 541, as for an internal error, and oslo.messaging takes it for one that passes: it connects and
declares again every two seconds, for ever. Never changes how a queue is declared: the peers of a
service declare the same queues.
Rules: RabbitMQ's deprecated features (``deprecated_features.permit.*``, since 3.12);
oslo_messaging/_drivers/impl_rabbit.py (``Consumer.declare``).
"""

from __future__ import annotations

import functools
import re
from types import ModuleType
from typing import Any

_FEATURE = re.compile(r"Feature `(\w+)` is (?:deprecated|not permitted|removed)")

_REMEDIES = {
    "transient_nonexcl_queues": (
        "set [oslo_messaging_rabbit] rabbit_quorum_queue = true and "
        "rabbit_transient_quorum_queue = true, here and in all its peers"
    ),
    "classic_queue_mirroring": (
        "set [oslo_messaging_rabbit] rabbit_quorum_queue = true instead of rabbit_ha_queues, here "
        "and in all its peers"
    ),
}


class ForbiddenQueueError(Exception):
    """The broker does not permit queues of this kind. Final: no connection error, to kombu."""


def explanation(queue: str, error: BaseException) -> str | None:
    """What an operator can do about *error*, the answer to the declaration of *queue*.

    :returns: None where it is another error.
    """
    found = _FEATURE.search(str(error))
    if getattr(error, "code", None) != 541 or found is None:
        return None
    feature = found[1]
    remedy = _REMEDIES.get(feature, "declare it in another way")
    return (
        f"the broker does not permit the queue {queue!r}: {feature} is a deprecated feature of "
        f"RabbitMQ. Either {remedy}; or permit it in rabbitmq.conf by "
        f"deprecated_features.permit.{feature} = true, while the broker knows that feature"
    )


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
