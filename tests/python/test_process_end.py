"""The end of a process is bounded, whatever its application leaves behind; docs/lifecycle.md.

Each test runs a small program of its own: its services stop, and something else holds up the end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _children import environment
from procfs import is_alive, session_members
from waiting import wait_until, whole_lines

from osloxide import _native
from osloxide.cli import site
from osloxide.launch import ending, worker
from osloxide.launch.runner import Runner
from osloxide.threads import own

LONGEST = 45.0
"""Seconds after which a program counts as hung; far more than any deadline in here."""

PRELUDE = """
import atexit, logging, multiprocessing, os, signal, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import osloxide
osloxide.install()
from oslo_config import cfg
from oslo_service import backend
backend.init_backend(backend.BackendType[sys.argv[1]])
from oslo_service import service
logging.basicConfig(level=logging.INFO, format="%(process)d %(name)s %(message)s")
conf = cfg.ConfigOpts()
conf([], default_config_files=[])
workers = int(sys.argv[2])

def say(text):
    os.write(1, f"{text}\\n".encode())

class Service(service.Service):
    def __init__(self):
        super().__init__()
        self.stopped = threading.Event()
    def start(self):
        prepare()
        say(f"started {os.getpid()}")
    def stop(self):
        self.stopped.set()
    def wait(self):
        self.stopped.wait()

def main(grace, kind=None, method="reload"):
    from oslo_service import _options
    conf.register_opts(_options.service_opts)
    conf.set_override("graceful_shutdown_timeout", grace)
    launcher = service.launch(
        conf, (kind or Service)(), workers=workers, restart_method=method
    )
    status = launcher.wait()
    say(f"returned {status}")
    sys.exit(status)
