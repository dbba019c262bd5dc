"""The arguments of queues and consumers that the native transport declares.

Owns what the two ends share: the client for its reply queue, listeners for theirs. Never declares
one, and imports no oslo.messaging: the caller hands its module over. Rules:
``_get_queue_arguments`` and ``Consumer`` of oslo_messaging/_drivers/impl_rabbit.py.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any


def queue_arguments(
    impl_rabbit: ModuleType, conf: Any, ttl: int, *, is_quorum: bool, is_stream: bool = False
) -> dict[str, Any]:
    """Those of ``queue.declare``, as impl_rabbit makes them.

    :raises RuntimeError: ``rabbit_ha_queues`` together with quorum queues.
    """
    arguments: dict[str, Any] = impl_rabbit._get_queue_arguments(
        conf.rabbit_ha_queues,
        ttl,
        is_quorum,
        impl_rabbit.QuorumMemConfig(
            conf.rabbit_quorum_delivery_limit,
            conf.rabbit_quorum_max_memory_length,
            conf.rabbit_quorum_max_memory_bytes,
        ),
        is_stream,
    )
    return arguments


def consumer_arguments(conf: Any) -> dict[str, Any] | None:
    """Those of ``basic.consume``."""
    return {"x-cancel-on-ha-failover": True} if conf.enable_cancel_on_failover else None
