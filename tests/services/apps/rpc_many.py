"""Many RPC servers on one transport in one process: ``rpc_many.py URL SERVERS``.

Prints one JSON object: how many descriptors and sockets the process has before there is a server,
with the servers, and after each was called; how many after all but one have stopped; the answers of
that one; and how long the stops and the transport's ``cleanup()`` took. With ``--stock`` it runs on
unchanged oslo.messaging.
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

import gc
import json
import os
import time
from typing import Any

import oslo_messaging
from oslo_config import cfg


class Endpoint:
    def echo(self, ctxt: dict[str, Any], what: Any) -> Any:
        return what


def descriptors() -> dict[str, int]:
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # of the listing itself
            continue
    # A socket may have two descriptors.
    sockets = {name for name in names if name.startswith("socket:")}
    return {"descriptors": len(names), "sockets": len(sockets)}


def main() -> None:
    url, count = sys.argv[1], int(sys.argv[2])
    conf = cfg.CONF
    conf([], project="rpc_many", default_config_files=[])
    conf.register_opts(oslo_messaging.server._pool_opts)
    conf.set_override("executor_thread_pool_size", 2)
    client_transport = oslo_messaging.get_rpc_transport(conf, url=url)
    transport = oslo_messaging.get_rpc_transport(conf, url=url)

    def call(number: int, what: Any) -> Any:
        target = oslo_messaging.Target(topic=f"many-{number}")
        return oslo_messaging.get_rpc_client(client_transport, target).call({}, "echo", what=what)

    targets = [oslo_messaging.Target(topic=f"many-{n}", server="host") for n in range(count)]
    servers = [
        oslo_messaging.get_rpc_server(transport, target, [Endpoint()], executor="threading")
        for target in targets
    ]
    # The client's own connections are there before anything is counted.
    servers[0].start()
    assert call(0, "first") == "first"
    seen: dict[str, Any] = {"before": descriptors()}
    for server in servers[1:]:
        server.start()
    seen["started"] = descriptors()
    assert [call(number, number) for number in range(count)] == list(range(count))
    seen["called"] = descriptors()
    for server in servers[1:]:
        server.stop()
        server.wait()
    del servers[1:], server
    gc.collect()  # an executor has descriptors until it is collected
    seen["stopped"] = descriptors()
    seen["last"] = [call(0, number) for number in range(10)]
    began = time.monotonic()
    servers[0].stop()
    servers[0].wait()
    transport.cleanup()
    client_transport.cleanup()
    seen["seconds of the last stop"] = time.monotonic() - began
    seen["ended"] = descriptors()
    print(json.dumps(seen))


main()
