"""Requests on their way from the thread that reads to the pool, without kombu and without a hop."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
from _children import told_by_python
from support.amqp_broker import Broker

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None,
    reason="oslo.messaging is an optional companion; `make setup` installs it",
)

SETUP = """
import json, os, threading, warnings
warnings.simplefilter("ignore")
os.environ["OSLOXIDE_NATIVE_RPC"] = "1"
from osloxide.activation import import_hook
import_hook.install()
from oslo_config import cfg
import oslo_messaging
from osloxide.messaging.rabbit import envelope, native_listener

cfg.CONF([], project="requests", default_config_files=[])
transport = oslo_messaging.get_rpc_transport(
    cfg.CONF, url="rabbit://guest:guest@127.0.0.1:{port}//"
)

class Endpoint:
    def echo(self, ctxt, x):
        ran.append(threading.current_thread().name)
        return [x, ctxt]

    async def wait(self, ctxt, x):
        return await_for(x)

    def fail(self, ctxt):
        raise ValueError("on purpose")

def await_for(x):
    return x

ran, polled = [], []
message = native_listener._NativeListener._message
native_listener._NativeListener._message = (
    lambda self, delivery: polled.append(delivery.message) or message(self, delivery)
)

def serve(server_cls=None):
    target = oslo_messaging.Target(topic="topic", server="here")
    options = {{}} if server_cls is None else dict(server_cls=server_cls)
    return oslo_messaging.get_rpc_server(
        transport, target, [Endpoint()], executor="threading", **options
    )

client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="topic"), timeout=30)

def end(server):
    server.stop()
    server.wait()
    transport.cleanup()
"""


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.close()


def run(broker: Broker, script: str) -> Any:
    return told_by_python(SETUP.format(port=broker.port) + script)


def test_requests_reach_the_pool_without_the_thread_of_their_listener(broker: Broker) -> None:
    found = run(
        broker,
        """
server = serve()
server.start()
results = [client.call({"user": "é"}, "echo", x=number) for number in range(5)]
results.append(client.call({}, "wait", x=7))
try:
    client.call({}, "fail")
except Exception as error:
    results.append(str(error).splitlines()[0])
end(server)
print(json.dumps([results, len(polled), ran]))
""",
    )

    results, polled, threads = found
    assert results[:5] == [[number, {"user": "é", "client_timeout": None}] for number in range(5)]
    assert results[5:] == [7, "on purpose"]
    assert polled == 0
    assert all("osloxide-rpc" in name for name in threads)


def test_a_worker_is_forked_beside_a_client_and_a_server_of_its_parent(broker: Broker) -> None:
    """A parent that makes RPC calls, as designate's does, replaces a killed worker."""
    seen = run(
        broker,
        """
from osloxide import _native
from osloxide.launch import forking

server = serve()
server.start()
client.prepare(topic="elsewhere").cast({}, "echo", x=1)
beside = sorted(set(_native.native_threads()) - {"amqp-heartbeats"})

forking.prepare()
pid = os.fork()
if pid == 0:
    status = 1
    try:
        server.stop()
        server.wait()
        client.prepare(topic="elsewhere").cast({}, "echo", x=2)
        transport.cleanup()
        status = 0
    finally:
        os._exit(status)
ended = os.waitpid(pid, 0)[1]
answer = client.call({}, "echo", x=3)
end(server)
print(json.dumps([beside, ended, answer[0]]))
""",
    )

    assert seen == [["amqp-client", "amqp-listeners"], 0, 3]


def test_what_is_no_request_as_oslo_messaging_writes_it_is_polled_for(broker: Broker) -> None:
    assert run(
        broker,
        """
server = serve()
server.start()
plain = envelope.sealed
envelope.sealed = lambda message: json.dumps(json.loads(plain(message)) | {"more": 1})
found = client.call({}, "echo", x=1)
envelope.sealed = plain
found.append(client.call({}, "echo", x=2)[0])
end(server)
print(json.dumps([found, polled]))
""",
    ) == [[1, {"client_timeout": None}, 2], [None]]


@pytest.mark.parametrize("wraps", ["", "@functools.wraps(rpc_server.RPCServer._on_incoming)"])
def test_a_server_with_a_way_of_its_own_is_handed_every_request(broker: Broker, wraps: str) -> None:
    assert run(
        broker,
        f"""
import functools
from oslo_messaging.rpc import server as rpc_server

seen = []

class Own(rpc_server.RPCServer):
    {wraps}
    def _on_incoming(self, incoming):
        seen.append(incoming[0].message["method"])
        super()._on_incoming(incoming)

from oslo_messaging.rpc.dispatcher import RPCDispatcher

target = oslo_messaging.Target(topic="topic", server="here")
server = Own(transport, target, RPCDispatcher([Endpoint()], None), "threading")
server.start()
found = client.call({{}}, "echo", x=1)[0]
end(server)
print(json.dumps([found, seen]))
""",
    ) == [1, ["echo"]]


def test_a_request_that_is_not_to_run_is_neither_run_nor_answered(broker: Broker) -> None:
    assert run(
        broker,
        """
server = serve()
server.start()
listener = server.listener._poll_style_listener
found = []

class Delivery:
    delivery_count = 0
    message = json.dumps({"method": "echo", "args": {"x": 1}, "_msg_id": "7", "_unique_id": "8"})

for outcome in ("twice", "given back", "lost"):
    found.append(listener._run(Delivery, outcome))
class Broken(Delivery):
    message = '{"method": "echo", NaN}'
found.append(listener._run(Broken, "run"))
end(server)
print(json.dumps([found, ran]))
""",
    ) == [[True, True, True, False], []]
