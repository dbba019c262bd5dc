"""A consumer whose host goes away: ``rpc_consume.py URL``.

Prints the ports of the URL's hosts, in the order of their trial from the one on that is connected.
After a line on standard input it consumes for half a second at a time, until it is connected again
or has done so ten times, and prints one JSON object: how often, and to which port. With ``--stock``
it runs on unchanged oslo.messaging.
"""

# ruff: noqa: E402  (the hook and the choice of backend must precede other imports)

from __future__ import annotations

import sys

if "--stock" not in sys.argv:
    from osloxide.activation import import_hook

    import_hook.install()

from oslo_service import backend

backend.init_backend(backend.BackendType.THREADING)

import contextlib
import json
from typing import Any
from urllib.parse import urlsplit

import oslo_messaging
from oslo_config import cfg
from oslo_messaging._drivers import common


def main() -> None:
    conf = cfg.CONF
    conf([], project="rpc_consume", default_config_files=[])
    transport = oslo_messaging.get_rpc_transport(conf, url=sys.argv[1])
    lent: Any = transport._driver._get_connection(common.PURPOSE_LISTEN)
    lent.declare_topic_consumer("openstack", "osloxide-consumed", lambda message: None)
    link = lent.connection.connection
    ports = [urlsplit(url).port for url in link.alt]
    while ports[0] != link.port:
        ports.append(ports.pop(0))
    print(json.dumps(ports), flush=True)
    sys.stdin.readline()
    rounds = 0
    while rounds < 10:
        rounds += 1
        with contextlib.suppress(common.Timeout):
            lent.consume(timeout=0.5)
        if rounds > 1 and link.connected:
            break
    print(json.dumps({"rounds": rounds, "port": link.port if link.connected else None}))
    lent.close()


main()
