"""All that a client, a server and a listener of oslo.messaging say to a broker, for each setting.

``rpc_wire.py PORT DIRECTORY`` reads ``DIRECTORY/SETTING.conf``; runs on osloxide where
``RPC_WIRE_IS_OURS`` is set, else on plain oslo.messaging. Clients open the virtual host
``SETTING.client``, servers ``SETTING.server``, listeners of notifications ``SETTING.listener``.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

if "RPC_WIRE_IS_OURS" in os.environ:
    from osloxide.activation import import_hook

    import_hook.install()

import oslo_messaging
from oslo_concurrency import lockutils
from oslo_config import cfg

TOPIC = "wire-topic"
_arrived = threading.Semaphore(0)


class Endpoint:
    """Counts what arrives."""

    def echo(self, context: Any, what: Any) -> Any:
        _arrived.release()
        return what


class Notified:
    """An endpoint of a listener."""

    def info(self, *event: Any) -> None:
        """Nothing is sent here."""


def wait_consumed(listener: Any) -> None:
    """Kombu's listeners consume on a thread of their own. What is compared is said without it."""
    lent = getattr(listener._poll_style_listener, "conn", None)
    end = time.monotonic() + 60
    while lent is not None and lent.connection._new_tags:
        assert time.monotonic() < end, "its queues are not consumed"
        time.sleep(0.01)
    if os.environ.get("OSLOXIDE_NATIVE_RPC") == "1":
        kind = type(listener._poll_style_listener).__name__
        assert kind.startswith("Native"), kind


def once(port: str, file: Path) -> None:
    """One of everything with the options of *file*."""
    conf = cfg.CONF  # some options of oslo.messaging are known nowhere else
    conf(["--config-file", str(file)], project="rpc_wire")
    lockutils.set_defaults(str(file.parent))

    def url(role: str) -> str:
        return f"rabbit://u:p@127.0.0.1:{port}/{file.stem}.{role}"

    served = oslo_messaging.get_rpc_transport(conf, url=url("server"))
    target = oslo_messaging.Target(topic=TOPIC, server="host")
    server = oslo_messaging.get_rpc_server(served, target, [Endpoint()], executor="threading")
    server.start()
    wait_consumed(server.listener)
    transport = oslo_messaging.get_rpc_transport(conf, url=url("client"))
    client = oslo_messaging.get_rpc_client(
        transport, oslo_messaging.Target(topic=TOPIC), timeout=60
    )
    assert client.call({"user": "u"}, "echo", what=1) == 1
    client.prepare(server="host").cast({}, "echo", what=2)
    client.prepare(fanout=True).cast({}, "echo", what=3)
    for _ in range(3):
        assert _arrived.acquire(timeout=60)
    mandatory = oslo_messaging.TransportOptions(at_least_once=True)
    client.prepare(transport_options=mandatory).cast({}, "echo", what=4)
    notifying = oslo_messaging.get_notification_transport(conf, url=url("client"))
    for driver in ("messaging", "messagingv2"):
        notifier = oslo_messaging.Notifier(
            notifying, "publisher", driver=driver, topics=[f"wire-{driver}"]
        )
        notifier.info({"user": "u"}, "event", {"a": 1})
    listening = oslo_messaging.get_notification_transport(conf, url=url("listener"))
    for pool in (None, "wire-pool"):
        listener = oslo_messaging.get_notification_listener(
            listening,
            [oslo_messaging.Target(topic="wire-listened", exchange="wire-exchange")],
            [Notified()],
            executor="threading",
            pool=pool,
        )
        listener.start()
        wait_consumed(listener.listener)


def main() -> None:
    """Ends without cleaning up: what was said until then is what is looked at."""
    port, directory = sys.argv[1:]
    for file in sorted(Path(directory).glob("*.conf")):
        once(port, file)
    sys.stdout.flush()
    os._exit(0)


main()
