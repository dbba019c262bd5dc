"""Listeners without kombu whose transport is closed beneath them; no broker is needed."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from _children import told_by_python

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None,
    reason="oslo.messaging is an optional companion; `make setup` installs it",
)

SETUP = """
import gc, json, socket, threading, warnings, weakref
from types import SimpleNamespace
warnings.simplefilter("ignore")
import oslo_messaging
from osloxide import _native
from osloxide.messaging.rabbit import native_listener

broker = socket.socket()
broker.bind(("127.0.0.1", 0))  # its port is taken, and refuses connections
client = _native.AmqpClient(
    [("127.0.0.1", broker.getsockname()[1], "guest", "guest")],
    "/", "PLAIN", 60, "test", "reply_1", (0.01, 0.0, 0.01, 0.0, 0.0), lambda *_: None,
)
subscriber = _native.AmqpSubscriber(client)
driver = SimpleNamespace(prefetch_size=1, conf=SimpleNamespace())

def subscribe():
    return subscriber.subscribe([_native.AmqpQueue("topic", "exchange", "topic")], 1)
"""


def run(script: str) -> Any:
    return told_by_python(SETUP + script)


def test_a_listener_that_starts_hears_that_its_transport_is_closed() -> None:
    assert run("""
subscription = subscribe()
threading.Thread(target=subscriber.close, args=(30,)).start()
try:
    native_listener._wait_consuming(subscription, "topic")
except oslo_messaging.MessageDeliveryFailure as error:
    print(json.dumps(str(error)))
""") == ("Unable to declare the queues of topic topic: the transport was closed")


def test_polls_of_a_listener_whose_transport_is_closed_sleep() -> None:
    found = run("""
class Subscription:
    asked = 0

    def __init__(self, real):
        self.real = real

    def next(self, timeout):
        self.asked += 1
        return self.real.next(timeout)

    def __getattr__(self, name):
        return getattr(self.real, name)

requests, notifications = Subscription(subscribe()), Subscription(subscribe())
listeners = [
    native_listener.NativeListener(driver, requests, lambda _: None, most=8),
    native_listener.NativeNotificationListener(driver, notifications),
]
subscriber.close(30)
found = []
for listener in listeners:
    found.append(bool(listener.poll(timeout=0.3)))
    found.append(listener._subscription.asked)
    thread = threading.Thread(target=listener.poll)
    thread.start()
    listener.stop()
    thread.join()
print(json.dumps(found))
""")
    assert found[0] is found[2] is False
    assert found[1] <= 3
    assert found[3] <= 3


def test_the_outbox_of_a_closed_listener_does_not_keep_it() -> None:
    assert run("""
listener = SimpleNamespace(driver=driver, is_stopped=False)
replies = native_listener.NativeReplies(listener, lambda _: client)
replies._outbox_of(client)
replies.close()
replies._outbox_of(client)
seen = weakref.ref(replies)
del replies
gc.collect()
print(json.dumps(seen() is None))
""")


def test_a_reply_that_is_refused_while_its_listener_stops_is_an_error_of_the_call() -> None:
    assert run("""
refused = []
native_listener.refuse = lambda answered, *_, **__: refused.append(answered.msg_id)
listener = SimpleNamespace(
    driver=driver, is_stopped=True, _obsolete_reply_queues=None
)
replies = native_listener.NativeReplies(listener, lambda _: client)
body = json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps({"_msg_id": "1"})})
replies._failed("reply_1", body.encode(), "failed", "406: too large")
print(json.dumps(refused))
""") == ["1"]


def test_replies_are_dropped_for_queues_that_have_gone_and_no_others() -> None:
    assert run("""
listener = native_listener.NativeListener(driver, SimpleNamespace(), lambda _: client, most=8)
queues = listener._obsolete_reply_queues
found = [queues.reply_q_valid(name, "1") for name in ("reply_1", "reply_2")]
queues.add("reply_1", "1")
found += [queues.reply_q_valid(name, "1") for name in ("reply_1", "reply_2")]
print(json.dumps(found))
""") == [True, True, False, True]
