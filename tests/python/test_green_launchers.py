"""What a launcher promises to programs that wait for it in greenthreads, as neutron-server does.

Its main thread waits for two greenthreads, in each of which ``ProcessLauncher.wait()`` is called;
its workers wait for a greenthread that their stop() kills. Rules: oslo_service.service on eventlet,
where every greenthread may call wait(); docs/eventlet.md, "Threads and launchers".
"""

from __future__ import annotations

import signal

import pytest
from _children import run_python

PROGRAM = """
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import eventlet, os, sys, threading
eventlet.monkey_patch()
from oslo_config import cfg
from oslo_service import service

readers, writers = zip(*(os.pipe() for _ in range(2)))

class Service(service.Service):
    def start(self):
        self.thread = eventlet.spawn(eventlet.sleep, 3600)
        os.write(writers[0], b"%d\\n" % os.getpid())

    def stop(self):
        self.thread.kill()

    def wait(self):
        self.thread.wait()

    def reset(self):
        os.write(writers[1], b"reset\\n")

conf = cfg.ConfigOpts()
conf([])
launcher = service.ProcessLauncher(conf, restart_method="mutate")
launcher.launch_service(Service(), workers=2)
started = os.fdopen(readers[0])
pids = [int(started.readline()) for _ in range(2)]
pool = eventlet.GreenPool()
one, other = pool.spawn(launcher.wait), pool.spawn(launcher.wait)
one.link(lambda _: other.kill())
other.link(lambda _: one.kill())
"""

SIGNALLED = """
def tell():
    os.kill(pids[0], 9)
    third = int(eventlet.tpool.execute(started.readline))
    assert third not in pids
    os.kill(os.getpid(), SIGNAL)

eventlet.spawn(tell)
pool.waitall()
print("over")
"""

RELOADED = """
def tell():
    os.kill(os.getpid(), 1)
    print(eventlet.tpool.execute(os.fdopen(readers[1]).readline).strip())
    one.kill()

eventlet.spawn(tell)
pool.waitall()
print("over")
"""


def test_workers_are_kept_and_stopped_while_greenthreads_wait_for_the_launcher() -> None:
    program = PROGRAM + SIGNALLED.replace("SIGNAL", str(int(signal.SIGTERM)))
    result = run_python(program)
    assert (result.returncode, result.stdout) == (0, "over\n"), result.stderr
    assert "GreenletExit" not in result.stderr
    assert "exit status" not in result.stderr


def test_a_reload_reaches_the_workers_and_a_kill_of_the_greenthread_stops_them() -> None:
    result = run_python("import sys; sys.stdout.isatty = lambda: False\n" + PROGRAM + RELOADED)
    assert (result.returncode, result.stdout) == (0, "reset\nover\n"), result.stderr


def test_without_a_main_thread_that_waits_there_it_is_refused() -> None:
    program = (
        PROGRAM.partition("pool =")[0].strip()
        + """
failures = []
def wait():
    try:
        launcher.wait()
    except RuntimeError as failure:
        failures.append(str(failure))
thread = threading.Thread(target=wait)
thread.start()
thread.join()
launcher.stop()
print(*failures)
"""
    )
    result = run_python(program)
    assert "only be handled on the main thread" in result.stdout, result.stderr


@pytest.mark.parametrize("raises", [False, True])
def test_the_main_thread_runs_what_is_asked_in_its_wait_and_goes_on_waiting(raises: bool) -> None:
    result = run_python(f"""
from osloxide import green
from osloxide.green import event
from osloxide.threads import main_thread
import threading
main, over = threading.main_thread(), event.Event()

def on_main():
    assert threading.current_thread() is main
    green.sleep(0)
    done = event.Event()
    green.spawn(done.send, "value")
    value = done.wait()
    if {raises}:
        raise KeyError(value)
    return value

def ask():
    for _ in range(20):
        try:
            print(main_thread.run(on_main))
        except KeyError as failure:
            print("raised", failure)
    over.send("over")

green.spawn(ask)
print(over.wait())
""")
    line = "raised 'value'\n" if raises else "value\n"
    assert result.stdout == line * 20 + "over\n", result.stderr


def test_a_second_launcher_is_refused_while_the_first_is_waited_for() -> None:
    """Its workers would not be replaced, and nothing would say so."""
    program = (
        PROGRAM.partition("pool =")[0].strip()
        + """
second = service.ProcessLauncher(conf)
second.launch_service(Service())
pool = eventlet.GreenPool()
one = pool.spawn(launcher.wait)
def wait():
    try:
        second.wait()
    except RuntimeError as failure:
        print(failure)
    one.kill()
pool.spawn(wait)
pool.waitall()
second.stop()
print("over", launcher.children, second.children)
"""
    )
    result = run_python(program)
    assert result.stdout == (
        "another ProcessLauncher is waited for on the main thread already; "
        "launch both services with one\nover {} {}\n"
    ), result.stderr


