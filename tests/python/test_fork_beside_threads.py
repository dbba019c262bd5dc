"""A fork beside threads destroys nothing that those threads have, in the parent or in the child.

What a thread keeps is a connection, whose destructor writes a last word on it. A child has the
socket too, so a word from there would end the parent's connection.
"""

from __future__ import annotations

import platform
import re
import textwrap

import pytest
from _children import run_python

from osloxide import _native

FORK = """
pid = os.fork()
if pid == 0:
    gc.collect()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
PREEXEC = "subprocess.run(['true'], preexec_fn=gc.collect, check=True)"

PROGRAM = """
import contextvars, functools, gc, os, socket, subprocess, threading
import osloxide.green as eventlet
from osloxide.green import tpool
from osloxide.threads import timers

class Connection:
    ours, peer = socket.socketpair()

    def __del__(self):
        self.ours.send(b"goodbye")

class Local(threading.local):
    def __init__(self):
        self.connection = Connection()

local = threading.local()
variable = contextvars.ContextVar("variable")
ready, leave = threading.Event(), threading.Event()

def keep():
    global own_class
    KEEP_HERE

def transaction():
    keep()
    ready.set()
    leave.wait()

def not_called(connection):
    raise AssertionError("begun")

def timer(seconds, function):
    timers.begin(timers.Timer(
        seconds, "timer", on_due=function, on_woken=leave.set, is_over=leave.is_set
    ))

START_HERE
gc.collect()
FORK_HERE
Connection.peer.setblocking(False)
try:
    print(Connection.peer.recv(100), flush=True)
except BlockingIOError:
    print("nothing", flush=True)
os._exit(0)
"""

KEEP = {
    "threading.local": "local.connection = Connection()",
    "a subclass of threading.local": "own_class = Local(); own_class.connection",
    "a context variable": "variable.set(Connection())",
    "a function": "connection = Connection(); ready.set(); leave.wait()",
}
START = {
    "a thread": "threading.Thread(target=transaction, daemon=True).start(); ready.wait()",
    "a greenthread": "eventlet.spawn(transaction); eventlet.sleep(0); ready.wait()",
    "a thread of the pool": (
        "tpool.setup(); tpool._requests.put((None, transaction, (), {})); ready.wait()"
    ),
    "a timer": "timer(0, transaction); ready.wait()",
}
WAITING = {
    "a greenthread that has not begun": "eventlet.spawn(not_called, Connection())",
    "a greenthread that begins later": "eventlet.spawn_after(60, not_called, Connection())",
    "a function that is called later": (
        "eventlet.hubs.get_hub().schedule_call_global(60, not_called, Connection())"
    ),
    "a function that waits for a thread": (
        "tpool.set_num_threads(1); tpool.setup(); "
        "tpool._requests.put((None, transaction, (), {})); "
        "ready.wait(); tpool._requests.put((None, not_called, (Connection(),), {}))"
    ),
    "a timer": "timer(60, functools.partial(not_called, Connection()))",
}


def run(start: str, keep: str = "pass", fork: str = FORK) -> None:
    program = PROGRAM.replace("START_HERE", start).replace("KEEP_HERE", keep)
    done = run_python(program.replace("FORK_HERE", fork))

    assert (done.returncode, done.stdout) == (0, "nothing\n"), done.stderr


@pytest.mark.parametrize("keep", KEEP.values(), ids=KEEP)
@pytest.mark.parametrize("start", START.values(), ids=START)
def test_a_child_does_not_end_the_connection_of_a_thread_of_its_parent(
    start: str, keep: str
) -> None:
    run(start, keep)


@pytest.mark.parametrize("start", WAITING.values(), ids=WAITING)
def test_a_child_does_not_end_the_connection_of_what_waits_in_its_parent(start: str) -> None:
    run(start)


def test_a_command_with_a_preexec_fn_does_not_end_the_connection_of_a_thread() -> None:
    run(START["a thread"], KEEP["threading.local"], PREEXEC)


def test_what_threads_have_is_found_in_this_cpython() -> None:
    unknown = _native.unknown_thread_data()

    assert not unknown, (
        f"CPython {platform.python_version()} has {', '.join(unknown)} of a thread elsewhere: look "
        "at struct _ts in its Include/cpython/pystate.h, and at WORDS in src/python/thread_data.rs"
    )


NEWER = """
import logging, threading
from osloxide import _native
from osloxide.launch import forking

logging.basicConfig(format="%(message)s")
_native.unknown_thread_data = lambda: ["threading.local"]
threading.Thread(target=threading.Event().wait, name="bystander", daemon=True).start()
for _ in range(2):
    forking.prepare()
"""


def test_a_parent_of_workers_says_once_that_it_does_not_know_where_threads_have_what() -> None:
    done = run_python(NEWER)

    said = "osloxide does not find what CPython .* keeps for each thread \\(threading.local\\)"
    assert len(re.findall(said, done.stderr)) == 1, done.stderr


FORKING_THREAD = """
import os, threading
from osloxide import _native

class Data:
    def __del__(self):
        os.write(1, b"released ")

local = threading.local()

def fork():
    local.data = Data()
    pid = os.fork()
    if pid == 0:
        other = threading.Thread(target=setattr, args=(local, "data", Data()))
        other.start()
        other.join()
        _native.forget_thread_data()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

thread = threading.Thread(target=fork)
thread.start()
thread.join()
"""


def test_data_of_the_thread_that_forks_and_of_threads_of_the_child_end_as_ever() -> None:
    done = run_python(textwrap.dedent(FORKING_THREAD))

    assert (done.returncode, done.stdout) == (0, "released " * 3), done.stderr
