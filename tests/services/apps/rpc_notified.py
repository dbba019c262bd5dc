"""A batch listener of notifications that gives each back once: ``rpc_notified.py URL COUNT``.

Sends COUNT notifications and prints a line; after a line of input COUNT more. Once all were taken
it prints one JSON object: how often each was given back and taken, and the sizes of the batches.
"""

# ruff: noqa: E402  (the hook and the choice of backend must precede other imports)

from __future__ import annotations

import sys

from osloxide.activation import import_hook

import_hook.install()

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)

import json
import threading
from collections import Counter
from typing import Any

import oslo_messaging
from oslo_config import cfg

URL, COUNT = sys.argv[1], int(sys.argv[2])
TOPIC = "osloxide-notified"


class Endpoint:
    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.returned: Counter[int] = Counter()
        self.taken: Counter[int] = Counter()
        self.sizes: Counter[int] = Counter()

    def info(self, messages: list[dict[str, Any]]) -> Any:
        numbers = [message["payload"]["number"] for message in messages]
        with self.changed:
            self.sizes[len(numbers)] += 1
            if any(number not in self.returned for number in numbers):
                self.returned.update(numbers)
                return oslo_messaging.NotificationResult.REQUEUE
            self.taken.update(numbers)
            self.changed.notify_all()
        return oslo_messaging.NotificationResult.HANDLED

    def wait_taken(self, count: int) -> None:
        with self.changed:
            is_done = self.changed.wait_for(lambda: len(self.taken) >= count, 120)
        assert is_done, f"{len(self.taken)} of {count} were taken"


def main() -> None:
    conf = cfg.CONF
    conf([], project="rpc_notified", default_config_files=[])
    transport = oslo_messaging.get_notification_transport(conf, url=URL)
    endpoint = Endpoint()
    listener = oslo_messaging.get_batch_notification_listener(
        transport,
        [oslo_messaging.Target(topic=TOPIC)],
        [endpoint],
        executor="threading",
        allow_requeue=True,
        batch_size=5,
        batch_timeout=0.2,
    )
    listener.start()
    notifier = oslo_messaging.Notifier(
        transport, "publisher", driver="messagingv2", topics=[TOPIC], retry=-1
    )
    for half in range(2):
        for number in range(half * COUNT, (half + 1) * COUNT):
            notifier.info({}, "event", {"number": number})
        if half == 0:
            print("SENT", flush=True)
            sys.stdin.readline()
    endpoint.wait_taken(2 * COUNT)
    listener.stop()
    listener.wait()
    transport.cleanup()
    print(json.dumps({
        "returned": endpoint.returned, "taken": endpoint.taken, "sizes": endpoint.sizes,
        "kind": type(listener.listener._poll_style_listener).__name__,
    }))  # fmt: skip


main()
