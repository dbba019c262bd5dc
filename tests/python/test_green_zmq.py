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

def refused(call, *arguments, **keywords):
    try:
        call(*arguments, **keywords)
    except zmq.ZMQError as error:
        return zmq.Errno(error.errno).name
"""


def test_timeout_kill_and_close_end_the_waits_of_a_socket() -> None:
    pytest.importorskip("zmq")
    result = run_python(
        PRELUDE
        + """
from eventlet import hubs
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

# Another listener of the descriptor: the wait fails, and leaves nothing behind.
other = eventlet.spawn(hubs.trampoline, here.FD, read=True)
eventlet.sleep()
here.rcvtimeo = -1
try:
    here.recv()
except RuntimeError:
    print(here._green.waiters, bool(here._green.receiving))
other.kill()

def receive():
    try:
        there.recv()
    except zmq.ZMQError as error:
        return error.errno == zmq.ENOTSOCK
receiving = eventlet.spawn(receive)
eventlet.sleep(0.05)

# Who waits for the line has the time of the option as well.
there.rcvtimeo = 50
print(refused(there.recv), refused(there.recv_multipart))

# The number of a closed descriptor may be another's at once: the hub does not listen any more.
import zmq as plain
number, close = there.FD, plain.Socket.close
readers = hubs.get_hub().listeners["read"]
def spy(self, linger=None):
    print("listens", number in readers)
    close(self, linger)
plain.Socket.close = spy
print("listens", number in readers)
there.close()
plain.Socket.close = close
print(receiving.wait())

# What shadows a socket keeps to its lines.
import copy
print({zmq.Socket(here)._green, zmq.Socket.shadow(here)._green, copy.copy(here)._green}
      == {here._green})
"""
    )
    assert result.stdout == (
        "timeout\nagain True\n[] False\nEAGAIN EAGAIN\nlistens True\nlistens False\nTrue\nTrue\n"
    ), result.stderr


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
# What does not wait stays out of the message as well.
print(refused(here.send, b"x", zmq.NOBLOCK), refused(here.send_multipart, [b"x"], zmq.NOBLOCK))
last.send()
print(there.recv_multipart(), there.recv_multipart())

here.send_multipart([b"1", b"2"])
begun, last = eventlet.Event(), eventlet.Event()

def part_by_part():
    with there._green.receiving:
        first = there.recv()
        begun.send()
        last.wait()
        return first, there.recv()

receiving = eventlet.spawn(part_by_part)
begun.wait()
print(refused(there.recv, zmq.NOBLOCK), refused(there.recv_multipart, zmq.NOBLOCK))
last.send()
print(receiving.wait())
# Beside one that waits for the beginning of a message it may have one.
receiving = eventlet.spawn(there.recv_multipart)
eventlet.sleep()
print(refused(there.recv_multipart, zmq.NOBLOCK), bool(there._green.receiving))
receiving.kill()

# A timeout does not come between two frames that nothing waits for.
import time

class Slow(list):
    def __getitem__(self, index):
        end = time.thread_time() + 0.3
        while index == -1 and time.thread_time() < end:
            pass
        return super().__getitem__(index)

with eventlet.Timeout(0.05, False):
    here.send_multipart(Slow([b"whole", b"message"]))
here.send(b"next")
print(there.recv_multipart(), there.recv_multipart())
"""
    )
    assert result.stdout == (
        "False\nEAGAIN EAGAIN\n[b'first', b'last'] [b'other', b'one']\n"
        "EAGAIN EAGAIN\n(b'1', b'2')\nEAGAIN True\n[b'whole', b'message'] [b'next']\n"
    ), result.stderr


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