"""


class Running:
    def __init__(self, tmp_path: Path, code: str, flavour: str, workers: int) -> None:
        self.log = tmp_path / "log"
        self.out = tmp_path / "out"
        program = PRELUDE + textwrap.dedent(code)
        with self.log.open("wb") as log, self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, flavour, str(workers)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=environment(),
                start_new_session=True,
            )

    def said(self) -> list[str]:
        return whole_lines(self.out)

    def expect(self, text: str, count: int = 1) -> list[str]:
        deadline = time.monotonic() + LONGEST
        while True:
            found = [line for line in self.said() if line.startswith(text)]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, f"no {text!r}: {self.said()}\n{self.text()}"
            assert self.process.poll() is None, f"ended: {self.said()}\n{self.text()}"
            time.sleep(0.01)

    def text(self) -> str:
        return self.log.read_text()

    def stop(self, signo: int = signal.SIGTERM) -> int:
        os.kill(self.process.pid, signo)
        return self.ended()

    def ended(self) -> int:
        """The exit status, once nothing of the program is left."""
        try:
            status = self.process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"hangs: {self.said()}\n{self.text()}") from None
        deadline = time.monotonic() + LONGEST
        while left := session_members(self.process.pid):
            assert time.monotonic() < deadline, f"left behind: {left}\n{self.text()}"
            time.sleep(0.01)
        return status


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Any]:
    programs: list[Running] = []

    def start(code: str, flavour: str = "THREADING", workers: int = 1) -> Running:
        program = Running(tmp_path, code, flavour, workers)
        programs.append(program)
        return program

    yield start
    for program in programs:
        for pid in session_members(program.process.pid):
            os.kill(pid, signal.SIGKILL)
        program.process.wait()


ENDLESS = {
    "thread": "threading.Thread(target=threading.Event().wait, name='endless').start()",
    "executor": "ThreadPoolExecutor(1).submit(threading.Event().wait)",
    "exit function": "atexit.register(threading.Event().wait)",
    "after wait": "global after; after = threading.Event().wait",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_never_ends_after_the_services_have_stopped_is_cut_off_with_their_status(
    running: Any, kind: str
) -> None:
    program = running(f"""
        after = lambda: None
        def prepare():
            {ENDLESS[kind]}
        try:
            main(8)
        finally:
            after()
    """)
    program.expect("started")

    assert program.stop() == 0

    assert "returned 0" in program.said()
    named = {"thread": "endless", "executor": "ThreadPoolExecutor"}.get(kind, "has not")
    assert named in program.text()


ENDLESS_IN_A_PARENT = {
    "thread": ("", ENDLESS["thread"]),
    "exit function": (ENDLESS["exit function"], ""),
    "after wait": ("", "threading.Event().wait()"),
}
"""What a program does before it launches workers, and behind ``wait()``."""


@pytest.mark.parametrize("kind", ENDLESS_IN_A_PARENT)
def test_what_never_ends_in_a_parent_is_cut_off_with_the_status_of_its_workers(
    running: Any, kind: str
) -> None:
    before, after = ENDLESS_IN_A_PARENT[kind]
    program = running(
        f"""
        def prepare():
            pass
        {before or "pass"}
        try:
            main(8)
        finally:
            {after or "pass"}
        """,
        workers=2,
    )
    program.expect("started", 2)

    assert program.stop() == 0

    assert "returned 0" in program.said()
    assert ("endless" if kind == "thread" else "has not") in program.text()


@pytest.mark.parametrize("kind", ["thread", "executor", "exit function"])
def test_what_never_ends_in_a_worker_is_cut_off_at_the_deadline_and_named(
    running: Any, kind: str
) -> None:
    """Told to stop by hand the worker names it; in a stop of the whole its parent is first."""
    program = running(
        f"""
        def prepare():
            {ENDLESS[kind]}
        main(1)
        """,
        workers=2,
    )
    first, _ = (int(line.split()[1]) for line in program.expect("started", 2))
    os.kill(first, signal.SIGTERM)
    program.expect("started", 3)
    named = {"thread": "endless", "executor": "ThreadPoolExecutor"}.get(kind, "has not")
    assert named in program.text()

    assert program.stop() == 1

    assert "sent SIGABRT" in program.text()


def test_another_sigterm_cuts_an_end_short_that_has_lasted(running: Any) -> None:
    program = running("""
        def prepare():
            atexit.register(threading.Event().wait)
        main(600)
    """)
    program.expect("started")
    os.kill(program.process.pid, signal.SIGTERM)
    program.expect("returned")

    deadline = time.monotonic() + LONGEST
    while program.process.poll() is None:
        assert time.monotonic() < deadline
        os.kill(program.process.pid, signal.SIGTERM)
        time.sleep(0.05)

    assert program.ended() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_of_executors_and_exit_functions_run_to_their_end(running: Any, workers: int) -> None:
    program = running(
        """
        from osloxide.messaging.executor import Executor  # in the parent, as services import it
        def job():
            time.sleep(1)
            say("job done")
        def prepare():
            global executor
            atexit.register(lambda: say("exit function done"))
            ThreadPoolExecutor(1).submit(job)
            threading.Thread(target=job).start()
            executor = Executor(1)
            for _ in range(2):
                executor.submit(job)
        main(60)
        """,
        workers=workers,
    )
    program.expect("started", workers)

    assert program.stop() == 0

    assert program.said().count("job done") == 4 * workers
    assert program.said().count("exit function done") == workers


def test_exit_functions_of_the_parent_do_not_run_in_workers(running: Any) -> None:
    program = running(
        """
        atexit.register(lambda: say("exit function of the parent"))
        def prepare():
            pass
        main(60)
        """,
        workers=2,
    )
    program.expect("started", 2)

    assert program.stop() == 0

    assert program.said().count("exit function of the parent") == 1


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("is_daemon", [True, False])
def test_children_of_multiprocessing_obey_sigterm_and_end_with_their_service(
    running: Any, workers: int, is_daemon: bool
) -> None:
    program = running(
        f"""
        def prepare():
            context = multiprocessing.get_context("fork")
            child = context.Process(target=time.sleep, args=(600,), daemon={is_daemon})
            child.start()
            other = context.Process(target=time.sleep, args=(600,))
            other.start()
            other.terminate()
            other.join()
            say(f"terminated {{other.exitcode}}")
            if not {is_daemon}:
                child.terminate()
        main(30)
        """,
        workers=workers,
    )
    program.expect("started", workers)

    assert program.expect("terminated", workers) == [f"terminated {-signal.SIGTERM}"] * workers
    assert program.stop() == 0


@pytest.mark.parametrize(
    ("workers", "is_told_by_hand"), [(1, False), (2, False), (2, True)], ids=str
)
def test_a_log_that_is_not_read_cannot_hold_up_a_stop(
    tmp_path: Path, workers: int, is_told_by_hand: bool
) -> None:
    """Told by hand is a worker first: it leaves, and its parent cannot even say so."""
    read_end, write_end = os.pipe()
    code = PRELUDE + textwrap.dedent("""
        def prepare():
            pass
        main(2)
    """)
    out = tmp_path / "out"
    with out.open("wb") as stdout:
        program = subprocess.Popen(
            [sys.executable, "-c", code, "THREADING", str(workers)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=write_end,
            env=environment(),
            start_new_session=True,
        )

    def started() -> list[int]:
        return [int(line.split()[1]) for line in whole_lines(out) if line.startswith("started")]

    try:
        wait_until(lambda: len(started()) == workers, "a start", LONGEST)
        os.set_blocking(write_end, False)
        for size in (65536, 1):
            try:
                while os.write(write_end, b"." * size):
                    pass
            except BlockingIOError:
                pass
        os.set_blocking(write_end, True)

        if is_told_by_hand:
            worker = started()[0]
            os.kill(worker, signal.SIGTERM)
            wait_until(lambda: not is_alive(worker), "the end of a worker", LONGEST)
        os.kill(program.pid, signal.SIGTERM)

        assert program.wait(LONGEST) == 1
        wait_until(lambda: not session_members(program.pid), "the end of all", LONGEST)
    finally:
        for pid in session_members(program.pid):
            os.kill(pid, signal.SIGKILL)
        program.wait()
        os.close(read_end)
        os.close(write_end)


def test_a_service_of_the_eventlet_flavour_starts_before_wait(running: Any) -> None:
    program = running(
        """
        begun = threading.Event()
        def prepare():
            begun.set()
        from oslo_service import _options
        launcher = service.launch(conf, Service())
        assert begun.wait(20), "it has not started"
        say(f"launched {threading.current_thread() is threading.main_thread()}")
        sys.exit(launcher.wait())
        """,
        flavour="EVENTLET",
    )
    program.expect("launched True")

    assert program.stop() == 0
    assert sum(line.startswith("started") for line in program.said()) == 1


@pytest.mark.parametrize(("workers", "status"), [(1, 0), (2, 1)])
def test_sigterm_ends_a_program_that_never_comes_to_wait(
    running: Any, workers: int, status: int
) -> None:
    program = running(
        """
        def prepare():
            pass
        from oslo_service import _options
        conf.register_opts(_options.service_opts)
        if workers > 1:
            conf.set_override("graceful_shutdown_timeout", 1)
        launcher = service.launch(conf, Service(), workers=workers)
        say("launched")
        threading.Event().wait()
        """,
        flavour="EVENTLET",
        workers=workers,
    )
    program.expect("launched")
    program.expect("started", workers)

    assert program.stop() == status


RELOADED = """
class Hanging(Service):
    def reset(self):
        say("reset")
        threading.Event().wait()

