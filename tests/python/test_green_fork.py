"""A child that a greenthread forks is a process of its own.

Rules: threading (Library Reference), of which the thread that forks is the main one in the child.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from _children import run_python

PROGRAM = """
import os, threading
import eventlet

def fork():
    pid = os.fork()
    if pid == 0:
        assert threading.current_thread() is threading.main_thread()
        assert threading.enumerate() == [threading.main_thread()]
        helper = threading.Thread(target=eventlet.sleep, args=(0.05,))
        helper.start()
        threading._shutdown()
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

status = CALL
if threading.main_thread().ident == threading.get_ident():
    print(status)
"""


ENDS = """
import os, sys
import eventlet
from eventlet import event

def fork(end):
    pid = os.fork()
    if pid == 0:
        eventlet.sleep(0)
        print("child", flush=True)
        if end:
            raise end
        return None
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def status(end):
    thread = eventlet.spawn(fork, end)
    thread.link(lambda _: print("link", flush=True))
    return thread.wait()

ends = [SystemExit(7), SystemExit(), SystemExit("said"), SystemExit(300), KeyError("raised")]
print([status(end) for end in [*ends, eventlet.greenlet.GreenletExit(), None]])
"""


def test_a_child_of_a_greenthread_ends_with_its_function_and_the_status_of_its_exit() -> None:
    prelude = "from osloxide.activation import import_hook\n"
    prelude += "import_hook.install(deferred=True, serve_eventlet=True)\n"

    done = run_python(prelude + ENDS)

    assert done.stdout.splitlines() == ["child", "link"] * 7 + ["[7, 0, 1, 44, 1, 0, 0]"]
    assert "said" in done.stderr
    assert "KeyError: 'raised'" in done.stderr
    assert done.stderr.count("Traceback") == 1


@pytest.mark.parametrize("call", ["eventlet.spawn(fork).wait()", "eventlet.tpool.execute(fork)"])
def test_a_child_of_a_greenthread_has_a_main_thread_that_can_end(call: str) -> None:
    text = PROGRAM.replace("CALL", call)
    prelude = "from osloxide.activation import import_hook\n"
    prelude += "import_hook.install(deferred=True, serve_eventlet=True)\nimport eventlet.tpool\n"

    # From CPython 3.12 on a fork beside threads is warned of.
    done = run_python(prelude + text, PYTHONWARNINGS="ignore::DeprecationWarning")

    assert done.stderr == ""
    assert done.stdout.split()[-1:] == ["7"], done.stdout


LEFT = """
import logging, os, signal, sys
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import eventlet
from eventlet import event, greenpool, lock, queue, semaphore
from oslo_concurrency import lockutils

sys.path.insert(0, sys.argv[1])
begun = []

class Handler(logging.Handler):
    def emit(self, record):
        if record.getMessage() == "slow":
            begun.append(1)
            eventlet.sleep(1000)

def hold(*locks):
    if locks:
        with locks[0]:
            hold(*locks[1:])
    begun.append(1)
    eventlet.sleep(1000)

def log():
    logging.error("slow")

def load():
    import half_loaded

logging.getLogger().addHandler(Handler())
mutex, acquired, plain = lock.Lock(), lock.Lock(), semaphore.Semaphore()
pool = greenpool.GreenPool(2)
items, event_, idle = queue.Queue(), event.Event(), semaphore.Semaphore(0)
one_item = queue.Queue(1)
one_item.put("first")
named = [lockutils.lock("name"), lockutils.lock("fair", fair=True)]
others = [
    eventlet.spawn(hold, mutex, plain, *named),
    eventlet.spawn(lambda: acquired.acquire() and hold()),
    pool.spawn(hold),
    eventlet.spawn(log),
    eventlet.spawn(load),
]
pool.spawn_n(hold)
waiting = [eventlet.spawn(wait) for wait in (items.get, event_.wait, idle.acquire)]
waiting.append(eventlet.spawn(one_item.put, "second"))
while len(begun) < 6:
    eventlet.sleep(0.01)
later = eventlet.spawn_after(1000, print)

def ends(wait):
    try:
        wait()
    except eventlet.greenlet.GreenletExit:
        return "ended"

