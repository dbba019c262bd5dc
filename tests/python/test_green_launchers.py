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
