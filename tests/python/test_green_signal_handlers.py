"""Signal handlers that greenthreads set: the main thread sets and runs them.

neutron's Open vSwitch agent sets its own in a thread for which the main thread waits. With eventlet
all of them are the main thread. Rules: Python's documentation of signal.signal().
"""

from __future__ import annotations

import pytest
from _children import run_python

PROGRAM = """
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import eventlet, os, signal, sys, threading
eventlet.monkey_patch()

def heard(signo, frame):
    if not over.is_set():
        print(signal.Signals(signo).name, threading.current_thread() is threading.main_thread())
    over.set()

over = threading.Event()

def set_one():
    assert threading.current_thread() is not threading.main_thread()
    assert signal.signal(signal.SIGUSR1, heard) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGUSR1) is heard
    # CPython overlooks one that comes in the instant before the main thread waits for a lock.
    while not over.wait(0.1):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.signal(signal.SIGUSR1, signal.SIG_DFL) is heard
    try:
        signal.signal(4711, heard)
    except ValueError as refusal:
        print(refusal)
    print(signal.set_wakeup_fd(-1))
"""

WAITS = {
    "for a greenthread": "eventlet.spawn(set_one).wait()",
    "for a thread": "thread = threading.Thread(target=set_one); thread.start(); thread.join()",
    "for a lock": """
done = threading.Lock()
done.acquire()
eventlet.spawn(lambda: (set_one(), done.release()))
eventlet.sleep(0)
done.acquire()
""",
    "in the kernel": """
import select
gone, end = os.pipe()
eventlet.spawn(lambda: (set_one(), os.write(end, b"x")))
eventlet.sleep(0)
select.select([gone], [], [])
""",
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS.keys())
def test_a_greenthread_sets_a_handler_while_the_main_thread_waits(wait: str) -> None:
    result = run_python(PROGRAM + wait)
    expected = "SIGUSR1 True\nsignal number out of range\n-1\n"
    assert (result.returncode, result.stdout) == (0, expected), result.stderr


def test_a_forked_child_of_a_greenthread_sets_its_own() -> None:
    result = run_python(
        PROGRAM
        + """
def fork():
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(7))
        os.kill(os.getpid(), signal.SIGUSR1)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

print(eventlet.spawn(fork).wait())
"""
    )
    assert (result.returncode, result.stdout) == (0, "7\n"), result.stderr


def test_a_thread_of_a_program_that_does_not_patch_is_refused_as_ever() -> None:
    result = run_python(
        PROGRAM.replace("eventlet.monkey_patch()", "")
        + """
def refused():
    try:
        signal.signal(signal.SIGUSR1, heard)
    except ValueError as refusal:
        print(refusal)

thread = threading.Thread(target=refused)
thread.start()
thread.join()
"""
    )
    assert "only works in main thread" in result.stdout, result.stderr


@pytest.mark.parametrize("moment", ["before the call", "in the call"])
def test_an_interrupted_main_thread_leaves_no_caller_waiting(moment: str) -> None:
    """What interrupts it ends the wait of both: with eventlet they are one thread."""
    result = run_python(
        PROGRAM
        + f"""
from osloxide.green._core import signal_handlers

def interrupt(*_):
    signal.raise_signal(signal.SIGINT)

def ask():
    try:
        called(signal.SIGUSR1, heard)
    except KeyboardInterrupt:
        print("the caller")

called = signal.signal
if {moment == "before the call"}:
    signal_handlers._Call.make = interrupt
else:
    called = signal_handlers._on_main_thread(interrupt)
asking = threading.Thread(target=ask)
try:
    asking.start()
    asking.join()
except KeyboardInterrupt:
    print("the main thread")
asking.join()
"""
    )
    assert sorted(result.stdout.splitlines()) == ["the caller", "the main thread"], result.stderr


def test_a_forked_child_makes_no_call_that_its_parent_was_asked_for() -> None:
    result = run_python(
        PROGRAM
        + """
from osloxide.green._core import signal_handlers

signal.pthread_sigmask(signal.SIG_BLOCK, {signal_handlers.CARRIER})
asking = threading.Thread(target=signal.signal, args=(signal.SIGUSR1, heard))
asking.start()
while not signal_handlers._calls:
    pass
if (child := os.fork()) == 0:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal_handlers.CARRIER})
    signal.raise_signal(signal_handlers.CARRIER)
    os._exit(3 if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL else 4)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal_handlers.CARRIER})
asking.join()
print(signal.getsignal(signal.SIGUSR1) is heard)
"""
    )
    assert (result.returncode, result.stdout) == (0, "3\nTrue\n"), result.stderr


