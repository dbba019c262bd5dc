"""Calls, casts or fanouts without a pause until standard input closes; then a report in JSON.

``rpc_load.py URL KIND THREADS TIMEOUT``, KIND being call, cast, fanout or notification; of
notifications those count that a listener in this process has received. ``--stock`` does without
osloxide, ``--set NAME=VALUE`` sets an option of ``[oslo_messaging_rabbit]``, ``--config FILE``
reads a file, ``--first NUMBER`` is where their numbers begin. Prints how many were sent now and
then. Each request has a number of its own; TIMEOUT is that of a call in seconds.
"""


# ruff: noqa: E402  (the hook and the choice of backend must precede other imports)

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
import traceback
from collections import Counter

if "--stock" not in sys.argv:
    from osloxide.activation import import_hook

    import_hook.install()

from oslo_service import backend

# Before oslo.messaging is imported: on stock oslo.service that import selects eventlet.
backend.init_backend(backend.BackendType.THREADING)

import oslo_messaging
from oslo_config import cfg


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--stock"]
    url, kind, threads, timeout = words[:4]
    conf = cfg.CONF
    pairs = list(zip(words[4::2], words[5::2], strict=True))
    files = [value for name, value in pairs if name == "--config"]
    conf([], project="rpc_load", default_config_files=files)
    transport = oslo_messaging.get_rpc_transport(conf, url=url)
    for setting in (value for name, value in pairs if name == "--set"):
        name, _, value = setting.partition("=")
        conf.set_override(name, value, "oslo_messaging_rabbit")
    target = oslo_messaging.Target(topic="osloxide-test", fanout=kind == "fanout")
    client = oslo_messaging.get_rpc_client(transport, target, timeout=float(timeout))
    numbers = itertools.count(next((int(value) for name, value in pairs if name == "--first"), 0))
    ending = threading.Event()
    sent: list[int] = []
    took: list[float] = []
    failures: Counter[str] = Counter()

    class Listener:
        def info(self, ctxt: object, publisher: str, event: str, number: int, _: object) -> None:
            sent.append(number)

    if kind == "notification":
        notifications = oslo_messaging.get_notification_transport(conf, url=url)
        notifier = oslo_messaging.Notifier(
            notifications, driver="messagingv2", topics=["osloxide-test-notifications"]
        )
        listener = oslo_messaging.get_notification_listener(
            notifications,
            [oslo_messaging.Target(topic="osloxide-test-notifications")],
            [Listener()],
            executor="threading",
        )
        listener.start()

    def send() -> None:
        while not ending.is_set():
            number = next(numbers)
            begin = time.monotonic()
            try:
                if kind == "notification":
                    notifier.info({}, "osloxide.test", number)
                    ending.wait(0.01)
                    took.append(time.monotonic() - begin)
                    continue
                if kind == "call":
                    client.call({}, "work", number=number, seconds=0.02)
                else:
                    client.cast({}, "work", number=number, seconds=0)
                    ending.wait(0.01)
            except Exception as error:  # noqa: BLE001 - every failure is counted
                if type(error).__name__ not in failures:
                    traceback.print_exc()  # the first of its kind
                failures[type(error).__name__] += 1
                took.append(time.monotonic() - begin)
                continue
            sent.append(number)
            took.append(time.monotonic() - begin)

    def await_end() -> None:
        sys.stdin.read()
        ending.set()

    senders = [threading.Thread(target=send) for _ in range(int(threads))]
    for sender in senders:
        sender.start()
    threading.Thread(target=await_end, daemon=True).start()
    while not ending.wait(0.05):
        print(len(sent), flush=True)
    for sender in senders:
        sender.join()
    transport.cleanup()
    if kind == "notification":
        listener.stop()
        listener.wait()
        notifications.cleanup()
    print(json.dumps({"sent": sorted(sent), "failures": failures, "slowest": max(took)}))


main()
