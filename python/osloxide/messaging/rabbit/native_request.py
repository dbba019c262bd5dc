"""One message on its way over RabbitMQ without kombu, and what becomes of it.

Owns the text of a request, how long its caller waits, and which result or exception that gets.
Which client sends it, and whether kombu does, is decided by
:mod:`osloxide.messaging.rabbit.native_client`.

Imports oslo.messaging: to be imported after it, by what amends it.
Rules: ``AMQPDriverBase._send`` and ``ReplyWaiter.wait`` of oslo_messaging/_drivers/amqpdriver.py,
``Connection.topic_send``, ``fanout_send`` and ``notify_send`` of
oslo_messaging/_drivers/impl_rabbit.py; docs/rpc.md.
"""

from __future__ import annotations

import importlib
import json
import logging
from typing import Any

import oslo_messaging
from oslo_messaging._drivers import amqp as rpc_amqp
from oslo_messaging._drivers import common as rpc_common

from osloxide import _native
from osloxide.messaging.rabbit import envelope

LOG = logging.getLogger(__name__)


class RefusedError(Exception):
    """The native client cannot be used with this broker."""


class Request:
    """One call, cast or notification."""

    monitor: float | None = None

    def __init__(
        self,
        driver: Any,
        target: Any,
        transport_options: Any,
        *,
        is_notification: bool,
    ) -> None:
        self._driver = driver
        self.is_fanout = bool(target.fanout) and not is_notification
        # What impl_rabbit passes on to a fanout or a notification: no timeout, and no options.
        self._is_plain = not (self.is_fanout or is_notification)
        if self.is_fanout:
            self._exchange, self._topic = f"{target.topic}_fanout", ""
        else:
            self._exchange, self._topic = driver._get_exchange(target), target.topic
        if self._is_plain and target.server:
            self._topic = f"{target.topic}.{target.server}"
        self._is_mandatory = bool(
            self._is_plain and transport_options and transport_options.at_least_once
        )
        self._msg_id: str | None = None
        self._reply_queue: str | None = None
        self._body = ""

    def pack(
        self, ctxt: Any, message: dict[str, Any], reply_queue: str | None, *, has_envelope: bool
    ) -> None:
        """Make the body; *reply_queue* is where a call's replies are expected.

        :param has_envelope: False for notifications of version 1, which have none.
        """
        msg = dict(message)
        if reply_queue is not None:
            self._reply_queue = reply_queue
            self._msg_id = envelope.unique_id()
            msg["_msg_id"] = self._msg_id
            msg["_reply_q"] = reply_queue
            msg["_timeout"] = self.monitor
        msg[rpc_amqp.UNIQUE_ID] = envelope.unique_id()
        if isinstance(ctxt, dict):
            for key, value in ctxt.items():
                msg[f"_context_{key}"] = value
        else:
            rpc_amqp.pack_context(msg, ctxt)
        if has_envelope:
            self._body = envelope.sealed(msg)
        else:
            # Values that are no JSON are kombu's to write, as its readers expect them.
            self._body = importlib.import_module("kombu.utils.json").dumps(msg)
        if LOG.isEnabledFor(logging.DEBUG):
            LOG.debug(
                "%s: exchange '%s' topic '%s'",
                f"CALL msg_id: {self._msg_id}"
                if self._msg_id
                else f"CAST unique_id: {msg[rpc_amqp.UNIQUE_ID]}",
                self._exchange,
                self._topic,
            )

    def run(
        self,
        client: _native.AmqpClient,
        timeout: float | None,
        retry: int | None,
        flags: tuple[bool, bool],
        default_queue: dict[str, Any] | None,
    ) -> Any:
        """Send it, and wait for what it is to wait for.

        :param flags: whether its exchange is durable, and auto-deleted.
        :param default_queue: arguments of the queue of a notification.
        :raises RefusedError: the native client cannot be used; nothing was sent.
        """
        is_durable, is_auto_delete = flags
        has_expiration = self._is_plain and timeout is not None
        pending = client.send(
            self._exchange,
            self._topic,
            self._body,
            fanout=self.is_fanout,
            durable=is_durable,
            auto_delete=is_auto_delete,
            default_queue=default_queue,
            expiration=int(timeout * 1000) if has_expiration and timeout is not None else None,
            mandatory=self._is_mandatory,
            msg_id=self._msg_id,
            timeout=timeout,
            monitor=self.monitor or None,
            retries=None if retry is None or retry < 0 else retry,
        )
        if self._msg_id is None:
            self._next(pending)
            return None
        result = self._result(pending)
        if isinstance(result, Exception):
            raise result
        return result

    def _result(self, pending: _native.AmqpRequest) -> Any:
        """What the call returns, or the exception that it raises."""
        final = None
        while True:
            body = self._next(pending)
            data = envelope.loads(body) if isinstance(body, str) else json.loads(body)
            if "oslo.version" in data:  # the native client has taken others out of their envelopes
                data = rpc_common.deserialize_msg(data)
            if data.get("failure"):
                reply = rpc_common.deserialize_remote_exception(
                    data["failure"], self._driver._allowed_remote_exmods
                )
            else:
                reply = data.get("result")
            if reply is not None:
                # Peers of old send the end in a message of its own.
                final = reply
            if data.get("ending", False):
                return final
            if reply is None and self.monitor:
                LOG.debug("Call monitor heartbeat received; renewing timeout timer")

    def _next(self, pending: _native.AmqpRequest) -> Any:
        """The next reply's body; None of a cast, once the broker has it."""
        kind, detail = pending.wait()
        if kind in ("reply", "taken"):
            return detail
        if kind == "timeout":
            raise oslo_messaging.MessagingTimeout(
                f"Timed out waiting for a reply {self._reply_queue} to message ID {self._msg_id}."
            )
        if kind == "lost":
            raise oslo_messaging.MessagingTimeout(
                "no reply after the broker lost its queues: the request is lost, or was run "
                "without an answer"
            )
        if kind == "unusable":
            raise RefusedError(detail)
        if kind == "undeliverable":
            raise oslo_messaging.MessageUndeliverable(
                _returned(*detail), self._exchange, self._topic, self._body
            )
        raise oslo_messaging.MessageDeliveryFailure(
            f"Unable to send to topic {self._topic} of exchange {self._exchange} {detail}"
        )


def _returned(code: int, text: str) -> Exception:
    """The exception that py-amqp makes of ``basic.return``."""
    from amqp import exceptions  # type: ignore[import-untyped]

    error: Exception = exceptions.error_for_code(code, text, (50, 60), exceptions.ChannelError)
    return error
