"""``eventlet.green.zmq``: sockets of ZeroMQ that greenthreads share and wait for."""

from __future__ import annotations

import pytest
from _children import run_python

PRELUDE = """
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import eventlet
from eventlet.green import zmq

context = zmq.Context()
here, there = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
for socket in (here, there):
    socket.hwm = 2
here.bind("inproc://pair")
there.connect("inproc://pair")
"""


def test_timeout_kill_and_close_end_the_waits_of_a_socket() -> None:
    pytest.importorskip("zmq")
    result = run_python(
        PRELUDE
        + """
try:
    with eventlet.Timeout(0.05):
        here.recv()
except eventlet.Timeout:
    print("timeout")
receiving = eventlet.spawn(here.recv)
eventlet.sleep(0.05)
receiving.kill()
here.rcvtimeo = 50
try:
    here.recv()
except zmq.Again as error:
    print("again", error.is_timeout)
def receive():
    try:
        there.recv()
    except zmq.ZMQError as error:
        return error.errno == zmq.ENOTSOCK
receiving = eventlet.spawn(receive)
eventlet.sleep(0.05)
there.close()
print(receiving.wait())
"""
    )
    assert result.stdout == "timeout\nagain True\nTrue\n", result.stderr


def test_a_greenthread_that_sends_waits_for_the_last_frame_of_another() -> None:
    pytest.importorskip("zmq")
    result = run_python(
        PRELUDE
        + """
begun, last = eventlet.Event(), eventlet.Event()

def frame_by_frame():
    with here._green.sending:
        here.send(b"first", zmq.SNDMORE)
        begun.send()
        last.wait()
        here.send(b"last")

sending = eventlet.spawn(frame_by_frame)
begun.wait()
other = eventlet.spawn(here.send_multipart, [b"other", b"one"])
for _ in range(50):
    eventlet.sleep()
print(other.dead)
last.send()
print(there.recv_multipart(), there.recv_multipart())
"""
    )
    assert result.stdout == "False\n[b'first', b'last'] [b'other', b'one']\n", result.stderr


def test_greenthreads_send_and_receive_by_one_socket_and_messages_stay_whole() -> None:
    pytest.importorskip("zmq")
    result = run_python(
        PRELUDE
        + """
import collections, time

def send(name):
    for number in range(100):
        here.send_multipart([name, b"%d" % number, name])

waiting = eventlet.spawn(here.recv)
sending = [eventlet.spawn(send, name) for name in (b"a", b"b", b"c")]
eventlet.sleep(0.05)
# Both directions wait, which costs nothing: neither wakes the other.
before = time.process_time()
eventlet.sleep(0.5)
print(time.process_time() - before < 0.25, [thread.dead for thread in sending])
got = [there.recv_multipart() for _ in range(300)]
print(all(first == last for first, _, last in got), collections.Counter(one[0] for one in got))
there.send(b"hello")
print(waiting.wait())
"""
    )
    assert result.stdout == (
        "True [False, False, False]\nTrue Counter({b'a': 100, b'b': 100, b'c': 100})\nb'hello'\n"
    ), result.stderr
