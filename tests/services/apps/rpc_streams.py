"""A server with streams for its fanouts: ``rpc_streams.py URL``.

Prints one JSON object: how many of its calls were answered, how many requests kombu read and how
many were read natively, and which fanouts ran, before and after the broker was connected to again.
"""

# ruff: noqa: E402  (the hook and the choice of backend must precede other imports)

from __future__ import annotations

import sys

from osloxide.activation import import_hook

import_hook.install()

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)

import json
import socket
import threading
from collections import Counter
from typing import Any

import oslo_messaging
from oslo_config import cfg

CALLS, FANOUTS = 30, 5


class Endpoint:
    def __init__(self) -> None:
        self.noted: list[int] = []
        self.changed = threading.Condition()

    def echo(self, ctxt: dict[str, Any], what: Any) -> Any:
        return what

    def note(self, ctxt: dict[str, Any], number: int) -> None:
        with self.changed:
            self.noted.append(number)
            self.changed.notify_all()


def main() -> None:
    conf = cfg.CONF
    conf([], project="rpc_streams", default_config_files=[])
    transport = oslo_messaging.get_rpc_transport(conf, url=sys.argv[1])
    for name, value in (
        ("rabbit_transient_quorum_queue", True),
        ("rabbit_stream_fanout", True),
        ("rabbit_qos_prefetch_count", 4),
    ):
        conf.set_override(name, value, "oslo_messaging_rabbit")
    from osloxide.messaging.rabbit.listener import PacedListener

    read: Counter[str] = Counter()
    by_kombu, natively = PacedListener.__call__, PacedListener._take_body

    def count_by_kombu(self: Any, *arguments: Any) -> None:
        read["by kombu"] += 1
        by_kombu(self, *arguments)

    def count_natively(self: Any, *arguments: Any) -> None:
        read["natively"] += 1
        natively(self, *arguments)

    PacedListener.__call__, PacedListener._take_body = count_by_kombu, count_natively
    endpoint = Endpoint()
    target = oslo_messaging.Target(topic="streamed", server="host")
    server = oslo_messaging.get_rpc_server(transport, target, [endpoint], executor="threading")
    server.start()
    client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="streamed"))
    fanout = client.prepare(fanout=True)

    def note(first: int) -> None:
        for number in range(first, first + FANOUTS):
            fanout.cast({}, "note", number=number)
        with endpoint.changed:
            endpoint.changed.wait_for(lambda: len(endpoint.noted) >= first + FANOUTS, 60)

    answered = sum(client.call({}, "echo", what=n) == n for n in range(CALLS))
    note(0)
    # Its connection is lost; the stream goes on where it was.
    lent = server.listener._poll_style_listener._lent
    lent.connection._connection.transport.sock.shutdown(socket.SHUT_RDWR)
    answered += sum(client.call({}, "echo", what=n) == n for n in range(CALLS))
    note(FANOUTS)
    server.stop()
    server.wait()
    transport.cleanup()
    print(json.dumps({"answered": answered, "read": read, "noted": endpoint.noted}))


main()