prepare = int
main(GRACE, Hanging, "METHOD")
"""


@pytest.mark.parametrize("method", ["reload", "mutate"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("grace", [0, 60])
def test_sigterm_ends_a_reset_that_hangs_soon_and_with_status_0(
    running: Any, method: str, workers: int, grace: int
) -> None:
    """In the parent of workers, and where a single process reloads, it runs on the main thread."""
    code = RELOADED.replace("METHOD", method).replace("GRACE", str(grace))
    program = running(code, workers=workers)
    program.expect("started", workers)
    os.kill(program.process.pid, signal.SIGHUP)
    program.expect("reset")

    # Less than any deadline: of the grace period, and of a reset() that cannot be left.
    assert program.stop() == 0
    assert "returned 0" in program.said()


IN_THE_FOREGROUND = """
from osloxide.signals import signal_handler
signal_handler.is_daemon = lambda: "reset" not in said
"""
"""As one whose user takes it there (``fg``) while it resets: the next SIGHUP is a stop."""


@pytest.mark.parametrize("method", ["reload", "mutate"])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("grace", [0, 60])
def test_a_hangup_that_is_a_stop_ends_a_reset_that_hangs_as_sigterm_does(
    running: Any, method: str, workers: int, grace: int
) -> None:
    code = RELOADED.replace("METHOD", method).replace("GRACE", str(grace))
    code = IN_THE_FOREGROUND + code.replace("say(", "said.append('reset'); say(")
    program = running("said = []" + code, flavour="EVENTLET", workers=workers)
    program.expect("started", workers)
    os.kill(program.process.pid, signal.SIGHUP)
    program.expect("reset")

    assert program.stop(signal.SIGHUP) == 0
    assert "returned 0" in program.said()


STUBBORN = """
from osloxide.launch import process_launcher
process_launcher.DEADLINE_OF_START = 0.1