def test_room_that_is_told_of_and_is_not_there_is_waited_for() -> None:
    """An XPUB says that there is room where a message finds none; so does a ROUTER, of any peer."""
    pytest.importorskip("zmq")
    result = run_python(
        PRELUDE
        + """
import zmq as plain
attempts, send = [], plain.Socket.send
def spy(self, *arguments, **keywords):
    attempts.append(self)
    return send(self, *arguments, **keywords)
plain.Socket.send = spy

def full(name, sender, message, receiver, *others):
    sender.sndhwm = receiver.rcvhwm = 1
    sender.bind("inproc://" + name)
    for peer in (receiver, *others):
        peer.connect("inproc://" + name)
    if name == "xpub":
        sender.recv()
    while refused(sender.send_multipart, message, zmq.NOBLOCK) is None:
        pass
    # It ends in time, after some attempts,
    sender.sndtimeo = 300
    attempts.clear()
    print(refused(sender.send_multipart, message), 2 < len(attempts) < 50)
    # by a timeout and by kill(),
    sender.sndtimeo = -1
    with eventlet.Timeout(0.05, False):
        sender.send_multipart(message)
        print("sent")
    waiting = eventlet.spawn(sender.send_multipart, message)
    eventlet.sleep(0.01)
    waiting.kill()
    print(waiting.dead, bool(sender._green.sending), sender._green.waiters)
    # and once there is room.
    waiting = eventlet.spawn(sender.send_multipart, message)
    eventlet.sleep(0.01)
    while not waiting.dead:
        with eventlet.Timeout(0.01, False):
            receiver.recv_multipart()
    print(waiting.wait())

xpub, sub = context.socket(zmq.XPUB), context.socket(zmq.SUB)
xpub.setsockopt(zmq.XPUB_NODROP, 1)
sub.subscribe(b"")
full("xpub", xpub, [b"message"], sub)

router, dealer, idle = map(context.socket, (zmq.ROUTER, zmq.DEALER, zmq.DEALER))
router.setsockopt(zmq.ROUTER_MANDATORY, 1)
dealer.routing_id = b"dealer"
full("router", router, [b"dealer", b"message"], dealer, idle)
"""
    )
    assert result.stdout == "EAGAIN True\nTrue False []\nNone\n" * 2, result.stderr


def test_pollers_wait_at_the_hub() -> None:
    pytest.importorskip("zmq")
    result = run_python(
        PRELUDE
        + """
import os, time
reading, writing = os.pipe()
poller = zmq.Poller()
poller.register(here, zmq.POLLIN)
poller.register(reading, zmq.POLLIN)

def ends(call, *arguments):
    with eventlet.Timeout(0.05, False):
        return call(*arguments)
    return "timeout"

print(ends(poller.poll), ends(poller.poll, -0.5), ends(zmq.select, [here], [], []),
      ends(here.poll), ends(here.poll, -1),
      ends(here.recv_into, bytearray(3)), ends(zmq.zmq_poll, [(writing, zmq.POLLERR)]))
print(poller.poll(0), poller.poll(20), here.poll(20), zmq.select([here], [], [], 0.02))
print(here._green.waiters, dict(eventlet.hubs.get_hub().listeners["read"]))

# The news of a message reaches whoever receives it, and everyone who waits for it.
polling, receiving = eventlet.spawn(poller.poll), eventlet.spawn(here.recv)
also = eventlet.spawn(here.poll)
eventlet.sleep(0.01)
there.send(b"one")
print(receiving.wait())
there.send(b"one")
print(polling.wait() == [(here, zmq.POLLIN)], also.wait() == zmq.POLLIN, here.recv())
polling = eventlet.spawn(poller.poll)
eventlet.sleep(0.01)
os.write(writing, b"x")
print(polling.wait() == [(reading, zmq.POLLIN)])
print(zmq.select([here, reading], [here], [here]) == ([reading], [here], []))
there.send(b"two")
buffer = bytearray(3)
print(here.recv_into(buffer), buffer)

# A socket of pyzmq's own, beside.
import zmq as plain
puller, pusher = plain.Context.shadow(context.underlying).socket(zmq.PULL), context.socket(zmq.PUSH)
puller.bind("inproc://plain")
pusher.connect("inproc://plain")
polling = eventlet.spawn(zmq.zmq_poll, [(puller, zmq.POLLIN), (here, zmq.POLLIN)])
eventlet.sleep(0.01)
pusher.send(b"three")
print(polling.wait() == [(puller, zmq.POLLIN)], puller.recv())
puller.close()
here.close()
print(refused(poller.poll), refused(here.poll))

# Each call of pyzmq's is made by the one thread that has the socket.
owned = []
for name in ("send", "recv", "get", "set", "close"):
    def spy(self, *arguments, real=getattr(plain.Socket, name), **keywords):
        owned.append(self._green.calls._is_owned())
        return real(self, *arguments, **keywords)
    setattr(plain.Socket, name, spy)
there.rcvtimeo = 10
refused(there.send, b"unread", zmq.NOBLOCK)
print(refused(there.recv), refused(there.poll, 10), there.close(), all(owned))

# The end of a context waits in C, and other greenthreads go on.
ending = eventlet.spawn(context.term)
eventlet.sleep(0.01)
print(ending.dead, pusher.close(), ending.wait(), context.closed)
"""
    )
    assert result.stdout == (
        "timeout timeout timeout timeout timeout timeout timeout\n"
        "[] [] 0 ([], [], [])\n[] {}\n"
        "b'one'\nTrue True b'one'\nTrue\nTrue\n3 bytearray(b'two')\n"
        "True b'three'\nENOTSOCK ENOTSUP\nEAGAIN None None True\n"
        "False None None True\n"
    ), result.stderr


