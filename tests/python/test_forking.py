"""Promises about forks in a process whose threads log to a file."""

import os
import subprocess
import sys
import threading

import pytest
from _children import run_python

from osloxide.launch import forking

PROGRAM = """
import logging, os, signal, sys, threading, time
from osloxide.launch import forking
sys.setswitchinterval(0.0001)
logging.basicConfig(filename=os.devnull)
is_over = False

def log(number):
    while not is_over:
        logging.warning("thread %d" + "x" * 200, number)

threads = [threading.Thread(target=log, args=(number,)) for number in range(3)]
for thread in threads:
    thread.start()
forks = 0
for forks in range(1, 1001):
    with forking.logging_paused():
        pid = os.fork()
    if pid == 0:
        logging.warning("child")
        os._exit(0)
    os.waitpid(pid, 0)
is_over = True
for thread in threads:
    thread.join()
print(forks)
"""


@pytest.mark.timeout(150)
def test_a_thousand_children_can_log_to_the_file_that_threads_of_their_parent_log_to():
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], timeout=120, check=True, stdout=subprocess.PIPE
    )

    assert ended.stdout == b"1000\n"


def test_a_handler_that_is_stuck_delays_a_fork_and_does_not_prevent_it(monkeypatch):
    import logging

    monkeypatch.setattr(forking, "PATIENCE", 0.05)
    handler = logging.NullHandler()
    handler.lock = threading.RLock()
    locked, leave = threading.Event(), threading.Event()

    def stick() -> None:
        with handler.lock:
            locked.set()
            leave.wait(60)

    thread = threading.Thread(target=stick)
    thread.start()
    assert locked.wait(60)

    with forking.logging_paused():
        pid = os.fork()
        if pid == 0:
            os._exit(0)
    leave.set()
    thread.join()

    assert os.waitpid(pid, 0)[1] == 0


class Token:
    """A lock of the kind that oslo.log and swift make from a pipe: it waits without a limit."""

    def __init__(self) -> None:
        self.taken: list[bool] = []

    def acquire(self, blocking: bool = True) -> bool:
        self.taken.append(blocking)
        return True

    def release(self) -> None:
        self.taken.pop()


def test_a_handler_with_a_lock_of_another_kind_does_not_prevent_a_fork():
    import logging

    handler = logging.NullHandler()
    handler.lock = Token()

    with forking.logging_paused():
        assert handler.lock.taken == []


@pytest.mark.parametrize("kind", [threading.Lock, threading.Semaphore, threading.BoundedSemaphore])
def test_a_lock_that_a_handler_has_made_by_itself_is_free_in_the_child(kind):
    import logging

    handler = logging.NullHandler()
    handler.lock = kind()

    with forking.logging_paused():
        assert not handler.lock.acquire(blocking=False)
        pid = os.fork()
    if pid == 0:
        os._exit(not handler.lock.acquire(blocking=False))

    assert handler.lock.acquire(blocking=False)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_handler_of_a_class_without_a_hash_does_not_prevent_a_fork():
    import logging

    class Equal(logging.NullHandler):
        def createLock(self):  # noqa: N802
            self.lock = threading.Lock()

        def __eq__(self, other):
            return isinstance(other, Equal)

    handler = Equal()

    with forking.logging_paused():
        assert handler.lock.locked()


def test_a_lock_that_fails_as_a_fork_asks_for_it_leaves_none_held():
    import logging

    class Failing:
        _at_fork_reinit = None

        def acquire(self, timeout):
            raise OSError("no such lock")

    handler = logging.NullHandler()
    handler.lock = Failing()

    with pytest.raises(OSError, match="no such lock"), forking.logging_paused():
        pass

    assert not logging._lock._is_owned()


BESIDE = """
import os, threading, time
from osloxide import _native

is_over = False

def announce():
    while not is_over:
        _native.worker_ready()
        _native.bound_unheard(60.0)

def fork():
    global is_over
    for count in range(50):
        pid = os.fork()
        if pid == 0:
            _native.worker_ready()
            _native.arm_deadline(60.0)
            _native.disarm_deadline()
            os._exit(0)
        deadline = time.monotonic() + 30
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                print("hangs after", count, flush=True)
                break
            time.sleep(0.0005)
    print("forked", flush=True)
    is_over = True

threading.Thread(target=fork).start()
announce()
"""


def test_a_fork_by_another_thread_while_the_main_thread_announces_hangs_no_child():
    """The interpreter is kept for as long as the watch is locked: no fork sees it locked."""
    child = run_python(BESIDE)

    assert (child.returncode, child.stdout) == (0, "forked\n"), child.stderr


LOADING = """
import os, threading, time
from osloxide.launch import forking
lock, begun, leave = threading.Lock(), threading.Event(), threading.Event()

def load():
    with lock:
        begun.set()
        end = time.thread_time() + COMPUTES
        while time.thread_time() < end:
            pass
    leave.wait()

threading.Thread(target=load, daemon=True).start()
begun.wait()
forking.rest = AT_MOST
forking.prepare()
pid = os.fork()
if pid == 0:
    os._exit(0 if lock.acquire(timeout=0.1) else 1)
print("locked" if os.waitpid(pid, 0)[1] else "free")
"""


