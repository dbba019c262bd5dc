"""The baton keeps what code relies on that never needed a lock, beside threads that compute.

The interpreter's switch interval is made so small that a race loses updates at once: with the
handover ``free`` most of these are lost.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from osloxide.green._core.turns import HANDOVER_VARIABLE

PROGRAM = """
import sys, threading
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import eventlet
from eventlet import semaphore

sys.setswitchinterval(1e-5)
over = threading.Event()
counter = 0

def compute_elsewhere():
    while not over.is_set():
        sum(range(200))

def update(waits):
    global counter
    for _ in range(5):
        seen = counter
        for _ in range(8):
            sum(range(1000))
        counter = seen + 1
        waits()

threads = [threading.Thread(target=compute_elsewhere) for _ in range(2)]
for thread in threads:
    thread.start()
greens = [
    eventlet.spawn(update, waits)
    for waits in (eventlet.sleep, lambda: eventlet.sleep(0.001), semaphore.Semaphore(99).acquire)
    for _ in range(5)
]
for green in greens:
    green.wait()
over.set()
for thread in threads:
    thread.join()
print(counter)
"""


@pytest.mark.parametrize("handover", ["yield", "strict"])
def test_an_update_without_a_lock_is_not_lost(handover: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {HANDOVER_VARIABLE: handover},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(15 * 5)]


BLOCKING = """
import os, queue, select, socket, sys, threading, time
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import eventlet
eventlet.monkey_patch()

sys.setswitchinterval(1e-5)
counter, lock, condition = 0, threading.Lock(), threading.Condition()
reentrant = threading.RLock()

def with_lock():
    with lock, reentrant:
        time.sleep(0.002)

def with_pair():
    ours, theirs = socket.socketpair()
    threading.Timer(0.002, theirs.sendall, (b"word\\n",)).start()
    with ours, ours.makefile("rb") as lines:
        lines.readline()
    theirs.close()

def with_pipe():
    end, begin = os.pipe()
    threading.Timer(0.002, os.write, (begin, b"word")).start()
    os.read(end, 4)
    os.close(end)
    os.close(begin)

def with_condition():
    threading.Timer(0.002, notify).start()
    with condition:
        condition.wait(1)

def notify():
    with condition:
        condition.notify_all()

def with_queue():
    items = queue.SimpleQueue()
    threading.Timer(0.002, items.put, (1,)).start()
    items.get()

def with_thread():
    thread = threading.Timer(0.002, int)
    thread.start()
    thread.join()

WAITS = {
    "sleep": lambda: time.sleep(0.002),
    "select": lambda: select.select([], [], [], 0.002),
    "lock": with_lock,
    "socket": with_pair,
    "pipe": with_pipe,
    "condition": with_condition,
    "queue": with_queue,
    "thread": with_thread,
}

def update(waits):
    global counter
    for _ in range(5):
        waits()
        seen = counter
        for _ in range(20):
            sum(range(1000))
        counter = seen + 1

greens = [eventlet.spawn(update, WAITS[sys.argv[1]]) for _ in range(10)]
for green in greens:
    green.wait()
print(counter)
"""


@pytest.mark.parametrize(
    "wait",
    ["sleep", "select", "lock", "socket", "pipe", "condition", "queue", "thread"],
)
def test_no_update_is_lost_after_a_blocking_call_of_the_standard_library(wait: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKING, wait],
        env=os.environ | {HANDOVER_VARIABLE: "strict"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(10 * 5)]


KILLED = """
import sys
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import eventlet
from osloxide.green._core import turns

ended = []

def wait(number, again):
    try:
        eventlet.sleep(1000)
    finally:
        sum(range(20_000))
        ended.append(number)
        if again is not None:
            again.wait()

def killed_as_it_waits(number, again=None):
    thread = eventlet.spawn(wait, number, again)
    while thread._state != turns.PARKED:
        eventlet.sleep(0.001)
    thread.kill()
    return thread

print(sum(not killed_as_it_waits(n).dead or ended[-1] != n for n in range(100)), "return early")
print(sum(killed_as_it_waits(n, eventlet.Event()).dead for n in range(100, 120)), len(ended))
# Some of these are about to begin, and others have begun.
for number in range(30):
    eventlet.spawn(wait, number, None).kill()
    other = eventlet.spawn(wait, number, None)
    eventlet.sleep(0)
    other.kill()
    try:
        other.wait()
    except eventlet.greenlet.GreenletExit:
        pass
"""


def test_kill_returns_when_one_that_waits_has_ended_or_waits_again_without_a_baton() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        env=os.environ | {HANDOVER_VARIABLE: "free"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("0 return early\n0 120\n", "")