def test_signal_handlers_send_wherever_the_main_thread_is() -> None:
    pytest.importorskip("zmq")
    result = run_python(
        PRELUDE
        + """
import itertools, logging, signal, sys, threading
from zmq.log.handlers import PUBHandler
import zmq as plain
from eventlet import hubs
from osloxide.green._core import lines, turns
signal.alarm(40)  # what waits for ever ends here
push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
push.sndhwm = pull.rcvhwm = 0
push.bind("inproc://pipe")
pull.connect("inproc://pipe")

# At each line of what sends, the same thread sends by the same socket.
sent = []
def send_between(frame, event, argument):
    if frame.f_code.co_filename in (zmq.__file__, lines.__file__):
        push.send(b"between")
        sent.append(event)
        return send_between
sys.settrace(send_between)
push.send(b"own")
sys.settrace(None)
received = [pull.recv() for _ in sent] + [pull.recv()]
print(len(sent) > 20, received.count(b"own"), bool(push._green.sending))

# At each point at which CPython calls handlers (a function begins, a call has returned) one raises.
# None is called once a with statement has a lock, but on 3.14 (CPython issue 148874): there
# any lock can stay locked.
class Raised(Exception):
    pass

def raise_at(number):
    points = itertools.count()
    def profile(frame, event, argument):
        is_with = event == "c_return" and argument.__name__ == "__enter__"
        if event != "c_call" and not is_with and next(points) == number:
            raise Raised
    return profile

for number in itertools.count():
    sys.setprofile(raise_at(number))
    try:
        push.send(b"raises")
        sys.setprofile(None)
    except Raised:
        continue
    finally:
        sys.setprofile(None)
        if push._green.sending:
            print("lost at", number)
            break
    break
print(number > 10)

# So it does where another greenthread waits for the line, which then has it.
def leave_at(number, line):
    waiting = eventlet.spawn(line.acquire)
    try:
        def own(deadline, place):
            while len(line.places) < 2:
                eventlet.sleep()
            sys.setprofile(raise_at(number))
        push._in_line(line, zmq.SNDTIMEO, own)
        sys.setprofile(None)
        return False
    except Raised:
        return True
    finally:
        sys.setprofile(None)
        with eventlet.Timeout(20):
            waiting.wait()

for number in itertools.count():
    line = lines.QueueLock()
    if not leave_at(number, line):
        break
print(number > 10, len(line.places))

# A callback of the hub sends, also where a thread has the socket, and waits for nothing.
def try_to_send(said):
    try:
        push.send(b"callback")
        said.send("sent")
    except RuntimeError as error:
        said.send(error)

def call_back():
    said = eventlet.Event()
    hubs.get_hub().schedule_call_global(0, try_to_send, said)
    return said

have, leave = threading.Event(), threading.Event()
other = threading.Thread(target=push._call, args=[lambda: have.set() or leave.wait()])
other.start()
have.wait()
said = call_back()
eventlet.sleep(0.01)
print(said.ready())
leave.set()
while (received := pull.recv()) == b"raises":
    pass
print(said.wait(), received)
with push._green.sending:
    print(call_back().wait())
print(bool(push._green.sending))

# A handler logs by a socket, where another thread does so and has the lock of the log's handler.
held, interrupted = threading.Event(), threading.Event()
class Formatter(logging.Formatter):
    def format(self, record):
        if record.getMessage() == "other":
            held.set()
            interrupted.wait()
        return super().format(record)

pub = context.socket(zmq.PUB)
pub.bind("inproc://log")
handler = PUBHandler(pub)
handler.setFormatter(Formatter())
log = logging.getLogger("log")
log.addHandler(handler)
log.propagate = False
log.setLevel("INFO")
signal.signal(signal.SIGUSR1, lambda *_: log.info("signal"))

def interrupt(*_):
    other = threading.Thread(target=log.info, args=["other"])
    other.start()
    held.wait()
    interrupted.set()
    signal.raise_signal(signal.SIGUSR1)
    other.join()
    held.clear()
    interrupted.clear()

push._call(interrupt)
with turns.lock:
    interrupt()
print("logged")

# The hub does not wait for a socket that a thread has: that thread tells of what came meanwhile.
receiving = eventlet.spawn(here.recv)
eventlet.sleep(0.05)
def have():
    held.set()
    interrupted.wait()
other = threading.Thread(target=here._call, args=[have])
other.start()
held.wait()
there.send(b"meanwhile")
while here._green.missed is None:
    eventlet.sleep(0.01)
interrupted.set()
print(receiving.wait(), here._green.missed, here._green.waiters)
receiving = eventlet.spawn(here.recv)
eventlet.sleep(0.01)
there.send(b"next")
print(receiving.wait())
"""
    )
    assert result.stdout == (
        "True 1 False\nTrue\nTrue 1\nFalse\nsent b'callback'\n"
        "do not call blocking functions from the mainloop\nFalse\n"
        "logged\nb'meanwhile' None []\nb'next'\n"
    ), result.stderr


