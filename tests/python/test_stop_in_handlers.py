"""What a stop does that comes from a handler of the application, or at an awkward moment.

Each test runs a small program. Rules: docs/signals.md, docs/lifecycle.md; oslo_service.service,
Launcher.stop() and ProcessLauncher.stop().
"""

from __future__ import annotations

import pytest
from _children import run_python

PROGRAM = """
import logging, os, signal, sys, threading, time
import osloxide
osloxide.install()
from oslo_config import cfg
from oslo_service import _options, backend
backend.init_backend(backend.BackendType[FLAVOUR])
from oslo_service import service
logging.basicConfig(level=logging.INFO, format="%(process)d %(message)s")
conf = cfg.ConfigOpts()
conf([], default_config_files=[])
conf.register_opts(_options.service_opts)
conf.set_override("graceful_shutdown_timeout", GRACE)
parent = os.getpid()

def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())
"""


STOPPERS = {
    "handler": "os.kill(parent, signal.SIGUSR1)",
    "thread": "threading.Thread(target=launcher.stop).start()",
}


def program(code: str, *, flavour: str = "THREADING", grace: int = 30) -> str:
    return f"FLAVOUR, GRACE = {flavour!r}, {grace}\n{PROGRAM}\n{code}"


def test_a_handler_that_stops_the_launcher_between_a_fork_and_its_answer_leaves_no_worker() -> None:
    """The flavour that forks in launch_service() took the fork for refused, and lost the worker."""
    done = run_python(
        program(
            """
from osloxide.launch import forking
launcher = service.ProcessLauncher(conf)
signal.signal(signal.SIGUSR1, lambda *_: launcher.stop())
prepare = forking.prepare

def prepare_once():
    forking.prepare = prepare
    os.kill(parent, signal.SIGUSR1)
    prepare()

forking.prepare = prepare_once
launcher.launch_service(service.Service(), workers=2)
say(launcher.wait(), launcher.children)
""",
            flavour="EVENTLET",
        )
    )

    assert (done.returncode, done.stdout) == (0, "0 {}\n"), done.stderr  # and nobody is left


@pytest.mark.parametrize("who", ["handler", "thread"])
def test_a_stop_leaves_a_reset_that_hangs(who: str) -> None:
    """That of another thread waited for ever."""
    done = run_python(
        program(
            f"""
class Hangs(service.Service):
    def reset(self):
        if os.getpid() == parent:
            {STOPPERS[who]}
            threading.Event().wait()
"""
            """
launcher = service.ProcessLauncher(conf)
signal.signal(signal.SIGUSR1, lambda *_: launcher.stop())
launcher.launch_service(Hangs(), workers=1)

def hang_up():
    while not launcher.children:
        time.sleep(0.01)
    os.kill(parent, signal.SIGHUP)

threading.Thread(target=hang_up).start()
say(launcher.wait(), signal.getsignal(signal.SIGURG) is signal.SIG_DFL)
"""
        )
    )

    assert (done.returncode, done.stdout) == (0, "0 True\n"), done.stderr
    assert "stop() ends Hangs.reset() in the parent" in done.stderr


def test_a_thread_stops_a_launcher_that_nobody_waits_for() -> None:
    """It waited for ever, for a main thread that waited for it."""
    done = run_python(
        program(
            """
launcher = service.ProcessLauncher(conf)
launcher.launch_service(service.Service(), workers=1)
stopping = threading.Thread(target=launcher.stop, daemon=True)
stopping.start()
stopping.join(15)
say(stopping.is_alive(), launcher.children)
say(launcher.wait())
""",
            flavour="EVENTLET",
        )
    )

    assert (done.returncode, done.stdout) == (0, "False {}\n0\n"), done.stderr


def test_a_program_stops_what_it_has_launched_before_it_waits() -> None:
    """stop() returned before that of the service was called, and the grace period ended both; and
    the wait() of the service was not called."""
    done = run_python(
        program(
            """
from osloxide import _native
disarm = _native.disarm_deadline
_native.disarm_deadline = lambda: (say("disarmed"), disarm())

class Slow(service.Service):
    def stop(self, graceful=False):
        launcher.stop()  # does not wait for itself
        say("stops")
        super().stop(graceful)

    def wait(self):
        say("awaited")

launcher = service.ServiceLauncher(conf)
launcher.launch_service(Slow())
launcher.stop()
say("stopped", launcher._runner.time_left())
say(launcher.wait())
""",
            flavour="EVENTLET",
        )
    )

    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line != "disarmed"]
    assert done.stdout.splitlines()[1] == "disarmed"  # what follows may take as long as it likes
    assert said == ["stops", "stopped 0.0", "awaited", "0"]


