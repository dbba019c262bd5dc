"""The amendments of oslo.messaging and py-amqp, each with the names that it relies on.

Owns the choice of what is amended with what; :mod:`osloxide.activation.amendments` calls these
functions right after the bodies of the modules ran, and leaves out those of which a name is
missing. Imports nothing of oslo.messaging itself: a service that does not use it pays nothing.
Why each change: docs/rpc.md.
"""

from __future__ import annotations

import logging
import os
from types import ModuleType, SimpleNamespace
from typing import Any

from osloxide.activation import amendments, environment
from osloxide.activation.amendments import relies_on
from osloxide.messaging import dispatch, forked_servers, instrumentation
from osloxide.messaging.rabbit import (
    connection_pool,
    epochs,
    forbidden_queues,
    fork,
    heartbeats,
    native_client,
    outage,
    reconnection,
    reply_waiter,
    tls,
    unreadable,
)

LOG = logging.getLogger(__name__)


@relies_on("Connection._on_tune", "Connection.heartbeat_tick", "Connection.transport")
def amend_amqp_connection(connection: ModuleType) -> None:
    """Send heartbeats natively (``amqp.connection``)."""
    heartbeats.amend_amqp(connection)


@relies_on(
    "SSLTransport._setup_transport",
    "SSLTransport.connect",
    "SSLTransport._shutdown_transport",
    "SSLTransport._write",
)
def make_tls_natively(transport: ModuleType) -> None:
    """Shake hands and make records without OpenSSL (``amqp.transport``)."""
    tls.amend_transport(transport)


@relies_on(
    "Connection.ensure_connection",
    "Connection._fetch_ssl_params",
)
def check_tls_options(impl_rabbit: ModuleType) -> None:
    """Refuse files of TLS that cannot be used, instead of trying for ever (``impl_rabbit``)."""
    tls.amend_connection(impl_rabbit)


@relies_on(
    "Channel._do_revive",
    "Channel._on_close",
    "Channel._on_open_ok",
    "Channel.basic_qos",
    "Channel.close",
    "Channel.collect",
)
def tell_epochs_apart(channel: ModuleType) -> None:
    """Let no delivery tag outlive its opening of a channel (``amqp.channel``)."""
    epochs.amend_channel(channel)


@relies_on("Channel.queue_declare")
def explain_forbidden_queues(channel: ModuleType) -> None:
    """Say what to set where a broker no longer permits a queue (``amqp.channel``)."""
    forbidden_queues.amend_channel(channel)


@relies_on("FrameSyntaxError", "GenericContent._load_properties", "loads")
def read_all_properties(serialization: ModuleType) -> None:
    """Let no message end its connection by its properties (``amqp.serialization``)."""
    unreadable.amend_serialization(serialization)


@relies_on("Consumer._callback")
def reject_unreadable(impl_rabbit: ModuleType) -> None:
    """Reject messages whose properties cannot be read (``impl_rabbit``)."""
    unreadable.amend_consumer(impl_rabbit)


@relies_on("Connection._heartbeat_start", "Connection.ensure_connection")
def share_heartbeat_thread(impl_rabbit: ModuleType) -> None:
    """Have one heartbeat thread instead of one for each connection (``impl_rabbit``)."""
    heartbeats.amend_connection(impl_rabbit)


@relies_on(
    "Connection._ensure_publishing", "Connection._set_current_channel", "Connection.topic_send"
)
def survive_outages(impl_rabbit: ModuleType) -> None:
    """Send again what no queue took after a reconnection (``impl_rabbit``)."""
    outage.amend_connection(impl_rabbit)


@relies_on(
    "Connection._set_current_channel",
    "Connection.consume",
    "Connection.set_transport_socket_timeout",
    "Connection.stop_consuming",
    "kombu.connection.Connection._connection",
    "kombu.connection.Connection.collect",
    "kombu.connection.Connection.completes_cycle",
    "kombu.connection.Connection.connected",
    "kombu.connection.Connection.maybe_switch_next",
    "kombu.exceptions.OperationalError",
    "rpc_common.Timeout",
)
def leave_dead_hosts(impl_rabbit: ModuleType) -> None:
    """Connect consumers again with one host after the other (``impl_rabbit``)."""
    reconnection.amend_connection(impl_rabbit)


@relies_on("ReplyWaiter.wait", "ReplyWaiter._process_reply", "oslo_messaging.MessagingTimeout")
def end_lost_calls(amqpdriver: ModuleType) -> None:
    """End calls whose requests the broker has lost (``amqpdriver``)."""
    outage.amend_waiters(amqpdriver)


@relies_on("ReplyWaiter.poll", "ReplyWaiter.stop", "rpc_common.Timeout")
def wake_reply_waiter(amqpdriver: ModuleType) -> None:
    """Sleep on the socket instead of polling (``amqpdriver``)."""
    reply_waiter.amend(amqpdriver)


