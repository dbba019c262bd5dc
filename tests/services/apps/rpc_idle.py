"""A server and a client that have made one call and wait: ``rpc_idle.py URL``.

Prints the ids of the two threads that wait for the broker, the server's and the client's, and ends
with its standard input. With ``--stock`` it runs on unchanged oslo.messaging.
"""

# ruff: noqa: E402  (the hook and the choice of backend must precede other imports)

from __future__ import annotations

import sys

STOCK = "--stock" in sys.argv
if not STOCK:
    from osloxide.activation import import_hook

    import_hook.install()

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)

import time
from pathlib import Path
from typing import Any

import oslo_messaging
from oslo_config import cfg


class Endpoint:
    def echo(self, ctxt: dict[str, Any], what: Any) -> Any:
        return what


def native_threads() -> list[tuple[str, int]]:
    """Those that read what a broker sends, where kombu does not."""
    tasks = Path("/proc/self/task").iterdir()
    named = [((task / "comm").read_text().strip(), int(task.name)) for task in tasks]
    return [one for one in named if one[0] in ("amqp-client", "amqp-listeners")]


def main() -> None:
    conf = cfg.CONF
    conf([], project="rpc_idle", default_config_files=[])
    transport = oslo_messaging.get_rpc_transport(conf, url=sys.argv[1])
    client_transport = oslo_messaging.get_rpc_transport(conf, url=sys.argv[1])
    target = oslo_messaging.Target(topic="idle", server="host")
    server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()], executor="threading")
    server.start()
    client = oslo_messaging.get_rpc_client(client_transport, target)
    assert client.call({}, "echo", what=1) == 1
    threads = [("listener", server.listener._listen_thread.native_id)]
    waiter = client_transport._driver._waiter
    threads += native_threads() if waiter is None else [("waiter", waiter._thread.native_id)]
    print("THREADS", *(f"{name}={number}" for name, number in threads), flush=True)
    sys.stdin.read()
    began = time.monotonic()
    server.stop()
    server.wait()
    transport.cleanup()
    client_transport.cleanup()
    print(f"ENDED {time.monotonic() - began:.3f}", flush=True)


main()