def test_a_thread_of_a_service_that_waits_for_its_threads_stops_the_launcher() -> None:
    """Each waited for the other, until the grace period was over."""
    done = run_python(
        program(
            """
class Ends(service.Service):
    def start(self):
        self.tg.add_thread(launcher.stop)

    def stop(self, graceful=False):
        super().stop(graceful=True)

launcher = service.ServiceLauncher(conf)
launcher.launch_service(Ends())
say(launcher.wait())
""",
            grace=10,
        )
    )

    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


@pytest.mark.parametrize("first", ["waits", "has returned from wait()"])
def test_a_service_that_is_launched_during_wait_is_stopped_and_awaited(first: str) -> None:
    """It was started and forgotten."""
    done = run_python(
        program(
            f"""
waits = {first == "waits"}

class Late(service.Service):
    def stop(self, graceful=False):
        say("stopped")
        super().stop(graceful)

    def wait(self):
        super().wait()
        say("awaited")

class First(service.Service):
    def start(self):
        if waits:
            self.tg.add_thread(launch_and_stop)

    def wait(self):
        super().wait()
        if not waits:
            began.set()

began = threading.Event()

def launch_and_stop():
    if not waits:
        began.wait()
    launcher.launch_service(Late())
    launcher.stop()

launcher = service.ServiceLauncher(conf)
launcher.launch_service(First())
if not waits:
    threading.Thread(target=launch_and_stop).start()
say(launcher.wait())
"""
        )
    )

    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0", "awaited", "stopped"]