pid = os.fork()
if not pid:
    signal.alarm(40)  # what waits for ever ends here
    with mutex, plain, lockutils.lock("name"), lockutils.lock("fair", fair=True):
        logging.error("not held")
    print("locks are free", mutex.counter, plain.counter, acquired.acquire(timeout=20))
    print(pool.free(), pool.running(), pool.waitall(), pool.spawn(int).wait())
    print(*(each.dead for each in (*others, *waiting, later)))
    print(ends(others[0].wait), ends(later.wait), others[0].kill())
    ours = [eventlet.spawn(wait) for wait in (items.get, event_.wait, idle.acquire)]
    eventlet.sleep(0)
    items.put("item")
    event_.send("sent")
    idle.release()
    print(*(each.wait() for each in ours), one_item.get(), one_item.get())
    open(sys.argv[1] + "/half_loaded.py", "w").write("x = 'loaded'")
    import half_loaded
    print(half_loaded.x, flush=True)
    os._exit(0)
print(os.waitpid(pid, 0)[1], pool.running(), plain.counter, [each.dead for each in waiting])
others[3].kill()  # the end of the interpreter waits for the lock of its handler
"""


def test_locks_of_greenthreads_that_a_child_does_not_have_are_free_and_nothing_is_handed_to_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "half_loaded.py").write_text(
        "import __main__, eventlet\n__main__.begun.append(1)\neventlet.sleep(1000)\n"
    )

    done = run_python(LEFT, str(tmp_path), PYTHONWARNINGS="ignore::DeprecationWarning")

    assert done.stdout.splitlines() == [
        "locks are free 1 1 True",
        "2 0 None 0",
        " ".join(["True"] * 10),
        "ended ended None",
        "item sent True first second",
        "loaded",
        "0 2 0 [False, False, False, False]",
    ], done.stderr


NATIVE = """
import os, sys
import osloxide
osloxide.install()
from osloxide.backends.BACKEND import loopingcall, threadgroup

def fork(end):
    pid = os.fork()
    if pid == 0:
        if end:
            raise end
        return None
    raise loopingcall.LoopingCallDone(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

def of_group(end):
    statuses = []
    group = threadgroup.ThreadGroup()
    def wait():
        try:
            fork(end)
        except loopingcall.LoopingCallDone as done:
            statuses.append(done.retvalue)
    group.add_thread(wait).wait()
    return statuses[0]

def of_loop(end):
    return loopingcall.FixedIntervalLoopingCall(fork, end).start(60).wait()

ends = [SystemExit(7), KeyError("raised"), None]
print([of_group(end) for end in ends], flush=True)
print([of_loop(end) for end in [*ends, loopingcall.LoopingCallDone("done")]])
called = []
group = threadgroup.ThreadGroup()
group.add_thread(lambda function: called.append(function), function="a keyword").wait()
print(called)
"""


@pytest.mark.parametrize("backend", ["threading", "eventlet"])
def test_a_child_of_a_thread_of_a_group_or_of_a_looping_call_ends_with_its_function(
    backend: str,
) -> None:
    done = run_python(NATIVE.replace("BACKEND", backend))

    assert done.stdout == "[7, 1, 0]\n[7, 1, 0, 0]\n['a keyword']\n", done.stderr
    assert done.stderr.count("Traceback") == 2, done.stderr


ENDPOINT = """
import os, sys
import osloxide
osloxide.install()
import oslo_messaging
from oslo_config import cfg

class Endpoint:
    def fork(self, ctxt):
        pid = os.fork()
        if pid == 0:
            sys.exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

cfg.CONF([], default_config_files=[])
transport = oslo_messaging.get_rpc_transport(cfg.CONF, "fake://")
target = oslo_messaging.Target(topic="topic", server="server")
server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()], executor="threading")
server.start()
client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="topic"), timeout=60)
print(client.call({}, "fork"))
server.stop()
server.wait()
"""


def test_a_child_of_an_rpc_endpoint_ends_with_it_and_answers_nobody() -> None:
    done = run_python(ENDPOINT)

    assert done.stdout == "7\n", done.stderr
