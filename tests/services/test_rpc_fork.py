"""A worker that is forked after its parent has answered calls over RabbitMQ answers by itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from services.infra import Broker
from services.subject import IS_STOCK, clean_environment

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(IS_STOCK, reason="stock has no server in a child of its process"),
]

BOTH = """
import os, sys, threading
from concurrent.futures import Future
import osloxide
osloxide.install()
from oslo_service import backend
backend.init_backend(backend.BackendType.THREADING)
from oslo_config import cfg
import oslo_messaging

class Endpoint:
    def pid(self, context):
        return os.getpid()

cfg.CONF([])
transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=sys.argv[1])
target = oslo_messaging.Target(topic="forked", server="s")
server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()])
client = oslo_messaging.get_rpc_client(
    transport, oslo_messaging.Target(topic="forked"), timeout=40
)

def call_until_served_here():
    while client.call({}, "pid") != os.getpid():  # the other process has the same queue
        pass

def within(function):
    # What waits for a thread of the parent would wait for ever.
    result = Future()
    def run():
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)
    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(45)
    except TimeoutError:
        raise AssertionError(f"it waits for ever: {function}")

def replies_leave_by():
    slot = transport._driver.__dict__.get("_osloxide_slot")
    if slot is not None and slot.client is not None:
        return slot.client
    return transport._driver._osloxide_replies.current().socket.getsockname()

def serve_and_stop():
    within(server.start)
    within(call_until_served_here)
    by = replies_leave_by()
    assert by != parents, f"replies leave by the parent's connection: {by}"
    within(server.stop)
    within(server.wait)

server.start()
call_until_served_here()
parents = replies_leave_by()
from osloxide.messaging.rabbit import heartbeats, replies
locks = [replies._sharing, heartbeats._heartbeats._lock]
shared = transport._driver.__dict__.get("_osloxide_replies")
if shared is not None:
    locks += shared._lock, shared._connecting
else:  # without kombu
    locks.append(transport._driver._osloxide_slot.lock)

held, forked = threading.Event(), threading.Event()

def hold():  # as threads of the parent may at any moment
    for lock in locks:
        lock.acquire()
    held.set()
    forked.wait()
    for lock in locks:
        lock.release()

if sys.argv[2] == "held":
    threading.Thread(target=hold).start()
    held.wait()
pid = os.fork()
if pid == 0:
    try:
        serve_and_stop()
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)
forked.set()
assert os.waitpid(pid, 0)[1] == 0
call_until_served_here()
server.stop()
server.wait()
transport.cleanup()
print("both")
"""


@pytest.mark.parametrize("locks", ["free", "held"])
def test_a_worker_answers_on_a_connection_that_its_parent_does_not_have(
    broker: Broker, locks: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", BOTH, broker.url, locks],
        capture_output=True, text=True, timeout=150, check=False, env=clean_environment(),
    )  # fmt: skip

    assert done.stdout == "both\n", done.stderr[-4000:]
