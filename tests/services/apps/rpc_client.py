"""A client of the small RPC service that tries everything once: ``rpc_client.py URL``.

Runs on osloxide; prints one JSON object, what came of each attempt under its name. ``--set
NAME=VALUE`` sets an option of ``[oslo_messaging_rabbit]``, ``--config FILE`` reads a file.
``--only NAME`` makes one attempt alone.
"""

# ruff: noqa: E402  (the hook and the choice of backend must precede other imports)

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from osloxide.activation import import_hook

import_hook.install()

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)

import logging

import oslo_messaging
from oslo_config import cfg

TOPIC = "osloxide-test"
WHAT = {"text": 'é "\\😀', "_msg_id": "none", "numbers": [1, 2.5, float("inf")], "none": None}


def attempts(client: Any, transport: Any) -> dict[str, Callable[[], Any]]:
    def elsewhere(**options: Any) -> Any:
        target = oslo_messaging.Target(topic="osloxide-nowhere")
        return oslo_messaging.get_rpc_client(transport, target, **options)

    mandatory = oslo_messaging.TransportOptions(at_least_once=True)

    def undeliverable() -> Any:
        try:
            elsewhere(timeout=30, transport_options=mandatory).call({}, "echo", what=1)
        except oslo_messaging.MessageUndeliverable as error:
            return [error.exchange, error.routing_key, error.exception.reply_code]

    def monitored() -> Any:
        patient = client.prepare(timeout=60, call_monitor_timeout=8)
        return patient.call({}, "work", number=1, seconds=10)

    def of_a_child() -> Any:
        there, back = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(back, str(client.call({}, "echo", what="a child")).encode())
            os._exit(0)
        os.close(back)
        with open(there) as answer:
            text = answer.read()
        os.waitpid(child, 0)
        return [text, client.call({}, "echo", what="its parent")]

    def notify(driver: str) -> Any:
        notifying = oslo_messaging.get_notification_transport(cfg.CONF, url=sys.argv[1])
        notifier = oslo_messaging.Notifier(
            notifying, "here", driver=driver, topics=[f"osloxide-{driver}"]
        )
        for number in range(3):
            notifier.info({"user": "é"}, "an.event", WHAT | {"number": number})
        notifying.cleanup()

    return {
        "echo": lambda: client.call({"user": "é"}, "echo", what=WHAT) == WHAT,
        "large": lambda: len(client.call({}, "echo", what="x" * 400_000)),
        "none": lambda: client.call({}, "echo", what=None),
        "server": lambda: client.prepare(server=servers(client)).call({}, "echo", what=1),
        "remote exception": lambda: client.call({}, "work", number="x", seconds="x"),
        "no such method": lambda: client.call({}, "nothing"),
        "timeout": lambda: client.prepare(timeout=1).call({}, "work", number=2, seconds=3),
        "nowhere": lambda: elsewhere(timeout=1).call({}, "echo", what=1),
        "undeliverable": undeliverable,
        "cast": lambda: client.cast({}, "work", number=3, seconds=0),
        "cast to nowhere": lambda: elsewhere().cast({}, "echo", what=1),
        "fanout": lambda: client.prepare(fanout=True).cast({}, "work", number=4, seconds=0),
        "notifications": lambda: notify("messagingv2"),
        "notifications, version 1": lambda: notify("messaging"),
        "monitored": monitored,
        "child": of_a_child,
    }


def servers(client: Any) -> str:
    """The name of the server that answers."""
    return f"host-{client.call({}, 'pid')}"


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    url = sys.argv[1]
    pairs = list(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    files = [value for name, value in pairs if name == "--config"]
    cfg.CONF([], project="rpc_client", default_config_files=files)
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=url)
    for setting in (value for name, value in pairs if name == "--set"):
        name, _, value = setting.partition("=")
        cfg.CONF.set_override(name, value, "oslo_messaging_rabbit")
    only = {value for name, value in pairs if name == "--only"}
    target = oslo_messaging.Target(topic=TOPIC)
    client = oslo_messaging.get_rpc_client(transport, target, timeout=60, retry=2)
    results: dict[str, Any] = {}
    for name, attempt in attempts(client, transport).items():
        if only and name not in only:
            continue
        begin = time.monotonic()
        try:
            results[name] = attempt()
        except Exception as error:  # noqa: BLE001 - the tests judge it
            results[name] = type(error).__name__
        results[f"seconds of {name}"] = time.monotonic() - begin
    print(json.dumps(results | {"threads": os.listdir("/proc/self/task").__len__()}), flush=True)
    sys.stdin.read()  # the test looks at the broker
    begin = time.monotonic()
    transport.cleanup()
    print(json.dumps({"seconds of cleanup": time.monotonic() - begin}), flush=True)


main()
