"""What Python costs in a call over RabbitMQ without kombu: ``python benches/rpc_python.py``.

The client's half is all from ``call()`` to the native client and back; the server's is all that a
pool thread does with a request, up to the native client that sends its reply. What is native is
replaced by objects that do nothing, and there is no broker, so that only Python is measured:
oslo.messaging's own code and ours. CPU time of the calling thread, which a busy neighbour moves
little: the least of some batches of calls in a row; and the median of single calls, each after
other data have filled the caches, as a process finds them that is called now and then.
``PYTHONPATH=../before/python`` measures another checkout.
"""

# ruff: noqa: E402  (the hook must precede other imports)

from __future__ import annotations

import os

os.environ["OSLOXIDE_NATIVE_RPC"] = "1"
from osloxide.activation import import_hook

import_hook.install()

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)

import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import oslo_messaging
from oslo_config import cfg

from osloxide.messaging.rabbit import native_client, native_listener

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

BATCHES = 9
CALLS = 40
SINGLE_CALLS = 100
CACHES = bytearray(6 << 20)
"""More than the caches of one core hold."""

#: As in programs/rpc_peer.py.
CONTEXT = {
    "user_id": "6f70656e737461636b00112233445566",
    "project_id": "aabbccddeeff00112233445566778899",
    "request_id": "req-3c2b1a90-1111-2222-3333-444455556666",
    "roles": ["admin", "member", "reader"],
    "is_admin": True,
    "auth_token": "gAAAAABm" + "k7Zq" * 45,
}
HEX = "0123456789abcdef" * 2


class Endpoint:
    target = oslo_messaging.Target(version="1.0")

    def echo(self, ctxt: dict[str, Any], x: str) -> str:
        return x


class Pending:
    """A call whose reply is there."""

    reply = json.dumps({"result": "", "failure": None, "ending": True, "_msg_id": HEX})

    def wait(self) -> tuple[str, str]:
        return "reply", self.reply


class Native:
    """Client, outbox and subscription, none of which does anything."""

    def send(self, *_: object, **__: object) -> Pending:
        return Pending()

    def wait_for_room(self, *_: object) -> bool:
        return True

    def reply(self, *_: object, **__: object) -> None:
        pass


def server(transport: Any, native: Any) -> Callable[[], object]:
    """What a pool thread does with a request."""
    target = oslo_messaging.Target(topic="topic", server="server")
    serving = oslo_messaging.get_rpc_server(transport, target, [Endpoint()], executor="threading")
    listener = native_listener.NativeListener(transport._driver, native, lambda _: native)
    listener.serve(native, serving._process_incoming)
    listener.replies._current = native, native
    request: dict[str, Any] = {"method": "echo", "args": {"x": ""}, "version": "1.0"}
    request |= {"_msg_id": HEX, "_reply_q": "reply_1", "_timeout": None, "_unique_id": HEX}
    request |= {f"_context_{key}": value for key, value in CONTEXT.items()}
    delivery: Any = SimpleNamespace(message=json.dumps(request), delivery_count=0)
    return lambda: listener._run(delivery, "run")


def client(transport: Any, native: Any) -> Callable[[], object]:
    """A call."""
    slot = native_client._slot(transport._driver)
    slot.client, slot.reply_queue = native, "reply_1"
    calling = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="topic"))
    return lambda: calling.call(CONTEXT, "echo", x="")


def in_a_row(call: Callable[[], object]) -> float:
    """Microseconds of one of many."""
    took = []
    for _ in range(BATCHES):
        before = time.thread_time_ns()
        for _ in range(CALLS):
            call()
        took.append(time.thread_time_ns() - before)
    return min(took) / CALLS / 1e3


def alone(call: Callable[[], object]) -> float:
    """Microseconds of one after other things."""
    took = []
    for _ in range(SINGLE_CALLS):
        bytes(CACHES)
        before = time.thread_time_ns()
        call()
        took.append(time.thread_time_ns() - before)
    return statistics.median(took) / 1e3


def main() -> None:
    cfg.CONF([], project="rpc_python", default_config_files=[])
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url="rabbit://127.0.0.1:1//")
    native = Native()
    for name, make in (("server", server), ("client", client)):
        call = make(transport, native)
        in_a_row(call)  # what is made once; CPython adapts its code
        print(f"{name}: {in_a_row(call):.1f} µs in a row, {alone(call):.0f} µs alone", flush=True)
    os._exit(0)  # the client that does nothing cannot be closed


main()
