"""Stops of a listener that has fetched requests which no thread picked up.

``rpc_returns.py URL STOPS``, on a quorum queue, which counts how often a message was returned.
Prints one JSON object: how many requests were fetched in each round, and which of those that were
sent a listener has at the end.
"""

# ruff: noqa: E402  (the hook and the choice of backend must precede other imports)

from __future__ import annotations

import logging
import sys

from osloxide.activation import import_hook

import_hook.install()

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)

import json
import threading
import time
from typing import Any

import oslo_messaging
from oslo_config import cfg

SENT = 4
PATIENCE = 60.0


def main() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    url, stops = sys.argv[1], int(sys.argv[2])
    conf = cfg.CONF
    conf([], project="rpc_returns", default_config_files=[])
    transport = oslo_messaging.get_rpc_transport(conf, url=url)
    for name in ("rabbit_quorum_queue", "rabbit_transient_quorum_queue"):
        conf.set_override(name, True, "oslo_messaging_rabbit")
    driver = transport._driver
    target = oslo_messaging.Target(topic="returned", server="host", exchange="openstack")

    def fetched() -> tuple[Any, list[Any]]:
        """A listener that has fetched what there is, as one whose threads are all busy."""
        listener = driver.listen(target, None, None)._poll_style_listener
        listener.is_served = True
        is_kombus = hasattr(listener, "incoming")
        requests = listener.incoming if is_kombus else []
        end = time.monotonic() + PATIENCE
        while len(requests) < SENT and time.monotonic() < end:
            if is_kombus:
                listener._consume(0.2)
            else:
                requests += listener.poll(0.2)
        return listener, requests

    def end(listener: Any, requests: list[Any]) -> None:
        stopping = threading.Thread(target=listener.stop)  # waits until the one that polls has left
        stopping.start()
        while not listener._shutdown.is_set():
            time.sleep(0.001)
        assert listener.poll() == []  # a listener of kombu's gives back what it has
        stopping.join()
        for incoming in requests:  # as the server does with what waits in its executor
            assert incoming.give_back()
        listener.cleanup()

    end(driver.listen(target, None, None)._poll_style_listener, [])  # declares the queues
    for number in range(SENT):
        driver.send(target, {}, {"number": number})
    rounds = []
    for _ in range(stops):
        listener, requests = fetched()
        rounds.append(len(requests))
        end(listener, requests)
        if rounds[-1] < SENT:
            break
    listener, requests = fetched()
    left = sorted(incoming.message["number"] for incoming in requests)
    end(listener, requests)
    transport.cleanup()
    print(json.dumps({"rounds": rounds, "left": left}))


main()