def test_a_service_that_is_launched_during_wait_and_does_not_start_ends_the_program() -> None:
    """All services were stopped, and the process stayed without any."""
    done = run_python(
        program(
            """
class Fails(service.Service):
    def start(self):
        raise SystemExit(4)

class First(service.Service):
    def start(self):
        self.tg.add_thread(lambda: launcher.launch_service(Fails()))

    def stop(self, graceful=False):
        say("stopped")
        super().stop(graceful)

launcher = service.ServiceLauncher(conf)
launcher.launch_service(First())
say(launcher.wait())
"""
        )
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["stopped", "4"]


def test_a_hangup_while_a_thread_stops_the_launcher_does_not_end_the_program() -> None:
    """It was taken for a stop by a signal, after which the program has to end."""
    done = run_python(
        program(
            """
class Slow(service.Service):
    def stop(self, graceful=False):
        say("stops")
        os.read(gate, 1)
        super().stop(graceful)

gate, opener = os.pipe()
launcher = service.ProcessLauncher(conf)
launcher.launch_service(Slow(), workers=1)

def stop():
    while not launcher.children:
        time.sleep(0.01)
    stopping = threading.Thread(target=launcher.stop)
    stopping.start()
    while not launcher._is_stopping:
        time.sleep(0.01)
    os.kill(parent, signal.SIGHUP)
    os.write(opener, b"x")
    stopping.join()

threading.Thread(target=stop).start()
say(launcher.wait())
from osloxide.launch import ending
say(ending._end, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""
        )
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["0", "None True"]


def test_a_stop_as_wait_begins_gets_the_whole_grace_period() -> None:
    """It was bounded as in a process that nobody waits for: its services got 5 s."""
    done = run_python(
        program(
            """
from osloxide.launch import configuration, ending
ending.AT_EXIT = 0.5

class Slow(service.Service):
    def stop(self, graceful=False):
        time.sleep(2)  # four times as long as it would get
        say("stopped")
        super().stop(graceful)

launcher = service.launch(conf, Slow())
log_options = configuration.log_options

def told_to_stop(*arguments):
    os.kill(parent, signal.SIGTERM)
    log_options(*arguments)

configuration.log_options = told_to_stop
say(launcher.wait())
""",
            flavour="EVENTLET",
        )
    )

    assert (done.returncode, done.stdout) == (0, "stopped\n0\n"), done.stderr


def test_a_looping_call_that_never_ends_costs_no_thread_that_computes_its_time() -> None:
    done = run_python("""
import os, threading, time
from osloxide import loopingcall
from osloxide.launch import forking
begun, never, lock, computes = (threading.Event(), threading.Event(), threading.Lock(),
                                threading.Event())

def wait_for_ever():
    begun.set()
    never.wait()

loopingcall.FixedIntervalLoopingCall(wait_for_ever).start(600)
begun.wait()
forking.pause = 0.1
forking.prepare()  # waits in vain
print(forking.pause < 0.1, forking.rest > 0.5)

def compute():
    with lock:
        computes.set()
        end = time.thread_time() + 0.3
        while time.thread_time() < end:
            pass

threading.Thread(target=compute, daemon=True).start()
computes.wait()
forking.rest = 60
forking.prepare()
print("locked" if lock.locked() else "free", flush=True)
os._exit(0)
""")

    assert done.stdout == "True True\nfree\n", done.stderr


LOCKED = """
import sys, threading
from types import SimpleNamespace
from oslo_config import cfg
from osloxide.launch import runner as module

class ExitError(BaseException):
    pass

def raise_once_locked(frame, event, argument):
    # As a handler of the application, which runs as soon as the call that takes the lock returns.
    if frame.f_code is threading.Condition.__enter__.__code__ and event == "return":
        raise ExitError
    return raise_once_locked

notifier = SimpleNamespace(stopping=lambda: None)
runner = module.Runner(cfg.ConfigOpts(), [], restart_method="reload", on_ready=lambda: None,
                       notifier=notifier)
sys.settrace(raise_once_locked)
try:
    runner._stop_early()
except ExitError:
    pass
sys.settrace(None)
free = []
other = threading.Thread(target=lambda: free.append(runner._changed.acquire(timeout=1)))
other.start()
other.join()
print(*free)
"""


def test_what_a_handler_raises_as_the_runner_takes_its_lock_leaves_it_free() -> None:
    """It stayed locked, and the thread that stops the services waited for it until the deadline."""
    done = run_python(LOCKED)

    assert done.stdout == "True\n", done.stderr


STOPPED_AS_THE_WAIT_BEGINS = """
import logging, os, signal, threading
import osloxide
osloxide.install()
from oslo_config import cfg
from oslo_service import backend
backend.init_backend(backend.BackendType.EVENTLET)
from oslo_service import _options, service

is_told, waits = threading.Event(), threading.Event()

def go_on_in_the_meantime(record):
    if "Caught SIGTERM" in record.getMessage():
        is_told.set()
        assert waits.wait(60)
    return True

class Service(service.Service):
    def start(self):
        self.stopped = threading.Event()
        self.tg.add_thread(self.stopped.wait)

    def stop(self, graceful=False):
        print("stops", flush=True)
        self.stopped.set()
        super().stop(graceful)

    def wait(self):
        waits.set()
        super().wait()

logging.basicConfig(level=logging.INFO)
logging.getLogger("osloxide.launch.runner").addFilter(go_on_in_the_meantime)
conf = cfg.ConfigOpts()
conf([], default_config_files=[])
conf.register_opts(_options.service_opts)
conf.set_override("graceful_shutdown_timeout", 5)
launcher = service.launch(conf, Service(), workers=1)
os.kill(os.getpid(), signal.SIGTERM)
is_told.wait(60)
raise SystemExit(launcher.wait())
"""


def test_a_stop_that_is_still_in_its_log_line_when_the_wait_begins_is_not_lost() -> None:
    """The thread that took it up found that run() had begun, run() that it was being taken up."""
    done = run_python(STOPPED_AS_THE_WAIT_BEGINS)

    assert (done.returncode, done.stdout) == (0, "stops\n"), done.stderr


OWN_FORK = """
    pid = os.fork()
    if pid == 0:
        os.kill(parent, signal.SIGTERM)
        while True:
            signal.pause()
"""


@pytest.mark.parametrize(
    "fork", ["    pid = super()._start_child(wrap)", OWN_FORK], ids=["adds to it", "replaces it"]
)
def test_a_launcher_may_have_its_own_way_to_fork_a_worker(fork: str) -> None:
    """Stock's method was gone: one of a subclass was never called."""
    forks = "\n".join(f"    {line}" for line in fork.splitlines())
    done = run_python(
        program(
            f"""
class Stops(service.Service):
    def start(self):
        os.kill(parent, signal.SIGTERM)

class Launcher(service.ProcessLauncher):
    def _start_child(self, wrap):
{forks}
        say("forked one of", wrap.workers, pid > 0)
        return pid

launcher = Launcher(conf)
launcher.launch_service(Stops(), workers=1)
say(launcher.wait(), launcher.children)
"""
        )
    )

    expected = "forked one of 1 True\n0 {}\n"
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_what_a_handler_raises_at_the_end_of_a_reload_leaves_the_nudge_to_others() -> None:
    """Its signal stayed taken, and no other launcher of the program could be nudged."""
    done = run_python(
        program(
            """
from osloxide.signals import nudge

class ExitError(BaseException):
    pass

def raise_once(frame, event, argument):
    if frame.f_code is nudge.Nudge.give_back.__code__:
        sys.settrace(None)
        raise ExitError

class HangsUp(service.Service):
    def start(self):
        os.kill(parent, signal.SIGHUP)

class Launcher(service.ProcessLauncher):
    def _read_and_reset(self, restart_method):
        sys.settrace(raise_once)
        return False

signal.pthread_sigmask(signal.SIG_BLOCK, {nudge.SIGNAL})
launcher = Launcher(conf)
launcher.launch_service(HangsUp())
try:
    launcher.wait()
except ExitError:
    say("raised", nudge.SIGNAL in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
other = nudge.Nudge(lambda: None)
say(other.take())
other.give_back()
launcher.stop()
"""
        )
    )

    assert done.stdout == "raised True\nTrue\n", done.stderr
