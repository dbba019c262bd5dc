"""A worker that is forked beside a parent's RPC has connections and servers of its own."""

from __future__ import annotations

from pathlib import Path

import waiting
from _children import run_python

PRELUDE = """
import os, socket, sys
import osloxide
osloxide.install()
from osloxide import _native
from osloxide.launch import forking

def in_child(check):
    pid = os.fork()
    if pid == 0:
        try:
            check()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_worker_is_forked_beside_the_heartbeats_of_rabbitmq() -> None:
    """A parent that makes RPC calls, as designate's does, replaces a killed worker."""
    result = run_python(
        PRELUDE
        + """
here, there = socket.socketpair()
heartbeats = _native.Heartbeats()
connection = heartbeats.add(here.fileno(), 60.0)
sys.path.insert(0, sys.argv[1])
from waiting import wait_until
# It gets its name as it begins.
wait_until(lambda: "amqp-heartbeats" in _native.native_threads(), "the thread of heartbeats")
forking.prepare()

def begin():
    assert _native.native_threads() == []
    one, two = socket.socketpair()
    own = _native.Heartbeats()
    lent = own.add(one.fileno(), 0.2)
    two.settimeout(30)
    assert two.recv(8)[0] == 8, "no heartbeat in the child"

in_child(begin)
print("forked")
""",
        str(Path(waiting.__file__).parent),
    )
    assert result.stdout == "forked\n", result.stderr


def test_a_child_shares_no_connection_and_no_replies_with_its_parent() -> None:
    result = run_python(
        PRELUDE
        + """
from oslo_config import cfg
from oslo_messaging._drivers import amqpdriver, pool

class Connection:
    def __init__(self, *_, **__):
        self.closed = False
    def close(self):
        self.closed = True

connections = pool.ConnectionPool(cfg.ConfigOpts(), 1, 1, 1200, "url", Connection)
used = connections.get()
connections.put(used)
driver = amqpdriver.AMQPDriverBase(cfg.ConfigOpts(), "url", connections)
driver._reply_q, driver._waiter = "reply_of_the_parent", object()
driver._reply_q_lock.acquire()
connections._cond.acquire()

def begin():
    # One connection is all that this pool may have, and the parent's does not count.
    assert connections.get() is not used and not used.closed
    assert driver._reply_q is None and driver._waiter is None
    assert driver._reply_q_lock.acquire(timeout=0)

in_child(begin)
connections._cond.release()
assert connections.get() is used
assert driver._reply_q == "reply_of_the_parent"
print("apart")
"""
    )
    assert result.stdout == "apart\n", result.stderr


SERVER = """
import threading
from concurrent.futures import Future
from oslo_config import cfg
import oslo_messaging

class Endpoint:
    def pid(self, context):
        return os.getpid()

cfg.CONF([])
transport = oslo_messaging.get_rpc_transport(cfg.CONF, url="osloxide+memory://")
target = oslo_messaging.Target(topic="t", server="s")
server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()])

def served_by():
    client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="t"), timeout=20)
    return client.call({}, "pid")

def within(function):
    # A server that waits for threads of its parent would wait for ever.
    result = Future()
    def run():
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)
    threading.Thread(target=run, daemon=True).start()
    return result.result(45)

def serve_and_stop():
    within(server.start)
    assert within(served_by) == os.getpid()
    within(server.stop)
    within(server.wait)
"""


def test_a_worker_serves_with_a_server_that_its_parent_has_started_too() -> None:
    """A parent that launches workers and then starts the service itself gives a worker that is
    forked later a server that it can start, and stop."""
    result = run_python(
        PRELUDE
        + SERVER
        + """
server.start()
assert served_by() == os.getpid()

in_child(serve_and_stop)
assert served_by() == os.getpid()
server.stop()
server.wait()
print("both")
"""
    )
    assert result.stdout == "both\n", result.stderr


def test_a_worker_is_forked_beside_the_threads_of_a_server_of_its_parent() -> None:
    """A parent that launches workers and then serves too, as magnum-conductor does, replaces a
    killed worker, also once it has answered calls."""
    result = run_python(
        PRELUDE
        + SERVER
        + """
server.start()
assert served_by() == os.getpid()
assert any(name.startswith("rpc-") for name in _native.native_threads())
forking.prepare()

def begin_without_threads():
    assert _native.native_threads() == []
    serve_and_stop()

in_child(begin_without_threads)
assert served_by() == os.getpid()
server.stop()
server.wait()
print("both")
"""
    )
    assert result.stdout == "both\n", result.stderr


def test_a_fork_waits_for_an_endpoint_that_computes() -> None:
    """It may hold a lock, which nobody would give back in the child."""
    result = run_python(
        PRELUDE
        + """
import threading
from osloxide.messaging.executor import Executor
lock, begun, ends = threading.Lock(), threading.Event(), []

def compute():
    with lock:
        begun.set()
        while not ends:
            sum(range(1000))

forking.rest = 600.0
executor = Executor(2)
executor.submit(compute)
begun.wait()
look = forking._had

def looked(*arguments):
    ends.append("looked")
    return look(*arguments)

forking._had = looked
forking.prepare()
assert ends, "the threads of executors are not looked at"
in_child(lambda: lock.acquire(timeout=0) or os._exit(1))
executor.shutdown()
print("waited")
"""
    )
    assert result.stdout == "waited\n", result.stderr


def test_a_child_stops_a_server_of_its_parent_without_a_wait() -> None:
    """It was told to stop in the midst of its beginning, or never starts it at all."""
    result = run_python(
        PRELUDE
        + SERVER
        + """
server.start()

def stop():
    within(server.stop)
    within(server.wait)

in_child(stop)
assert served_by() == os.getpid()
print("left alone")
"""
    )
    assert result.stdout == "left alone\n", result.stderr


def test_a_server_that_no_process_has_started_starts_in_a_child() -> None:
    result = run_python(
        PRELUDE
        + SERVER
        + """
server._reset_lock.acquire()  # as if another thread were about to start it

def serve():
    within(server.start)
    assert within(served_by) == os.getpid()

in_child(serve)
print("started")
"""
    )
    assert result.stdout == "started\n", result.stderr


def test_a_server_that_another_thread_looks_at_during_the_fork_starts_in_a_child() -> None:
    result = run_python(
        PRELUDE
        + SERVER
        + """
held, forked = threading.Event(), threading.Event()

def hold():
    with server._states["start"]._cond:
        held.set()
        forked.wait()

threading.Thread(target=hold).start()
held.wait()

def serve():
    within(server.start)
    assert within(served_by) == os.getpid()

try:
    in_child(serve)
finally:
    forked.set()
print("started")
"""
    )
    assert result.stdout == "started\n", result.stderr