def test_a_child_leaves_the_sockets_of_its_parent_alone() -> None:
    pytest.importorskip("zmq")
    result = run_python(
        PRELUDE
        + """
import os, signal, sys
receiving = eventlet.spawn(here.recv)
eventlet.sleep(0.01)
child = os.fork()
if not child:
    signal.alarm(20)  # what waits or spins ends here
    print(*(refused(call, *arguments) for call, *arguments in (
        (here.recv,), (here.recv_multipart,), (here.send, b"", zmq.NOBLOCK), (here.poll,),
        (here.get, zmq.EVENTS), (here.bind, "inproc://other"),
    )))
    here.rcvtimeo = 10
    print(here.close(), here.rcvtimeo, there.close(0))
    del here
    context.destroy(0)
    ours = zmq.Context()
    push, pull = ours.socket(zmq.PUSH), ours.socket(zmq.PULL)
    push.bind("inproc://ours")
    pull.connect("inproc://ours")
    receiving = eventlet.spawn(pull.recv)
    eventlet.sleep(0.01)
    push.send(b"ours")
    print(receiving.wait(), flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1])
there.send(b"theirs")
print(receiving.wait())
"""
    )
    assert result.stdout == (
        "ENOTSOCK ENOTSOCK ENOTSOCK ENOTSOCK ENOTSOCK ENOTSOCK\nNone 10 None\nb'ours'\n"
        "0\nb'theirs'\n"
    ), result.stderr
