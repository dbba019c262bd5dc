"""What launchers promise: order of calls, threads, exit statuses, forks. Real processes.

Rules: docs/compatibility.md, docs/signals.md; oslo_service.service (oslo.service 4.8).
"""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from _children import run_command
from conftest import Program, wait_until

from osloxide import _native, service

Start = Callable[..., Program]


def stop(program: Program) -> int:
    program.send(signal.SIGTERM)
    return program.ended()


def sequence(program: Program, pid: int, *names: str) -> list[str]:
    """The events of one process among *names*, in order."""
    found = re.findall(rf"^{pid} (\S+) ", program.output, re.MULTILINE)
    return [name for name in found if name in names]


@pytest.mark.parametrize("workers", [None, 1])
def test_one_worker_runs_in_the_launching_process_on_its_main_thread(
    running: Start, flavour: str, workers: int | None
) -> None:
    args = [] if workers is None else ["--workers", str(workers)]

    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait")

    assert program.workers() == []
    assert program.events("start") == [(program.pid, "0 main")]
    assert program.events("wait") == [(program.pid, "0 main")]
    assert stop(program) == 0
    assert program.events("returned") == [(program.pid, "0")]


def test_workers_start_and_wait_on_their_main_thread_and_stop_beside_it(
    running: Start, flavour: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2")
    program.expect("wait", 2)
    workers = program.workers()

    assert sorted(pid for pid, _ in program.events("start")) == sorted(workers)
    assert stop(program) == 0
    for pid in workers:
        assert program.events("start", pid) == [(pid, "0 main")]
        assert program.events("wait", pid) == [(pid, "0 main")]
        assert program.events("stop", pid) == [(pid, "0 beside")]
        steps = sequence(program, pid, "start", "started", "wait", "stop", "stopped", "waited")
        assert steps[:3] == ["start", "started", "wait"]
        assert sorted(steps[3:]) == ["stop", "stopped", "waited"]


def test_the_parent_never_starts_or_stops_its_copy_of_the_service(
    running: Start, flavour: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2")
    program.expect("wait", 2)

    assert stop(program) == 0

    for event in ("start", "stop", "wait"):
        assert program.events(event, program.pid) == []
    assert program.events("returned", program.pid) == [(program.pid, "0")]


def test_the_eventlet_flavour_forks_in_launch_and_the_threading_flavour_in_wait(
    running: Start, flavour: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2", "--pause")
    program.expect("paused")

    if flavour == "eventlet":
        program.expect("wait", 2)
        assert len(program.workers()) == 2
    else:
        assert program.workers() == []
        assert program.events("start") == []
    program.send(signal.SIGUSR1)
    program.expect("wait", 2)
    assert stop(program) == 0


def test_several_services_on_one_launcher_start_in_order_and_all_stop(
    running: Start, flavour: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--launcher", "service", "--services", "3")
    program.expect("wait")

    assert [detail for _, detail in program.events("started")] == ["0", "1", "2"]
    assert stop(program) == 0
    assert [detail for _, detail in program.events("stopped")] == ["0", "1", "2"]
    assert [detail for _, detail in program.events("waited")] == ["0", "1", "2"]


def test_several_services_with_several_workers_each_have_their_own_processes(
    running: Start, flavour: str
) -> None:
    args = ("--launcher", "process", "--services", "2", "--workers", "2")
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", 4)

    assert len(program.workers()) == 4
    assert sorted(detail for _, detail in program.events("started")) == ["0", "0", "1", "1"]
    assert stop(program) == 0


def test_services_that_are_equal_and_have_no_hash_are_told_apart(flavour: str) -> None:
    program = f"""
import dataclasses, os, signal, threading
from oslo_config import cfg
from osloxide.backends.{flavour} import service

ended = threading.Event()

@dataclasses.dataclass
class Equal(service.Service):
    def __post_init__(self):
        super().__init__()
        self.order = []
    def start(self):
        self.order.append("start")
        if all(one.order for one in services):
            os.kill(os.getpid(), signal.SIGTERM)
    def stop(self, graceful=False):
        self.order.append("stop")
        super().stop(graceful)

services = [Equal(), Equal()]
assert services[0] == services[1]
cfg.CONF([], project="equal")
launcher = service.ServiceLauncher(cfg.CONF)
for one in services:
    launcher.launch_service(one)
status = launcher.wait()
print(status, [one.order for one in services])
"""
    result = run_command([sys.executable, "-c", program])

    assert result.stdout == "0 [['start', 'stop'], ['start', 'stop']]\n", result.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_a_service_forks_and_that_exits_stops_nothing(
    flavour: str, workers: int
) -> None:
    program = f"""
import os, signal, sys
from oslo_config import cfg
from osloxide.backends.{flavour} import service

parent = os.getpid()

class Forking(service.Service):
    def start(self):
        child = os.fork()
        if child == 0:
            sys.exit(7)
        print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        os.kill(parent, signal.SIGTERM)
    def stop(self, graceful=False):
        print("stop", flush=True)
        super().stop(graceful)

cfg.CONF([], project="forking")
service.launch(cfg.CONF, Forking(), workers={workers}).wait()
"""
    result = run_command([sys.executable, "-c", program])

    lines = result.stdout.splitlines()
    assert "child 7" in lines, result.stderr
    assert {*lines} == {"child 7", "stop"}
    assert lines.count("stop") == lines.count("child 7")


def test_no_fork_runs_the_service_inside_launch_on_the_main_thread(running: Start) -> None:
    program = running("probe.py", "--backend", "threading", "--workers", "1", "--no-fork")
    program.expect("wait")

    assert program.events("start") == [(program.pid, "0 main")]
    assert program.events("launched") == []
    assert stop(program) == 0
    assert program.events("stop") == [(program.pid, "0 beside")]
    assert program.events("launched") == [(program.pid, "ProcessLauncher")]
    assert program.events("returned") == [(program.pid, "0")]


def test_no_fork_returns_when_the_service_has_ended_by_itself(running: Start) -> None:
    program = running("probe.py", "--backend", "threading", "--no-fork", "--wait", "return")

    assert program.ended() == 0
    assert program.events("stop") == []


def test_the_eventlet_flavour_ignores_no_fork(running: Start) -> None:
    program = running("probe.py", "--backend", "eventlet", "--workers", "2", "--no-fork")
    program.expect("wait", 2)

    assert len(program.workers()) == 2
    assert stop(program) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_service_whose_wait_has_returned_stays_until_it_is_stopped(
    running: Start, flavour: str, workers: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", workers, "--wait", "return")
    program.expect("waited", int(workers))

    assert program.events("returned") == []
    assert stop(program) == 0
    assert len(program.events("stop")) == int(workers)


@pytest.mark.parametrize(
    ("start", "status"),
    [("crash", 1), ("exit:3", 3), ("exit:0", 0), ("exit-none", 0), ("exit-text", 1)],
)
def test_a_start_that_fails_ends_the_single_process_with_its_status(
    running: Start, flavour: str, start: str, status: int
) -> None:
    program = running("probe.py", "--backend", flavour, "--start", start)

    assert program.ended() == status
    assert program.events("wait") == []
    assert program.events("returned") == [(program.pid, str(status))]
    if start == "crash":
        assert "Error starting thread." in program.log
        assert "planted fault in start()" in program.log
    if start == "exit-text":
        assert "planted text" in program.log


@pytest.mark.parametrize(
    ("start", "text"),
    [
        ("crash", "exit status 1"),
        ("exit:3", "exit status 3"),
        ("exit-text", "exit status 1"),
    ],
)
def test_a_worker_whose_start_fails_is_forked_again_and_never_runs_the_callers_code(
    running: Start, flavour: str, start: str, text: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2", "--start", start)
    program.expect("start", 5)
    program.expect_log(rf"Worker \d \(pid \d+\) of Probe ended after [\d.]+ s: {text}")
    program.expect_log("Worker [01] of Probe has failed 2 times in a row")

    assert stop(program) == 0
    assert {pid for pid, _ in program.events("launched")} <= {program.pid}
    assert {pid for pid, _ in program.events("returned")} == {program.pid}


def test_a_worker_that_leaves_for_its_successor_is_named_with_the_reason(
    running: Start, flavour: str
) -> None:
    args = ("--backend", flavour, "--launcher", "process", "--start", "own-address")
    program = running("probe.py", *args)
    program.expect("wait")
    (old,) = program.workers()

    program.send(signal.SIGHUP)

    program.expect("wait", 2)
    program.expect_log(
        rf"Worker 0 \(pid {old}\) of Probe leaves before its successor serves: two have failed "
        r"beside it \(most recently: exit status \d"
    )
    assert "failed 2 times in a row" not in program.log, "no fork is put off"
    assert stop(program) == 0


def test_a_worker_that_exits_with_none_in_start_does_not_escape(
    running: Start, flavour: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2", "--start", "exit-none")
    program.expect("start", 3)
    program.expect_log(r"Child \d+ exited with status 0")

    assert stop(program) == 0
    assert {pid for pid, _ in program.events("returned")} == {program.pid}


def test_a_crash_in_wait_ends_the_process_with_2_after_stop(running: Start, flavour: str) -> None:
    program = running("probe.py", "--backend", flavour, "--wait", "crash")

    assert program.ended() == 2
    assert len(program.events("stopped")) == 1
    assert "planted fault in wait()" in program.log


def test_a_failing_stop_is_logged_and_the_process_ends_with_1(running: Start, flavour: str) -> None:
    program = running("probe.py", "--backend", flavour, "--stop", "crash", "--wait", "return")
    program.expect("waited")

    assert stop(program) == 1
    assert "Error stopping Probe" in program.log
    assert "planted fault in stop()" in program.log


def test_a_killed_worker_is_replaced_and_the_log_names_slot_pid_and_signal(
    running: Start, flavour: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2")
    program.expect("wait", 2)
    victim = program.workers()[1]

    program.send(signal.SIGKILL, victim)

    program.expect("wait", 3)
    program.expect_log(rf"Child {victim} killed by signal 9")
    program.expect_log(rf"Worker [01] \(pid {victim}\) of Probe .*killed by SIGKILL, which this")
    assert victim not in program.workers()
    assert len(program.workers()) == 2
    assert stop(program) == 0


def test_a_frozen_worker_is_replaced_after_the_worker_timeout(running: Start, flavour: str) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2", "--worker-timeout", "1")
    program.expect("wait", 2)
    frozen = program.workers()[0]

    program.send(signal.SIGSTOP, frozen)

    program.expect("wait", 3)
    program.expect_log(rf"Worker [01] \(pid {frozen}\) did nothing for [\d.]+ s")
    assert stop(program) == 0


def test_workers_leave_by_themselves_when_the_parent_is_killed(
    running: Start, flavour: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2")
    program.expect("wait", 2)
    workers = program.workers()

    program.send(signal.SIGKILL)

    assert program.ended() == -signal.SIGKILL
    for pid in workers:
        program.expect_log(rf"{pid} .*Parent process has died unexpectedly, exiting")
    wait_until(lambda: not program.members(), "the workers are gone")
    assert len(program.events("stopped")) == 2


def test_each_worker_draws_its_own_numbers_from_random_ssl_uuid_and_the_kernel(
    running: Start, flavour: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "3")
    program.expect("random", 3)
    program.expect("wait", 3)

    drawn = [json.loads(detail) for _, detail in program.events("random")]
    for source in zip(*drawn, strict=True):
        assert len(set(source)) == 3, f"workers go on where the parent was: {source}"
    assert stop(program) == 0


def test_the_parent_starts_no_thread_and_never_forks_with_one(running: Start, flavour: str) -> None:
    """CPython warns of a fork with threads since 3.12; this is what it counts before."""
    args = ("--backend", flavour, "--workers", "2", "--launcher", "process")
    program = running("probe.py", *args)
    program.expect("wait", 2)
    program.send(signal.SIGKILL, program.workers()[0])
    program.expect("wait", 3)
    program.send(signal.SIGHUP)
    program.expect("wait", 5)

    counted = program.events("fork-with-threads", program.pid)
    assert [detail for _, detail in counted] == ["1"] * 5
    assert len(list(Path(f"/proc/{program.pid}/task").iterdir())) == 1
    assert stop(program) == 0


def test_threads_of_the_application_at_the_fork_are_named_in_a_warning(
    running: Start, flavour: str
) -> None:
    args = ("--backend", flavour, "--workers", "2", "--thread-before-fork")
    program = running("probe.py", *args)
    program.expect("wait", 2)

    program.expect_log(r"Forking workers while 1 other threads run \(bystander\)")
    assert stop(program) == 0


def test_stop_from_another_thread_returns_when_all_workers_have_left(
    running: Start, flavour: str
) -> None:
    for workers in ("1", "2"):
        args = ("--backend", flavour, "--workers", workers, "--stop-from-thread")
        program = running("probe.py", *args)
        program.expect("wait", int(workers))

        assert program.process.stdin is not None
        program.process.stdin.close()

        assert program.ended() == 0
        assert len(program.events("stopped")) == int(workers)
        assert len(program.events("stopper")) == 1


def test_a_single_process_shows_itself_on_a_scoreboard(running: Start, flavour: str) -> None:
    program = running("probe.py", "--backend", flavour)
    program.expect("wait")

    (row,) = _native.Scoreboard.attach(program.pid).read()

    assert (row["slot"], row["pid"], row["generation"]) == (0, program.pid, 0)
    assert row["ready_at"] is not None
    assert stop(program) == 0


def test_two_launchers_of_one_process_are_stopped_by_one_sigterm(
    running: Start, flavour: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--launcher", "two", "--workers", "2")
    # The threading flavour forks the second one's workers when the first has ended.
    program.expect("wait", 4 if flavour == "eventlet" else 2)

    assert stop(program) == 0
    assert len(program.events("returned")) == 2
    assert len(program.events("stopped")) == len(program.events("started"))


def test_a_worker_of_one_launcher_does_not_touch_those_of_another(running: Start) -> None:
    program = running("probe.py", "--backend", "eventlet", "--launcher", "two", "--workers", "1")
    program.expect("wait", 2)
    first, second = program.workers()

    program.send(signal.SIGINT, second)

    program.expect_log(rf"{second} .*Caught SIGINT signal, instantaneous exiting")
    wait_until(lambda: not Path(f"/proc/{second}/exe").exists(), "the worker has left")
    assert first in program.workers()
    assert stop(program) == 0


def test_sigint_ends_the_workers_of_every_launcher(running: Start) -> None:
    program = running("probe.py", "--backend", "eventlet", "--launcher", "two", "--workers", "2")
    program.expect("wait", 4)

    program.send(signal.SIGINT)

    assert program.ended() == 1
    assert program.events("stop") == [], "nobody had the time to stop by itself"


def test_a_restart_resets_all_services_before_one_of_them_starts() -> None:
    seen: list[str] = []
    started = threading.Semaphore(0)

    class Told(service.Service):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def start(self) -> None:
            seen.append(f"start {self.name}")
            started.release()

        def reset(self) -> None:
            seen.append(f"reset {self.name}")

    services = service.Services(restart_method="reload")
    for name in "abc":
        services.add(Told(name))
    assert all(started.acquire(timeout=60) for _ in range(3))
    seen.clear()

    services.restart()

    assert all(started.acquire(timeout=60) for _ in range(3))
    services.stop()
    assert seen[:3] == ["reset a", "reset b", "reset c"]
    assert sorted(seen[3:]) == ["start a", "start b", "start c"]


def test_a_start_that_fails_in_any_way_ends_the_wait_for_all_services() -> None:
    class Waits(service.Service):
        def __init__(self) -> None:
            super().__init__()
            self.stopped = threading.Event()

        def stop(self, graceful: bool = False) -> None:
            self.stopped.set()

        def wait(self) -> None:
            assert self.stopped.wait(45), "nobody has stopped it"

    class Fails(Waits):
        def __init__(self, failure: BaseException) -> None:
            super().__init__()
            self.failure = failure

        def start(self) -> None:
            raise self.failure

        def stop(self, graceful: bool = False) -> None:
            super().stop()
            raise SystemExit(9)

    failures = (SystemExit(3), 3), (ValueError(), 1), (KeyboardInterrupt(), 2), (GeneratorExit(), 2)
    for failure, status in failures:
        services = service.Services()
        services.add(Waits())
        services.add(Fails(failure))
        assert services.done.wait(45), repr(failure)
        services.add(Waits())  # as a program that goes on launching does

        with pytest.raises(SystemExit) as ended:
            services.wait()

        assert ended.value.code == status
