"""What is sent over RabbitMQ without kombu: calls, casts, fanout casts, notifications.

Owns the choice of who sends a message of oslo.messaging's driver: kombu, or the native client
(``src/amqp/client/``) by :mod:`osloxide.messaging.rabbit.native_request`; and the choice of a
listener (:mod:`osloxide.messaging.rabbit.native_listener`). Every transport whose settings the
native client does not have stays with kombu; the log says once which setting it is. Opens nothing
before the first message, and never uses a client of the process that this one was forked from.
Rules: ``AMQPDriverBase._send`` and ``ReplyWaiter.wait`` of oslo_messaging/_drivers/amqpdriver.py,
``Connection.topic_send``, ``fanout_send`` and ``notify_send`` of
oslo_messaging/_drivers/impl_rabbit.py; docs/rpc.md.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import random
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Callable
from types import ModuleType
from typing import Any

from osloxide import _native
from osloxide.activation.import_hook import refuse_if_monkey_patched
from osloxide.messaging.rabbit import tls
from osloxide.messaging.rabbit.native_arguments import consumer_arguments, queue_arguments

LOG = logging.getLogger(__name__)

KOMBU_FOR = 60.0
"""Seconds for which messages go by kombu after a broker has refused the native client."""

FAREWELL = 2.0
"""Seconds that closing a transport waits for the broker's farewell."""

_LOGIN_METHODS = ("AMQPLAIN", "PLAIN", "EXTERNAL")


class UnsupportedError(Exception):
    """A setting that the native client does not have."""


