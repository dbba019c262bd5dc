"""Listeners of oslo.messaging's RabbitMQ driver that no server stands behind.

Over ``kombu+memory://``, kombu's broker in the process: what is asked here is who acknowledges.
"""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
from _children import told_by_python

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None,
    reason="oslo.messaging is an optional companion; `make setup` installs it",
)

SETUP = """
import json, sys, threading, warnings
warnings.simplefilter("ignore")
from osloxide.activation import import_hook
import_hook.install()
import oslo_messaging
from oslo_config import cfg

conf = cfg.CONF
conf([], project="test", default_config_files=[])
transport = oslo_messaging.get_rpc_transport(conf, url="kombu+memory:////")
driver = transport._driver
target = oslo_messaging.Target(topic="t", server="s", exchange="openstack")

def listen():
    return driver.listen(target, None, None)._poll_style_listener

def send(number):
    driver.send(oslo_messaging.Target(topic="t", exchange="openstack"), {}, {"number": number})

def unacknowledged(listener):
    qos = listener._lent.channel.qos
    return len(qos._delivered) - len(qos._dirty)
"""


def run(script: str) -> Any:
    return told_by_python(SETUP + script)


def test_a_listener_needs_no_server() -> None:
    assert run("""
listener = listen()
send(1)
print(json.dumps(listener.poll()[0].message))
""") == {"number": 1}


def test_what_a_listener_without_a_server_hands_out_is_acknowledged() -> None:
    assert run("""
listener = listen()
send(1), send(2)
numbers = [listener.poll()[0].message["number"] for _ in range(2)]
print(json.dumps([numbers, unacknowledged(listener), listener.poll(0.01)]))
""") == [[1, 2], 0, []]


def test_what_was_picked_up_is_not_given_back_and_what_was_not_is_delivered_again() -> None:
    assert run("""
listener = listen()
send(1)
incoming = listener.poll()[0]
told = [incoming.is_picked_up, incoming.give_back(), listener.poll(0.01)]
listener.is_served = True
send(2)
incoming = listener.poll()[0]
told += [incoming.is_picked_up, incoming.give_back(), listener.poll(60)[0].message["number"]]
print(json.dumps(told))
""") == [True, False, [], False, True, 2]


def test_a_call_to_a_listener_without_a_server_is_answered() -> None:
    assert run("""
listener = listen()
def answer():
    listener.poll()[0].reply({"answer": 42})
threading.Thread(target=answer).start()
reply = driver.send(target, {}, {"question": 1}, wait_for_reply=True, timeout=60)
print(json.dumps(reply))
""") == {"answer": 42}


def test_a_server_of_its_own_kind_acknowledges_by_the_message() -> None:
    """A subclass that runs requests by code of its own, as upstream's interface has it."""
    assert (
        run("""
from oslo_messaging.rpc.server import RPCServer
done = threading.Event()
class Server(RPCServer):
    def _process_incoming(self, incoming):
        incoming[0].acknowledge()
        done.set()
place = oslo_messaging.Target(topic="t", server="s")
server = Server(transport, place, oslo_messaging.RPCDispatcher([], None), "threading")
server.start()
oslo_messaging.get_rpc_client(transport, place).cast({}, "anything")
assert done.wait(60)
listener = server.listener._poll_style_listener
server.stop()
left = unacknowledged(listener)
server.wait()
print(json.dumps(left))
""")
        == 0
    )


def test_a_process_that_is_monkey_patched_after_its_imports_is_refused_at_both_ends() -> None:
    assert run("""
import eventlet
eventlet.monkey_patch()
client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="t"), timeout=30)
refusals = []
for use in (lambda: client.call({}, "method"), listen):
    try:
        use()
    except import_hook.ActivationError as error:
        refusals.append("monkey-patched" in str(error))
print(json.dumps(refusals))
""") == [True, True]


def test_messages_of_a_release_that_does_not_keep_the_callers_id_can_be_answered() -> None:
    from osloxide.messaging.rabbit import listener

    class Incoming:
        def __init__(self, *arguments: Any) -> None: ...

    lister = SimpleNamespace(
        message_cls=Incoming, msg_id_cache=listener.Seen(), _obsolete_reply_queues=None
    )
    message = {"_msg_id": "call", "_reply_q": "reply_1"}

    assert listener.received(lister, None, message, None).orig_msg_id == "call"


def test_a_release_without_quorum_queues_hands_requests_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from osloxide.messaging.rabbit import listener

    monkeypatch.setattr(listener, "_Decoded", lambda message: None)
    taken: list[Any] = []
    lister: Any = SimpleNamespace(_lent=SimpleNamespace(), _take=lambda *given: taken.append(given))
    message = SimpleNamespace(_raw_message=SimpleNamespace(headers={}))
    listener.PacedListener.__call__(lister, message)

    assert [given[1] for given in taken] == [message]


def test_a_release_whose_messages_have_no_id_takes_them_from_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from oslo_messaging._drivers import base

    from osloxide.messaging.memory import driver

    def init(self: Any, ctxt: Any, message: Any) -> None:
        self.ctxt, self.message = ctxt, message

    monkeypatch.setattr(base.IncomingMessage, "__init__", init)
    envelope: Any = SimpleNamespace(body='[{}, {"method": "m"}]', reply=None)

    assert driver._Incoming(envelope, lambda _: None).msg_id.startswith("memory-")