RAISES = """
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import eventlet, itertools, signal, sys
from eventlet import event, queue, semaphore
from osloxide.green._core import turns, waits

signal.alarm(50)  # a lost turn is waited for until this ends the program

class Raised(Exception):
    pass

def handler(signo, frame):
    heard.append(signo)
    raise Raised

signal.signal(signal.SIGUSR1, handler)

def await_handler():
    # In a call: from 3.13 on what is raised as a loop goes round is outside of the try around it.
    while reached and not heard:
        pass

def raises_at(number, function):
    # At one of the points at which CPython calls handlers: a function begins, a call has returned.
    # False once there are no more.
    points = itertools.count()
    def profile(frame, kind, argument):
        if kind in ("call", "c_return") and next(points) == number:
            reached.append(argument)
            signal.raise_signal(signal.SIGUSR1)
    reached.clear()
    heard.clear()
    sys.setprofile(profile)
    try:
        function()
        sys.setprofile(None)
        await_handler()
    except Raised:
        sys.setprofile(None)
    return bool(reached)

def in_turn(done):
    for _ in range(3):
        eventlet.sleep(0)
    done.send(True)

def try_all(wait):
    for number in itertools.count():
        dones = [event.Event() for _ in range(3)]
        others = [eventlet.spawn(in_turn, done) for done in dones]
        is_reached = raises_at(number, lambda: wait(dones[1]))
        for other in others:
            other.wait()
        eventlet.sleep(0)
        assert not turns.lock._is_owned()
        assert turns.turns.holder is turns.main, (turns.turns.holder, number)
        assert not turns.turns.ready, (turns.turns.ready, number)
        if not is_reached:
            return number > 10

reached, heard = [], []
"""

CUT = """
items, taken = queue.Queue(), []
def take():
    while True:
        taken.append(items.get())

eventlet.spawn(take)
eventlet.sleep(0)
for number in itertools.count():
    if not raises_at(number, lambda: items.put("cut")):
        break
    items.put(number)
    with eventlet.Timeout(20, Exception(f"lost at {number}: {items}")):
        while number not in taken:
            eventlet.sleep(0.001)
print(number > 10)
"""


def test_a_handler_that_raises_in_a_put_leaves_a_queue_that_hands_on_what_comes_next() -> None:
    done = run_python(RAISES + CUT)

    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


WAITS_HERE = {
    "sleeps": "lambda done: eventlet.sleep(0.001)",
    "yields": "lambda done: eventlet.sleep(0)",
    "waits for an event": "lambda done: done.wait()",
    "waits for a greenthread": "lambda done: eventlet.spawn(done.wait).wait()",
    "gets from a queue": "lambda done: (made := queue.Queue(), "
    "eventlet.spawn(lambda: made.put(done.wait())), made.get())",
    "acquires a semaphore": "lambda done: (made := semaphore.Semaphore(0), "
    "eventlet.spawn(lambda: (done.wait(), made.release())), made.acquire())",
    "kills": "lambda done: eventlet.kill(eventlet.spawn(eventlet.sleep, 60))",
}


@pytest.mark.parametrize("wait", WAITS_HERE.values(), ids=WAITS_HERE.keys())
def test_a_handler_that_raises_costs_no_greenthread_its_turn(wait: str) -> None:
    result = run_python(RAISES + f"print(try_all({wait}))")
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr


def test_a_handler_waits_while_the_baton_is_handed_on_and_no_longer_than_a_second() -> None:
    result = run_python(
        RAISES
        + """
import os
assert signal.getsignal(signal.SIGUSR1) is handler
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.signal(signal.SIGUSR1, lambda *_: heard.append(turns.lock._is_owned())) is handler
with turns.lock:
    signal.raise_signal(signal.SIGUSR1)
    assert not heard
while not heard:
    pass
print(heard.pop())
with turns.lock:
    signal.raise_signal(signal.SIGUSR1)
    while not heard:  # who computes for so long is not between two statements
        pass
print(heard.pop())
with turns.lock:
    signal.raise_signal(signal.SIGUSR1)
    if (child := os.fork()) == 0:
        eventlet.sleep(0.1)
        os._exit(len(heard))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
while not heard:
    pass
print(heard.pop())
"""
    )
    assert (result.returncode, result.stdout) == (0, "False\nTrue\nFalse\n"), result.stderr
