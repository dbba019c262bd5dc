"""Makes RPC calls to a server in this process, by whatever oslo.messaging is first on the path.

``rpc_release.py URL``: an answer, one to a monitored call, and an error of the endpoint. Prints the
release, and what came of each.
"""

# ruff: noqa: E402  (the hook and the choice of backend must precede other imports)

from __future__ import annotations

import importlib.metadata
import sys

from osloxide.activation import import_hook

import_hook.install()

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)

import oslo_messaging
from oslo_config import cfg


class Endpoint:
    def echo(self, _context: object, what: str) -> str:
        return what

    def fail(self, _context: object) -> None:
        raise ValueError("on purpose")


conf = cfg.CONF  # the only one that all releases know
conf([], project="rpc_release", default_config_files=[])
transport = oslo_messaging.get_rpc_transport(conf, url=sys.argv[1])
target = oslo_messaging.Target(topic="release", server="one")
server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()], executor="threading")
server.start()
# Releases before 14.1 have only the class.
make = getattr(oslo_messaging, "get_rpc_client", oslo_messaging.RPCClient)
client = make(transport, oslo_messaging.Target(topic="release"), timeout=45)
print(importlib.metadata.version("oslo.messaging"))
print(client.call({}, "echo", what="called"))
print(client.prepare(call_monitor_timeout=30).call({}, "echo", what="monitored"))
try:
    client.call({}, "fail")
except Exception as error:  # noqa: BLE001  # of a class that is made for it
    print(type(error).__name__.partition("_")[0])
server.stop()
server.wait()
transport.cleanup()
