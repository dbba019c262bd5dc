"""One side of an RPC measurement: ``rpc_peer.py ROLE FLAVOUR URL TOPIC``.

ROLE is ``server``, ``client`` or ``both`` (for transports within one process). FLAVOUR is
``osloxide``, ``threading`` or ``eventlet``: what oslo.messaging runs its endpoints on; the last is
monkey-patched, as services that use it are. ``native-client`` is osloxide without kombu's client.
Prints READY; then each line ``CALLERS SECONDS`` on
standard input is answered by one JSON line of what that many callers got done. Ends with its input.
"""

# ruff: noqa: E402  (monkey-patching and the hook must precede other imports)

from __future__ import annotations

import os
import sys

ROLE, FLAVOUR, URL, TOPIC = sys.argv[1:5]
if FLAVOUR == "eventlet":
    import eventlet

    eventlet.monkey_patch()
elif FLAVOUR in ("osloxide", "native-client"):
    os.environ["OSLOXIDE_NATIVE_RPC"] = str(int(FLAVOUR == "native-client"))
    from osloxide.activation import import_hook

    import_hook.install()

from oslo_service import backend

backend.init_backend(
    backend.BackendType.EVENTLET if FLAVOUR == "eventlet" else backend.BackendType.THREADING
)

import json
import logging
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import oslo_messaging
from oslo_config import cfg

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

#: About what nova sends with a call.
CONTEXT = {
    "user_id": "6f70656e737461636b00112233445566",
    "project_id": "aabbccddeeff00112233445566778899",
    "request_id": "req-3c2b1a90-1111-2222-3333-444455556666",
    "roles": ["admin", "member", "reader"],
    "is_admin": True,
    "auth_token": "gAAAAABm" + "k7Zq" * 45,
}


class Endpoint:
    target = oslo_messaging.Target(version="1.0")

    def echo(self, ctxt: dict[str, Any], x: str) -> str:
        return x

    def wait(self, ctxt: dict[str, Any], seconds: float) -> None:
        time.sleep(seconds)


def serve(transport: Any) -> Any:
    target = oslo_messaging.Target(topic=TOPIC, server="bench")
    executor = "eventlet" if FLAVOUR == "eventlet" else "threading"
    server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()], executor=executor)
    server.start()
    return server


def measure(client: Any, callers: int, seconds: float, pause: float) -> dict[str, Any]:
    took: list[float] = []
    failed = 0
    gate = threading.Barrier(callers + 1)
    ends = [0.0]

    def call() -> None:
        nonlocal failed
        gate.wait()
        while time.perf_counter() < ends[0]:
            began = time.perf_counter()
            try:
                if pause:
                    client.call(CONTEXT, "wait", seconds=pause)
                else:
                    client.call(CONTEXT, "echo", x="")
            except Exception:  # noqa: BLE001  (whatever goes wrong is counted)
                failed += 1
            took.append(time.perf_counter() - began)

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    ends[0] = time.perf_counter() + seconds
    gate.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    took.sort()
    return {
        "calls": len(took),
        "seconds": wall,
        "p50": took[len(took) // 2],
        "p99": took[min(len(took) - 1, len(took) * 99 // 100)],
        "failed": failed,
    }


def commands() -> Iterator[str]:
    """Lines of standard input, without holding up green threads."""
    while True:
        if FLAVOUR == "eventlet":
            eventlet.hubs.trampoline(0, read=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def main() -> None:
    conf = cfg.CONF
    conf([], project="rpc_peer", default_config_files=[])
    transport = oslo_messaging.get_rpc_transport(conf, url=URL)
    server = serve(transport) if ROLE in ("server", "both") else None
    client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic=TOPIC))
    print("READY", flush=True)
    for line in commands():
        callers, seconds, pause = line.split()
        print(json.dumps(measure(client, int(callers), float(seconds), float(pause))), flush=True)
    if server is not None:
        server.stop()
        server.wait()
    transport.cleanup()


main()
