"""What a launcher says and does about workers that hang, are late, crash or are not its own.

Real processes. Rules: docs/lifecycle.md, docs/signals.md; wait(2), pid_namespaces(7).
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Program, wait_until
from procfs import children, stat
from support.tracing import fetch, traced

Start = Callable[..., Program]


def stop(program: Program) -> int:
    program.send(signal.SIGTERM)
    return program.ended()


# ---- workers that hang


def test_a_worker_that_holds_the_interpreter_is_replaced_and_the_log_shows_where_it_was(
    running: Start, flavour: str
) -> None:
    args = ("--workers", "2", "--worker-timeout", "2", "--burn-on-usr2")
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", 2)
    stuck = program.workers()[0]

    program.send(signal.SIGUSR2, stuck)
    program.expect("burning", 1, stuck)

    program.expect("wait", 3)
    program.expect_log(rf"Worker \d \(pid {stuck}\) did nothing for [\d.]+ s.*; sent SIGABRT")
    program.expect_log(rf"Worker \d \(pid {stuck}\) ended here:\n(.*\n)+?.*in burn\n")
    program.expect_log(rf"Child {stuck} killed by signal {signal.SIGABRT.value}")
    assert stop(program) == 0


def test_a_frozen_worker_is_replaced_and_the_log_shows_where_it_was(running: Start) -> None:
    program = running("probe.py", "--workers", "2", "--worker-timeout", "1")
    program.expect("wait", 2)
    frozen = program.workers()[0]

    program.send(signal.SIGSTOP, frozen)

    program.expect("wait", 3)
    program.expect_log(rf"Worker \d \(pid {frozen}\) ended here:\n(.*\n)+?.*in wait\n")
    assert stop(program) == 0


def test_a_worker_that_dies_under_a_debugger_is_replaced_and_costs_its_parent_nothing(
    running: Start,
) -> None:
    program = running("probe.py", "--workers", "2")
    program.expect("wait", 2)
    victim = program.workers()[0]
    with traced(victim):
        program.send(signal.SIGKILL, victim)

        program.expect("wait", 3)
        looks: list[str] = []

        def is_asleep() -> bool:
            seen = stat(program.pid)
            looks.append(seen.state if seen else "gone")
            return looks[-20:] == ["S"] * 20

        # The end of the worker is told for as long as the debugger does not wait for it.
        wait_until(is_asleep, "the parent sleeps, and does not go round and round")
    # What was left of it is fetched beside the next that ends.
    program.send(signal.SIGKILL, program.workers()[0])
    program.expect("wait", 4)
    wait_until(lambda: victim not in zombies(program.pid), "nothing is left of it")
    assert stop(program) == 0


def test_the_status_of_a_worker_is_known_whose_tracer_waits_for_it(running: Start) -> None:
    program = running("probe.py", "--workers", "2")
    program.expect("wait", 2)
    victim = program.workers()[0]

    with traced(victim):
        program.send(signal.SIGKILL, victim)
        assert fetch(victim) == signal.SIGKILL
        program.expect("wait", 3)

    program.expect_log(f"Child {victim} killed by signal 9")
    assert stop(program) == 0


def test_a_stop_ends_at_its_deadline_beside_a_debugger_that_does_not_let_go(
    running: Start,
) -> None:
    program = running("probe.py", "--workers", "2", "--grace", "1")
    program.expect("wait", 2)

    # The worker stops where SIGTERM reaches it, and SIGKILL leaves what the debugger has to fetch.
    with traced(program.workers()[0]):
        assert stop(program) == 1


def test_busy_and_idle_workers_that_go_on_are_never_taken_to_hang(running: Start) -> None:
    program = running("probe.py", "--workers", "3", "--worker-timeout", "1.5")
    program.expect("wait", 3)
    before = program.workers()

    # The fourth quarter of the timeout is the parent's last look, so three timeouts are enough.
    looks = program.switches()
    wait_until(lambda: program.switches() > looks + 12, "the parent has looked twelve times")

    assert program.workers() == before
    assert "did nothing" not in program.log
    assert stop(program) == 0


def test_without_a_worker_timeout_nobody_wakes_up_to_beat(running: Start, flavour: str) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2")
    program.expect("wait", 2)
    everybody = [program.pid, *program.workers()]

    def is_quiet(seconds: float) -> bool:
        before = [program.switches(pid) for pid in everybody]
        time.sleep(seconds)  # the window that is looked at, not a wait for anything
        return [program.switches(pid) for pid in everybody] == before

    wait_until(lambda: is_quiet(1.5), "nobody wakes up")
    assert stop(program) == 0


# ---- workers that crash


def test_a_crash_shows_its_signal_and_the_python_frames(running: Start, flavour: str) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2", "--segv-on-usr2")
    program.expect("wait", 2)
    victim = program.workers()[0]

    program.send(signal.SIGUSR2, victim)

    program.expect_log(rf"Worker \d \(pid {victim}\) ended here:\n(.*\n)+?.*in crash\n")
    program.expect_log(rf"Worker \d \(pid {victim}\) of Probe ended .*killed by SIGSEGV")
    program.expect("wait", 3)
    assert stop(program) == 0


def test_a_crash_loop_is_reported_with_the_last_exit_and_what_it_means(
    running: Start, flavour: str
) -> None:
    args = ("--backend", flavour, "--workers", "2", "--start", "exit:3")
    program = running("probe.py", *args)

    program.expect_log(
        r"Worker 0 of Probe has failed \d+ times in a row \(most recently: exit status 3 .*\); "
        r"its next start is in [\d.]+ s"
    )
    assert stop(program) == 0


# ---- whose descriptors, whose children


def test_nothing_of_the_supervisor_leaks_into_what_a_worker_starts(
    running: Start, flavour: str
) -> None:
    args = ("--backend", flavour, "--workers", "3", "--command-in-start")
    program = running("probe.py", *args)
    program.expect("wait", 3)

    for _, detail in program.events("inherited-fds"):
        beyond = [target for fd, target in json.loads(detail) if int(fd) > 2]
        assert all(target.startswith("/proc/") for target in beyond), f"ls has {beyond}"
    assert len(program.events("inherited-fds")) == 3
    assert stop(program) == 0


@pytest.mark.parametrize("alone", [False, True], ids=["workers", "alone"])
def test_process_1_reaps_orphans_and_leaves_the_application_its_exit_statuses(
    running: Start, namespace: tuple[str, ...], alone: bool
) -> None:
    program = running("init.py", *(["--alone"] if alone else []), prefix=namespace)
    program.expect("started", 1 if alone else 2)
    # The outer pid of process 1: unshare's only child.
    (init,) = program.workers()
    program.send(signal.SIGWINCH, init)
    program.expect("begun")
    wait_until(lambda: len(zombies(init)) == 2, "both commands have ended")

    # From a worker, where there are any: the orphan was never this process' own child.
    source = init if alone else children(init)[0]
    program.send(signal.SIGUSR1, source)
    program.expect("orphaned")

    program.expect_log(r"Adopted process \d+ has ended \(wait status 1280\)")
    assert len(re.findall("Adopted process", program.log)) == 1
    program.send(signal.SIGUSR2, init)
    assert program.expect("statuses")[0][1] == "7 8"
    program.send(signal.SIGTERM, init)
    assert program.ended() == 0


def zombies(pid: int) -> set[int]:
    """Children of a process that ended and were not waited for."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == pid:
                found.add(int(entry.parent.name))
    return found