class _Slot:
    """The client of one driver in one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.client: _native.AmqpClient | None = None
        self.subscriber: _native.AmqpSubscriber | None = None
        self.reply_queue = ""
        #: Arguments of the queues in which notifications wait, from the first one on: options are
        #: read once, as impl_rabbit reads them for a connection.
        self.default_queue: dict[str, Any] | None = None
        #: Of exchanges, as soon as there is a client: whether they are durable, and auto-deleted.
        self.topic_flags = self.fanout_flags = (False, False)
        self.kombu_until = float("-inf")


_slots = threading.Lock()
os.register_at_fork(
    before=_slots.acquire, after_in_parent=_slots.release, after_in_child=_slots.release
)

_left: list[_Slot] = []
"""Slots of the process that this one was forked from: their locks may be held, for ever."""


def amend_driver(amqpdriver: ModuleType) -> None:
    """Change ``oslo_messaging._drivers.amqpdriver.AMQPDriverBase``."""
    # It imports oslo.messaging, which has to be there.
    from osloxide.messaging.rabbit import native_request

    cls = amqpdriver.AMQPDriverBase
    send, cleanup = cls._send, cls.cleanup
    listen, listen_for_notifications = cls.listen, cls.listen_for_notifications

    @functools.wraps(send)
    def send_natively(
        self: Any,
        target: Any,
        ctxt: Any,
        message: Any,
        wait_for_reply: bool | None = None,
        timeout: float | None = None,
        call_monitor_timeout: float | None = None,
        envelope: bool = True,
        notify: bool = False,
        retry: int | None = None,
        transport_options: Any = None,
    ) -> Any:
        slot = _slot(self)
        client = _client(self, slot)
        if client is not None:
            request = native_request.Request(
                self, target, transport_options, is_notification=notify
            )
            request.monitor = call_monitor_timeout
            reply_queue = slot.reply_queue if wait_for_reply else None
            request.pack(ctxt, message, reply_queue, has_envelope=envelope)
            try:
                default_queue = _default_queue(amqpdriver, self, slot) if notify else None
                flags = slot.fanout_flags if request.is_fanout else slot.topic_flags
                return request.run(client, timeout, retry, flags, default_queue)
            except native_request.RefusedError as refusal:
                _go_by_kombu(slot, client, refusal)
        return send(
            self, target, ctxt, message, wait_for_reply, timeout, call_monitor_timeout,
            envelope, notify, retry, transport_options,
        )  # fmt: skip

    @functools.wraps(cleanup)
    def clean_up_both(self: Any) -> None:
        slot = self.__dict__.pop("_osloxide_slot", None)
        if slot is not None and slot.pid == os.getpid():
            if slot.subscriber is not None:
                slot.subscriber.close(FAREWELL)
            if slot.client is not None:
                slot.client.close(FAREWELL)
        elif slot is not None:
            _left.append(slot)
        cleanup(self)

    @functools.wraps(listen)
    def listen_natively(self: Any, target: Any, batch_size: int, batch_timeout: Any) -> Any:
        listener = _listener(
            self,
            lambda module, subscriber: module.NativeAdapter(
                module.listener_for_requests(self, subscriber, target, _client_of),
                batch_size,
                batch_timeout,
            ),
        )
        if listener is None:
            return listen(self, target, batch_size, batch_timeout)
        return listener

    @functools.wraps(listen_for_notifications)
    def listen_for_notifications_natively(
        self: Any, targets_and_priorities: Any, pool: Any, batch_size: int, batch_timeout: Any
    ) -> Any:
        listener = _listener(
            self,
            lambda module, subscriber: module.listener_for_notifications(
                self, subscriber, targets_and_priorities, pool, batch_size
            ),
        )
        if listener is None:
            return listen_for_notifications(
                self, targets_and_priorities, pool, batch_size, batch_timeout
            )
        return amqpdriver.base.PollStyleListenerAdapter(listener, batch_size, batch_timeout)

    cls._send, cls.cleanup = send_natively, clean_up_both
    cls.listen = listen_natively
    cls.listen_for_notifications = listen_for_notifications_natively


def _listener(driver: Any, make: Callable[[ModuleType, _native.AmqpSubscriber], Any]) -> Any:
    """A listener without kombu; None where it has to be kombu's.

    :param make: makes it with :mod:`osloxide.messaging.rabbit.native_listener`.
    """
    slot = _slot(driver)
    client = _client(driver, slot)
    if client is None:
        return None
    with slot.lock:
        if slot.subscriber is None:
            slot.subscriber = _native.AmqpSubscriber(client)
    # It imports oslo.messaging, which has to be there.
    from osloxide.messaging.rabbit import native_listener

    try:
        return make(native_listener, slot.subscriber)
    except native_listener.UnusableError as reason:
        LOG.warning("a listener is kombu's: the native one is refused: %s", reason)
        return None


def _client_of(driver: Any) -> _native.AmqpClient | None:
    """The native client of *driver* in this process; None while messages go by kombu."""
    return _client(driver, _slot(driver))


def _slot(driver: Any) -> _Slot:
    slot: _Slot | None = driver.__dict__.get("_osloxide_slot")
    if slot is not None and slot.pid == os.getpid():
        return slot
    with _slots:
        slot = driver.__dict__.get("_osloxide_slot")
        if slot is None or slot.pid != os.getpid():
            if slot is not None:
                _left.append(slot)
            slot = driver.__dict__["_osloxide_slot"] = _Slot()
        return slot


def _client(driver: Any, slot: _Slot) -> _native.AmqpClient | None:
    """The native client of *driver* in this process; None while its requests go by kombu."""
    client = slot.client
    if client is not None or time.monotonic() < slot.kombu_until:
        return client
    with slot.lock:
        if slot.client is None and time.monotonic() >= slot.kombu_until:
            try:
                client, slot.reply_queue = _new_client(driver)
            except UnsupportedError as reason:
                LOG.warning("messages go by kombu: the native client has no %s", reason)
                slot.kombu_until = float("inf")
            else:
                conf = driver.conf.oslo_messaging_rabbit
                is_durable = conf.amqp_durable_queues or conf.rabbit_quorum_queue
                slot.topic_flags = is_durable, conf.amqp_auto_delete
                slot.fanout_flags = conf.rabbit_transient_quorum_queue, True
                slot.client = client  # read without the lock, and last
        return slot.client


def _go_by_kombu(slot: _Slot, client: _native.AmqpClient, reason: Exception) -> None:
    with slot.lock:
        if slot.client is not client:
            return
        slot.client = None
        slot.kombu_until = time.monotonic() + KOMBU_FOR
    LOG.warning(
        "messages go by kombu for %g s: the native client is refused: %s", KOMBU_FOR, reason
    )
    client.close(0)


def _new_client(driver: Any) -> tuple[_native.AmqpClient, str]:
    """A client that has connected with nothing, and the name of its reply queue.

    :raises UnsupportedError: for settings that are kombu's alone.
    """
    from oslo_messaging._drivers import impl_rabbit

    refuse_if_monkey_patched()
    url = driver._url
    if not isinstance(driver, impl_rabbit.RabbitDriver) or url.transport != "rabbit":
        raise UnsupportedError(f"transport {url.transport}")
    conf = driver.conf.oslo_messaging_rabbit
    if conf.kombu_compression:
        raise UnsupportedError(f"kombu_compression = {conf.kombu_compression}")
    if conf.rabbit_login_method not in _LOGIN_METHODS:
        raise UnsupportedError(f"rabbit_login_method = {conf.rabbit_login_method}")
    if conf.rabbit_stream_fanout and (
        conf.rabbit_qos_prefetch_count <= 0 or not conf.rabbit_transient_quorum_queue
    ):
        raise UnsupportedError("rabbit_stream_fanout without what it needs")
    arguments = queue_arguments(
        impl_rabbit,
        conf,
        conf.rabbit_transient_queues_ttl,
        is_quorum=conf.rabbit_transient_quorum_queue,
    )
    reply_queue = driver._get_reply_queue_name()
    client = _native.AmqpClient(
        _hosts(url),
        url.virtual_host or "/",
        conf.rabbit_login_method,
        min(conf.heartbeat_timeout_threshold, 0xFFFF),
        f"{os.path.basename(sys.argv[0])}:{os.getpid()}:{uuid.uuid4()}",
        reply_queue,
        (
            conf.rabbit_retry_interval,
            conf.rabbit_retry_backoff,
            conf.rabbit_interval_max,
            max(0.0, conf.kombu_reconnect_delay),
            max(0.0, conf.kombu_reconnect_splay),
        ),
        _decode,
        tls=_tls(impl_rabbit, conf),
        durable_replies=conf.rabbit_transient_quorum_queue,
        queue_arguments=arguments,
        consumer_arguments=consumer_arguments(conf),
        shuffle=conf.kombu_failover_strategy == "shuffle",
        durable_requests=conf.amqp_durable_queues or conf.rabbit_quorum_queue,
    )
    return client, reply_queue


def _default_queue(amqpdriver: ModuleType, driver: Any, slot: _Slot) -> dict[str, Any]:
    """Arguments of the queue in which a notification waits for listeners still to come.

    :raises MessageDeliveryFailure: the options of queues contradict each other.
    """
    from oslo_messaging._drivers import impl_rabbit

    if slot.default_queue is None:
        conf = driver.conf.oslo_messaging_rabbit
        try:
            slot.default_queue = queue_arguments(
                impl_rabbit, conf, 0, is_quorum=conf.rabbit_quorum_queue
            )
        except RuntimeError as error:
            raise amqpdriver.oslo_messaging.MessageDeliveryFailure(str(error)) from error
    return slot.default_queue


def _hosts(url: Any) -> list[tuple[str, int, str, str]]:
    """Name, port, user and password of each host, in an order of chance as kombu gets them."""
    hosts = [
        (
            host.hostname or "localhost",
            host.port or 5672,
            host.username or "guest",
            host.password or "guest",
        )
        for host in url.hosts
    ]
    random.shuffle(hosts)
    return hosts or [("localhost", 5672, "guest", "guest")]


def _tls(impl_rabbit: ModuleType, conf: Any) -> tuple[Any, ...] | None:
    """Files for TLS; None for none.

    :raises ConfigurationError: a file cannot be used.
    :raises UnsupportedError: OpenSSL has to make the connections.
    """
    if not conf.ssl:
        return None
    tls.check_options(conf)
    if conf.ssl_enforce_fips_mode:
        raise UnsupportedError("ssl_enforce_fips_mode")
    options: dict[str, Any] = {}
    if conf.ssl_version:
        version = impl_rabbit.Connection.validate_ssl_version(conf.ssl_version)
        options["ssl_version"] = version
    if conf.ssl_ca_file:
        options["ca_certs"] = conf.ssl_ca_file
        options["cert_reqs"] = ssl.CERT_REQUIRED
        options["server_hostname"] = "each"  # of the hosts, its own
    reason = tls.foreign(options)
    if reason is not None:
        raise UnsupportedError(f"TLS with {reason}")
    roots = tls.root_paths(options)
    identity = None
    if conf.ssl_cert_file:
        identity = conf.ssl_cert_file, conf.ssl_key_file or conf.ssl_cert_file
    return roots, bool(conf.ssl_ca_file), identity


def _decode(
    content_type: str, content_encoding: str, compression: str | None, body: bytes
) -> tuple[str, bytes] | None:
    """Make sense of a reply that is not plain JSON, as kombu does: its call, and plain JSON."""
    from oslo_messaging._drivers import common

    serialization: Any = importlib.import_module("kombu.serialization")
    if compression:
        body = importlib.import_module("kombu.compression").decompress(body, compression)
    data = serialization.loads(body, content_type, content_encoding or "utf-8")
    msg_id = common.deserialize_msg(data).get("_msg_id")
    if not isinstance(msg_id, str):
        return None
    return msg_id, json.dumps(data).encode()