@relies_on(
    "AMQPIncomingMessage._send_reply",
    "AMQPListener.poll",
    "RpcAMQPListener",
    "rpc_amqp.UNIQUE_ID",
    "rpc_amqp.AMQPDestinationNotFound",
    "rpc_amqp.unpack_context",
    "rpc_common.DuplicateMessageError",
    "rpc_common.PURPOSE_LISTEN",
    "rpc_common.PURPOSE_SEND",
    "rpc_common.Timeout",
    "rpc_common.deserialize_msg",
)
def pace_rpc(amqpdriver: ModuleType) -> None:
    """Acknowledge requests when they are picked up (``amqpdriver``)."""
    # Without the other end in the RPC server nothing would ever be acknowledged, and without epochs
    # tags would acknowledge other messages.
    for needed in (
        "oslo_messaging.rpc.server by osloxide.messaging.hook:amend_rpc_server",
        "amqp.channel by osloxide.messaging.hook:tell_epochs_apart",
    ):
        if needed in amendments.left_alone:
            LOG.warning("requests are acknowledged on arrival: %s", amendments.left_alone[needed])
            return
    amqpdriver.RpcAMQPListener = _paced_listener  # type: ignore[attr-defined]


@relies_on(
    "AMQPDriverBase._send",
    "AMQPDriverBase.cleanup",
    "AMQPDriverBase.listen",
    "AMQPDriverBase.listen_for_notifications",
    "AMQPIncomingMessage._send_reply",
    "base.PollStyleListenerAdapter",
    "AMQPDriverBase._get_exchange",
    "AMQPDriverBase._get_reply_queue_name",
    "rpc_amqp.UNIQUE_ID",
    "rpc_amqp._add_unique_id",
    "rpc_amqp.pack_context",
    "rpc_common.deserialize_msg",
    "rpc_common.deserialize_remote_exception",
    "rpc_common.serialize_msg",
    "oslo_messaging.MessagingTimeout",
    wanted=lambda: environment.wants_native_rpc(os.environ),
)
def send_natively(amqpdriver: ModuleType) -> None:
    """Send messages without kombu, where the operator wants it (``amqpdriver``)."""
    native_client.amend_driver(amqpdriver)


def _paced_listener(driver: Any, conn: Any) -> Any:
    # Its base class is amqpdriver's own, so it cannot be imported before that module is complete.
    from osloxide.messaging.rabbit.listener import PacedListener

    return PacedListener(driver, conn)


@relies_on("ConnectionPool.put", "ConnectionPool.get", "ConnectionPool.expire")
def sweep_connections(pool: ModuleType) -> None:
    """Close connections that are idle (``oslo_messaging._drivers.pool``)."""
    connection_pool.amend(pool)


@relies_on("ConnectionPool.__init__")
def begin_pools_in_child(pool: ModuleType) -> None:
    """Give a forked child connections of its own (``oslo_messaging._drivers.pool``)."""
    fork.amend_pool(pool)


@relies_on("AMQPDriverBase.__init__", "AMQPDriverBase._get_reply_q")
def begin_replies_in_child(amqpdriver: ModuleType) -> None:
    """Give a forked child a queue of replies of its own (``amqpdriver``)."""
    fork.amend_driver(amqpdriver)


@relies_on(
    "RPCDispatcher.dispatch",
    "RPCDispatcher._do_dispatch",
    "ExpectedException",
    "eventletutils",
    "threading",
    "utils.version_is_compatible",
)
def amend_dispatcher(dispatcher: ModuleType) -> None:
    """Run coroutines (``oslo_messaging.rpc.dispatcher``)."""
    dispatch.amend_dispatcher(dispatcher)


@relies_on(
    "RPCServer._create_listener",
    "RPCServer._process_incoming",
    "expected_exceptions",
    "rpc_dispatcher.ExpectedException",
)
def amend_rpc_server(server: ModuleType) -> None:
    """Pick requests up before they run (``oslo_messaging.rpc.server``)."""
    dispatch.amend_rpc_server(server)
    instrumentation.amend(server)


@relies_on("_BaseCallContext.call", "_BaseCallContext.cast")
def amend_rpc_client(client: ModuleType) -> None:
    """Pass by what is off (``oslo_messaging.rpc.client``)."""
    instrumentation.amend(client)


@relies_on("MessageHandlingServer._on_incoming", "driver.DriverManager")
def amend_server(server: ModuleType) -> None:
    """Give servers our executor where they look up theirs (``oslo_messaging.server``).

    A second distribution cannot register ``threading`` beside futurist's: stevedore refuses names
    that are taken. Both names mean the same here, since nothing under osloxide has green threads;
    and futurist is not loaded at all.
    """
    server.driver = _Executors(server.driver)  # type: ignore[attr-defined]
    dispatch.amend_server(server)


@relies_on(
    "MessageHandlingServer.__init__",
    "MessageHandlingServer.reset_states",
    "_OrderedTask.COMPLETE",
    "_OrderedTask.INIT",
)
def end_servers_in_child(server: ModuleType) -> None:
    """Let a forked child start servers of its own (``oslo_messaging.server``)."""
    forked_servers.register(server)


class _Executors:
    """``stevedore.driver`` as oslo_messaging.server uses it, knowing one more driver."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def DriverManager(self, namespace: str, name: str, **options: Any) -> Any:  # noqa: N802
        if namespace == "oslo.messaging.executors":
            from osloxide.messaging.executor import Executor

            return SimpleNamespace(driver=Executor)
        return self._driver.DriverManager(namespace, name, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)