class Stubborn(Service):
    def reset(self):
        say("reset")
        while True:
            try:
                threading.Event().wait()
            except BaseException:
                say("swallowed")

prepare = int
main(0, Stubborn)
"""


def test_a_parent_whose_reset_cannot_be_left_ends_although_its_grace_is_for_ever(
    running: Any,
) -> None:
    program = running(STUBBORN, workers=2)
    program.expect("started", 2)
    os.kill(program.process.pid, signal.SIGHUP)
    program.expect("reset")

    assert program.stop() == 1
    assert program.said().count("swallowed") == 1
    assert "Caught SIGTERM, which ends Stubborn.reset() in the parent" in program.text()


def test_a_sigterm_just_before_a_reload_skips_it(running: Any) -> None:
    program = running(
        """
        class Hanging(Service):
            def reset(self):
                say("reset")
                threading.Event().wait()

        prepare = int
        from osloxide.launch.process_launcher import ProcessLauncher as Ours
        reconfigure = Ours._reconfigure_unless_stopped
        def after_sigterm(self, method):
            signal.raise_signal(signal.SIGTERM)
            reconfigure(self, method)
        Ours._reconfigure_unless_stopped = after_sigterm
        main(0, Hanging)
        """,
        workers=2,
    )
    program.expect("started", 2)

    assert program.stop(signal.SIGHUP) == 0
    assert "returned 0" in program.said()
    assert "reset" not in program.said()


@pytest.mark.parametrize("grace", [1, 10**10])
def test_a_stop_in_no_fork_after_wait_has_returned_is_bounded_or_for_ever(
    running: Any, grace: int
) -> None:
    program = running(
        f"""
        from oslo_service import _options
        conf.register_opts(_options.service_opts)
        conf.set_override("graceful_shutdown_timeout", {grace})
        class Brief(Service):
            def wait(self):
                pass
            def stop(self):
                super().stop()
                say(f"alarm {{signal.alarm(0)}}")
        prepare = int
        launcher = service.ProcessLauncher(conf, no_fork=True)
        launcher.launch_service(Brief())
        say("launched")
        threading.Event().wait()
        """,
    )
    program.expect("launched")

    assert program.stop() == 0
    assert program.said()[-1] == f"alarm {1 if grace == 1 else 0}"
    assert "Traceback" not in program.text()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("grace", [10**7, 10**10, 10**19])
def test_a_grace_period_that_no_clock_of_the_system_can_count_is_for_ever(
    running: Any, workers: int, grace: int
) -> None:
    program = running(f"prepare = int\nmain({grace})", workers=workers)
    program.expect("started", workers)
    os.kill(program.process.pid, signal.SIGHUP)
    program.expect("started", 2 * workers)

    assert program.stop() == 0

    assert "Traceback" not in program.text()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_needs_no_thread_that_the_system_refuses(running: Any, workers: int) -> None:
    program = running(
        """
        from osloxide.threads import own
        def refuse(name, target):
            raise RuntimeError("can't start new thread")
        def prepare():
            own.start = refuse
        main(60)
        """,
        workers=workers,
    )
    program.expect("started", workers)

    assert program.stop() == 0
    assert "No thread for service stop" in program.text()


def test_nothing_is_started_once_a_stop_has_begun() -> None:
    """A stop that comes between two services, or before the first, starts none to stop it."""
    started: list[str] = []
    service = type("Probe", (), {"start": lambda self: started.append("start")})()
    runner = Runner(
        SimpleNamespace(graceful_shutdown_timeout=60),
        [service],
        restart_method="reload",
        on_ready=lambda: None,
    )
    runner._leaving = True

    runner._start(service)

    assert (started, runner._begun) == ([], [])


def test_what_a_handler_raises_in_the_last_lines_of_a_worker_leaves_its_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It got 1, with which the code ends it that has forked it."""

    def interrupted(_status: int) -> None:
        raise SystemExit(9)

    monkeypatch.setattr(worker, "_serve", lambda _assignment: 7)
    monkeypatch.setattr(ending, "leave", interrupted)
    pid = os.fork()
    if pid == 0:
        try:
            worker.run(None)
        finally:
            os._exit(1)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.mark.parametrize("refused", [RuntimeError, OSError])