@pytest.mark.parametrize(("computes", "at_most", "said"), [(0.3, 60, "free"), (600, 0.1, "locked")])
def test_a_fork_waits_for_threads_that_compute_but_not_for_ever(computes, at_most, said) -> None:
    """As a parent does whose green threads load a driver of a database while its workers begin."""
    program = LOADING.replace("COMPUTES", str(computes)).replace("AT_MOST", str(at_most))
    result = run_python(program)
    assert result.stdout == f"{said}\n", result.stderr


STARVED = """
from osloxide.launch import forking
from osloxide.threads import cpu_time
class Clock:
    sleep = time.sleep
    @staticmethod
    def monotonic():
        return time.monotonic() * 1000
class Machine:
    @staticmethod
    def of(native_id):
        used = cpu_time.used_by(native_id)
        return cpu_time.Times(used, Clock.monotonic() - used)
forking.time = Clock
forking.cpu_time = Machine
forking._STARVED = float("inf")
"""


def test_a_fork_waits_for_a_thread_that_gets_little_of_the_processor() -> None:
    """As on a machine that many processes want: the clock goes on and the thread does not."""
    program = LOADING.replace("COMPUTES", "0.5").replace("AT_MOST", "60")
    program = program.replace("forking.prepare()", STARVED + "forking.prepare()")
    result = run_python(program)
    assert result.stdout == "free\n", result.stderr


NAPPING = """
import threading, time
from osloxide.launch import forking

def nap():
    while True:
        time.sleep(0.001)

threading.Thread(target=nap, daemon=True).start()
forking.rest = 600
forking.prepare()
print("prepared")
"""


def test_a_fork_does_not_wait_for_a_thread_that_sleeps_again_and_again() -> None:
    result = run_python(NAPPING)
    assert result.stdout == "prepared\n", result.stderr


DOZING = """
import threading, time
from osloxide.launch import forking
from osloxide.threads import cpu_time

def doze():
    never = threading.Event()
    while True:
        never.wait(0.001)

class Clock:
    now = looks = 0.0
    @classmethod
    def monotonic(cls):
        return cls.now
    @classmethod
    def sleep(cls, seconds):
        cls.now += seconds
        cls.looks += 1
        time.sleep(seconds)

class Machine:
    @staticmethod
    def of(native_id):
        return cpu_time.Times(0.0, KEPT * Clock.now)

threading.Thread(target=doze, daemon=True).start()
forking.time = Clock
forking.cpu_time = Machine
forking.rest = 0.3
forking.prepare()
print(int(Clock.looks))
"""


@pytest.mark.parametrize(("kept", "at_most"), [("0", 16), ("0.5", 31)], ids=["free", "busy"])
def test_a_fork_does_not_wait_longer_for_a_thread_that_hardly_computes(kept, at_most) -> None:
    """It sleeps inside futex(2) for less than a look, as one does that waits for the interpreter.
    Time that the machine keeps it from its CPU does not count: half of all, or none."""
    result = run_python(DOZING.replace("KEPT", kept))
    assert int(result.stdout or 1000) <= at_most, result.stderr


ASKING = """
import socket, threading, time
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import eventlet
from osloxide.launch import forking

lock, begun = threading.Lock(), threading.Event()
near, far = socket.socketpair()

def beat():
    with lock:
        begun.set()
        near.recv(1)
    eventlet.sleep(600)

eventlet.spawn(beat)
while not begun.is_set():
    eventlet.sleep(0)

class Clock:
    monotonic = time.monotonic
    looks = 0
    @classmethod
    def sleep(cls, seconds):
        cls.looks += 1
        if cls.looks == ANSWERED_AT:
            far.send(b"x")
        time.sleep(seconds)

forking.time = Clock
forking.prepare()
print("locked" if lock.locked() else "free", forking.pause)
"""


@pytest.mark.parametrize(
    ("answered_at", "said"), [(10, "free 1.0"), (0, "locked 0.02")], ids=["soon", "never"]
)
def test_a_fork_waits_for_a_greenthread_that_asks_its_database_but_not_for_ever(
    answered_at, said
) -> None:
    """It would go on in eventlet's child; here nobody gives back there what it holds."""
    result = run_python(ASKING.replace("ANSWERED_AT", str(answered_at)))
    assert result.stdout == f"{said}\n", result.stderr


CALLING = """
import socket, threading, time
from osloxide import loopingcall
from osloxide.launch import forking

lock, begun = threading.Lock(), threading.Event()
near, far = socket.socketpair()

def report():
    with lock:
        begun.set()
        near.recv(1)

loop = loopingcall.FixedIntervalLoopingCall(report)
loop.start(600)
begun.wait()

class Clock:
    monotonic = time.monotonic
    looks = 0
    @classmethod
    def sleep(cls, seconds):
        cls.looks += 1
        if cls.looks == ANSWERED_AT:
            far.send(b"x")
        time.sleep(seconds)

forking.time = Clock
forking.prepare()
print("locked" if lock.locked() else "free", forking.pause)
"""


@pytest.mark.parametrize(
    ("answered_at", "said"), [(10, "free 1.0"), (0, "locked 0.02")], ids=["soon", "never"]
)
def test_a_fork_waits_for_a_looping_call_that_asks_its_database_but_not_for_ever(
    answered_at, said
) -> None:
    """It begins in the parent before the workers, and holds the lock under which oslo.db connects:
    a worker that inherits it locked never starts."""
    result = run_python(CALLING.replace("ANSWERED_AT", str(answered_at)))
    assert result.stdout == f"{said}\n", result.stderr