def test_a_storm_of_sigchld_harms_nobody(running: Start, flavour: str) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2")
    program.expect("wait", 2)
    before = program.workers()

    for _ in range(2000):
        program.send(signal.SIGCHLD)
        program.send(signal.SIGCHLD, before[0])
    program.send(signal.SIGKILL, before[1])

    program.expect("wait", 3)
    assert program.workers()[0] == before[0]
    assert stop(program) == 0


# ---- titles


def test_titles_name_slot_and_program_and_keep_command_line_and_comm(running: Start) -> None:
    pytest.importorskip("setproctitle")
    program = running("probe.py", "--workers", "2")
    program.expect("wait", 2)

    def title(pid: int) -> str:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()

    parent, *workers = [program.pid, *program.workers()]
    assert re.fullmatch(
        r"osloxide: supervisor of probe\.py \[.*probe\.py --workers 2\]", title(parent)
    )
    for slot, pid in enumerate(workers):
        assert title(pid).startswith(f"osloxide: worker {slot} of probe.py [")
        assert title(pid).endswith("probe.py --workers 2]")
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in (parent, *workers)}
    assert names == {Path(sys.executable).name[:15]}
    assert stop(program) == 0


def test_without_setproctitle_the_command_line_stays_as_it_was(
    running: Start, tmp_path: Path
) -> None:
    (tmp_path / "setproctitle.py").write_text("raise ImportError('not installed')\n")
    program = running("probe.py", "--workers", "2", PYTHONPATH=str(tmp_path))
    program.expect("wait", 2)

    for pid in (program.pid, *program.workers()):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert words[1].endswith(b"probe.py")
    assert stop(program) == 0