def test_an_end_that_gets_no_thread_is_bounded_and_can_be_taken_back(
    monkeypatch: pytest.MonkeyPatch, refused: type[Exception]
) -> None:
    """A launcher that was made then was ended by the deadline of the one before it."""
    said: list[str] = []

    def refuse(*_arguments: object) -> None:
        raise refused("can't start new thread")

    monkeypatch.setattr(_native, "arm_deadline", lambda *_arguments: said.append("armed"))
    monkeypatch.setattr(_native, "disarm_deadline", lambda: said.append("disarmed"))
    if refused is OSError:
        monkeypatch.setattr(_native, "arm_deadline", refuse)
        monkeypatch.setattr(own, "start", lambda _name, _work: said.append("armed"))
    else:
        monkeypatch.setattr(own, "start", refuse)

    ending.begin(0, 60)
    ending.take_back()

    assert said == ["armed", "disarmed"]


def test_a_worker_writes_its_output_whatever_a_handler_raises_as_it_finds_its_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raised(*_arguments: object) -> int:
        raise SystemExit(9)

    monkeypatch.setattr(worker, "_serve", raised)
    monkeypatch.setattr(worker, "exit_status", raised)
    monkeypatch.setattr(ending, "leave", lambda status: os._exit(70 + status))
    pid = os.fork()
    if pid == 0:
        worker.run(None)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 71


def test_an_end_that_gets_no_thread_and_no_deadline_is_not_said_to_be_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError("can't start new thread")

    def refuse_thread(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_native, "arm_deadline", refuse)
    monkeypatch.setattr(own, "start", refuse_thread)

    with caplog.at_level("DEBUG", logger="osloxide.launch.ending"):
        ending.begin(0, 60)
    ending.take_back()

    assert [record.getMessage() for record in caplog.records] == [
        "The end of this process is not bounded"
    ]


def test_a_worker_that_stops_waits_neither_for_itself_nor_for_one_that_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = subprocess.Popen(["true"])
    left.wait(LONGEST)
    rows = [{"pid": pid, "ready_at": None} for pid in (0, os.getpid(), left.pid)]
    board = SimpleNamespace(read=lambda: rows)
    native = SimpleNamespace(Scoreboard=SimpleNamespace(attach=lambda _pid: board))
    monkeypatch.setattr("osloxide._native", native)
    monkeypatch.setattr(site, "_LEAVING", 0.0)
    patience = iter([0.0])  # asked for once, at the beginning: nothing is waited for
    monkeypatch.setattr(site, "time", SimpleNamespace(monotonic=lambda: next(patience)))

    site.Boot().wait_for_loaders()

    rows.append({"pid": os.getppid(), "ready_at": None})
    patience = iter([0.0, 1.0])
    site.Boot().wait_for_loaders()
    assert list(patience) == [], "one that loads is waited for"


SAYS_WHO_FORKS = """
prepare = int
os.register_at_fork(before=lambda: say(f"forks on {threading.current_thread().name}"))
launcher = service.ProcessLauncher(conf)
launch = lambda: launcher.launch_service(Service(), workers)
"""


@pytest.mark.parametrize("flavour", ["THREADING", "EVENTLET"])
def test_a_service_that_a_thread_launches_before_wait_is_forked_by_the_main_thread(
    running: Any, flavour: str
) -> None:
    program = running(
        SAYS_WHO_FORKS
        + """
thread = threading.Thread(target=launch)
thread.start()
thread.join()
say("launched")
sys.exit(launcher.wait())
""",
        flavour,
        workers=2,
    )

    program.expect("started", 2)

    said = [line for line in program.said() if not line.startswith("started")]
    assert said == ["launched", "forks on MainThread", "forks on MainThread"]
    assert program.stop() == 0


REFUSED = """
from osloxide import exceptions, wsgi
prepare = int
server = wsgi.Server(conf, "s", lambda environ, start: [], host="127.0.0.1")
server.start()
launcher = service.ProcessLauncher(conf)

def launch_and_wait():
    launcher.launch_service(Service(), workers)
    return launcher.wait()

try:
    launch_and_wait()
except exceptions.ForkAfterThreadsError:
    say("refused")
server.stop()
server.wait()
"""