def test_a_second_launcher_may_be_waited_for_when_the_first_has_ended() -> None:
    program = (
        PROGRAM.partition("pool =")[0].strip()
        + """
second = service.ProcessLauncher(conf)
second.launch_service(Service())
for each in (launcher, second):
    waiting = eventlet.spawn(each.wait)
    eventlet.spawn_after(0.01, waiting.kill)
    print(waiting.wait(), each.children)
"""
    )
    result = run_python(program)
    assert result.stdout == "0 {}\n0 {}\n", result.stderr


def test_a_main_thread_that_waits_elsewhere_is_given_up_on() -> None:
    program = """
from osloxide import green
from osloxide.green._core import lending
from osloxide.threads import main_thread
import threading
lending.BEGINS_WITHIN = 0.05
green.sleep(0)
called = []

def ask():
    try:
        main_thread.run(lambda: called.append("late"))
    except main_thread.NotLentError as failure:
        print(failure)

thread = threading.Thread(target=ask)
thread.start()
thread.join()
green.sleep(0.01)
print(called)
"""
    result = run_python(program)
    assert result.stdout == ("which has not waited in anything of eventlet's for 0.05 s\n[]\n"), (
        result.stderr
    )


def test_what_is_asked_behind_something_that_lasts_is_not_given_up() -> None:
    program = """
from osloxide import green
from osloxide.green._core import errands, lending
from osloxide.threads import main_thread
lending.BEGINS_WITHIN = 0.01
take_back, asked = errands.take_back, green.event.Event()

def look(function):
    taken = take_back(function)
    asked.send(taken)
    return taken

errands.take_back = look
begun, pool = green.event.Event(), green.GreenPool()

def last():
    begun.send()
    import time
    while not asked.ready():
        time.sleep(0.001)
    return "first"

def second():
    begun.wait()
    return main_thread.run(lambda: "second")

both = [pool.spawn(main_thread.run, last), pool.spawn(second)]
pool.waitall()
print(*(each.wait() for each in both), asked.wait())
"""
    result = run_python("import osloxide.green.event\n" + program)
    assert result.stdout == "first second False\n", result.stderr


@pytest.mark.parametrize("ended_by", ["SIGTERM", "kill"])
def test_a_worker_that_had_to_be_killed_fails_the_wait(ended_by: str) -> None:
    program = (
        PROGRAM.partition("pool =")[0]
        .replace("self.thread.kill()", "eventlet.sleep(3600)")
        .replace(
            "launcher.launch", "conf.set_override('graceful_shutdown_timeout', 1)\nlauncher.launch"
        )
        + f"""
waiting = eventlet.spawn(launcher.wait)
if {ended_by!r} == "kill":
    eventlet.spawn_after(0.01, waiting.kill)
else:
    eventlet.spawn_after(0.01, os.kill, os.getpid(), 15)
try:
    print(waiting.wait())
except SystemExit as failure:
    print("failed", failure, flush=True)
os._exit(0)
"""
    )
    result = run_python(program)
    assert result.stdout == "failed 1\n", result.stderr


TURN_IN_BETWEEN = """
import threading
from osloxide import green
from osloxide.green import event
from osloxide.green._core import errands, turns
green.sleep(0)
told, order, me = event.Event(), [], green.getcurrent()

def tell():
    errands.add(lambda: order.append("errand"))

def turn():
    sender = threading.Thread(target=told.send, args=("told",))
    sender.start()
    sender.join()
    while me._state != turns.RUNNING:
        pass

class Turnstile:
    # The turn comes when the main thread has taken the turnstile and has not looked yet.
    def __init__(self):
        self._lock = threading.Lock()
        self._lock.acquire()
        self._turn = turn
        self.locked, self.release = self._lock.locked, self._lock.release
        threading.Thread(target=self._tell).start()

    def _tell(self):
        while me._state != turns.PARKED:
            pass
        tell()

    def acquire(self, *args):
        taken = self._lock.acquire(*args)
        turn, self._turn = self._turn, None
        if turn is not None:
            turn()
        return taken

me._turnstile = Turnstile()
print(told.wait())
green.spawn(order.append, "greenthread")
green.sleep(0)
print(me._state == turns.RUNNING, "greenthread" in order)
"""


def test_a_turn_that_comes_as_the_main_thread_is_asked_leaves_no_turn_too_many() -> None:
    result = run_python(TURN_IN_BETWEEN)
    assert result.stdout == "told\nTrue True\n", result.stderr


def test_a_child_that_is_forked_meanwhile_has_a_main_thread_of_its_own() -> None:
    result = run_python("""
import os
from osloxide import green
from osloxide.green import event
from osloxide.green._core import turns
from osloxide.threads import main_thread
over = event.Event()

def on_main():
    parents = turns.main
    pid = os.fork()
    if pid == 0:
        stale = turns.main is parents
        green.sleep(0)
        print(stale, turns.main is green.getcurrent(), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)

def ask():
    main_thread.run(on_main)
    over.send("over")

green.spawn(ask)
print(over.wait())
""")
    assert result.stdout == "False True\nover\n", result.stderr