def test_sigterm_between_launch_and_wait_is_honoured_by_a_launcher_used_again(
    running: Any,
) -> None:
    code = (
        REFUSED
        + """
launcher.launch_service(Service(), workers)
signal.raise_signal(signal.SIGTERM)
assert launcher.wait() == 0
say("stopped")
"""
    )
    program = running(code, workers=2)

    assert program.ended() == 0, program.text()
    assert program.said() == ["refused", "stopped"]


def test_another_thread_waits_for_a_launcher_used_again_and_stops_it(running: Any) -> None:
    code = (
        REFUSED
        + """
def wait():
    say(f"thread returned {launcher.wait()}")

def lend(function):
    lent.append(function)
    asked.set()
    answered.wait()
    return answers[0]

from osloxide.threads import main_thread
main_thread.serve(lend)
lent, answers, asked, answered = [], [], threading.Event(), threading.Event()
launcher.launch_service(Service(), workers)
thread = threading.Thread(target=wait)
thread.start()
asked.wait(10)
answers.append(lent[0]())
answered.set()
thread.join()
sys.exit(answers[0])
"""
    )
    program = running(code, workers=2)
    program.expect("started", 4)

    assert program.stop() == 0
    assert "thread returned 0" in program.said()


def test_a_service_that_could_not_be_launched_is_neither_resized_nor_reset(running: Any) -> None:
    code = (
        REFUSED
        + """
class Other(Service):
    def reset(self):
        say("reset of the other")

class Probe(Service):
    pass

Service.reset = lambda self: say(f"reset of {type(self).__name__}")
reader, writer = os.pipe()
prepare = lambda: os.write(writer, b"x")
launcher.launch_service(Other(), workers)
for _ in range(workers):
    os.read(reader, 1)  # one that is not wanted before it has started says nothing
launcher.change_workers(-1)
sys.exit(launcher.wait())
"""
    )
    program = running(code, "EVENTLET", workers=2)
    program.expect("started", 2)
    os.kill(program.process.pid, signal.SIGHUP)
    program.expect("reset")
    program.expect("started", 3)

    assert program.stop() == 0
    assert {line for line in program.said() if "reset" in line} == {"reset of the other"}
    assert "Other has 1 workers from now on, not 2" in program.text()
    assert "the other workers go on" not in program.text()


@pytest.mark.parametrize("flavour", ["THREADING", "EVENTLET"])
def test_a_service_that_a_thread_launches_meanwhile_is_forked_by_the_main_thread(
    running: Any, flavour: str
) -> None:
    program = running(
        SAYS_WHO_FORKS
        + """
launch()

def launch_another():
    while not launcher._is_supervising:
        time.sleep(0.01)
    launch()

threading.Thread(target=launch_another, daemon=True).start()
sys.exit(launcher.wait())
""",
        flavour,
        workers=2,
    )

    program.expect("started", 4)

    assert {line for line in program.said() if line.startswith("forks")} == {"forks on MainThread"}
    assert program.stop() == 0


@pytest.mark.parametrize("flavour", ["THREADING", "EVENTLET"])
def test_a_launcher_that_could_not_fork_its_first_worker_may_be_used_again(
    running: Any, flavour: str
) -> None:
    """Native threads were in the way, say; the program ends them and goes on."""
    code = 'sys.exit(launcher.wait() if sys.argv[1] == "THREADING" else launch_and_wait())'
    program = running(REFUSED + code, flavour, workers=2)

    program.expect("refused")
    program.expect("started", 2)
    assert program.stop() == 0
    assert len([line for line in program.said() if line.startswith("started")]) == 2


@pytest.mark.parametrize("flavour", ["THREADING", "EVENTLET"])
def test_a_stop_while_the_supervisor_is_made_is_not_lost(running: Any, flavour: str) -> None:
    """Its handler made one of its own and asked that one, which nobody waited for.

    So the supervisor comes before the first handler: a stop in between is the default's, always.
    """
    program = running(
        """
from osloxide.launch import scoreboard
make = scoreboard.make

def make_slowly():
    made = make()
    os.kill(os.getpid(), signal.SIGTERM)
    return made

prepare, scoreboard.make = lambda: None, make_slowly
main(30)
""",
        flavour,
        workers=2,
    )

    assert program.ended() == -signal.SIGTERM, program.text()
