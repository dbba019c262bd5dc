"""What each signal does to a parent, a worker and a single process. Real processes.

Rules: docs/signals.md; oslo_service.service (oslo.service 4.8).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import APPS, DEADLINE, Program, wait_until

from osloxide.signals import signal_handler

Start = Callable[..., Program]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration file with a mutable option."""
    path = tmp_path / "probe.conf"
    path.write_text("[DEFAULT]\ncolour = red\n")
    return path


def stop(program: Program) -> int:
    program.send(signal.SIGTERM)
    return program.ended()


ALL_BLOCKED = (
    sys.executable,
    "-c",
    "import os, signal, sys\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
    "os.execv(sys.argv[1], sys.argv[1:])",
)
"""Runs a program with all signals blocked, as a parent may do that forgets its mask at exec."""

WITHOUT_PROC = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$0" "$@"')
"""Runs a program where /proc is empty, as in some sandboxes."""


@pytest.mark.parametrize("prefix", [ALL_BLOCKED, WITHOUT_PROC], ids=["blocked", "no /proc"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_bare_environment_changes_nothing(
    running: Start, prefix: tuple[str, ...], workers: str
) -> None:
    """Signals blocked at exec, and no /proc: reload, respawn and stop work all the same."""
    if subprocess.run([*prefix, "/bin/true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare(1) may not make a mount namespace here (needs CAP_SYS_ADMIN)")
    program = running("probe.py", "--workers", workers, prefix=prefix)
    started = program.expect("wait", int(workers))
    program.send(signal.SIGHUP)
    program.expect("wait", 2 * int(workers))
    if workers == "2":
        newest = program.events("wait")[-1][0]
        assert newest not in {pid for pid, _ in started}
        program.send(signal.SIGKILL, newest)
        program.expect("wait", 5)

    assert stop(program) == 0, repr(program)


def test_a_worker_that_was_started_with_sigabrt_blocked_shows_where_it_hangs(
    running: Start,
) -> None:
    program = running("probe.py", "--workers", "2", "--worker-timeout", "2", prefix=ALL_BLOCKED)
    program.expect("wait", 2)
    hung = program.workers()[0]

    program.send(signal.SIGSTOP, hung)

    program.expect_log(rf"\(pid {hung}\) ended here")
    program.expect_log(r"File .*, line \d+ in wait")
    program.expect_log(rf"Child {hung} killed by signal {signal.SIGABRT:d}$")
    program.expect("wait", 3)
    assert stop(program) == 0, repr(program)


# ---- SIGTERM


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_sigterm_is_ignored_and_the_drain_goes_on(
    running: Start, flavour: str, workers: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", workers, "--wait", "drain:1")
    program.expect("wait", int(workers))

    program.send(signal.SIGTERM)
    program.expect("stop", int(workers))
    program.send(signal.SIGTERM)
    for pid in program.workers():
        program.send(signal.SIGTERM, pid)

    assert program.ended() == 0
    assert len(program.events("waited")) == int(workers)
    assert len(program.events("stop")) == int(workers), "stop() is called once"


def test_sigterm_to_one_worker_drains_it_and_another_takes_its_place(
    running: Start, flavour: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2")
    program.expect("wait", 2)
    leaving = program.workers()[0]

    program.send(signal.SIGTERM, leaving)

    program.expect("waited", 1, leaving)
    program.expect("wait", 3)
    program.expect_log(rf"Child {leaving} exited with status 0")
    assert stop(program) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_and_sighup_at_the_very_end_of_the_interpreter_are_ignored_as_well(
    running: Start, flavour: str, workers: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", workers, "--slow-end")
    program.expect("wait", int(workers))

    program.send(signal.SIGTERM)
    program.expect("interpreter-ends", 1, program.pid)
    program.send(signal.SIGTERM)
    program.send(signal.SIGHUP)
    assert program.process.stdin is not None
    program.process.stdin.close()

    assert program.ended() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_signal_between_launch_and_wait_is_honoured(
    running: Start, flavour: str, workers: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", workers, "--pause")
    program.expect("paused")

    program.send(signal.SIGTERM)
    program.send(signal.SIGUSR1)

    assert program.ended() == 0
    assert program.events("returned") == [(program.pid, "0")]
    if workers == "1" and flavour == "threading":
        assert program.events("start") == [], "nothing is started only to be stopped"
    elif workers == "1":
        assert len(program.events("start")) == len(program.events("stop")) == 1


def test_a_hangup_between_launch_and_wait_is_honoured(
    running: Start, flavour: str, config: Path
) -> None:
    args = ("--workers", "1", "--pause", "--restart-method", "mutate", "--config", str(config))
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("paused")

    program.send(signal.SIGHUP)
    program.send(signal.SIGUSR1)

    program.expect("reset")
    assert stop(program) == 0


def test_sigterm_at_any_moment_of_the_start_ends_the_program_and_leaves_nobody(
    running: Start, flavour: str
) -> None:
    # Each round sends the signal when the program has come a little further.
    for moment in ("launched", "start", "random", "started", "wait"):
        program = running("probe.py", "--backend", flavour, "--workers", "2")
        program.expect(moment)

        assert stop(program) == 0
        started = {pid for pid, _ in program.events("started")}
        assert {pid for pid, _ in program.events("stopped")} == started


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_ends_a_start_that_hangs_soon_and_with_status_0(
    running: Start, flavour: str, workers: str
) -> None:
    args = ("--backend", flavour, "--workers", workers, "--start", "hang", "--grace", "600")
    program = running("probe.py", *args)
    program.expect("start", int(workers))

    assert stop(program) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_ends_a_start_that_cannot_be_left_at_the_deadline(
    running: Start, flavour: str, workers: str
) -> None:
    args = ("--backend", flavour, "--workers", workers, "--start", "swallow", "--grace", "2")
    program = running("probe.py", *args)
    program.expect("start", int(workers))

    assert stop(program) == 1
    if workers == "1":
        program.expect_log("Probe.start\\(\\) has not returned")
        program.expect_log("Graceful shutdown timeout exceeded, instantaneous exiting")
    else:
        program.expect_log("Worker 0 .* still running .* sent SIGABRT")


def test_a_signal_that_the_kernel_gives_to_another_thread_is_heard(
    running: Start, flavour: str
) -> None:
    """The main thread waits for a lock and would not notice by itself."""
    program = running("probe.py", "--backend", flavour, "--signal-elsewhere")

    assert program.ended() == 0
    assert program.events("waited") == [(program.pid, "0")]


# ---- the deadline


LATE = [("stop", "hang"), ("stop", "spin"), ("wait", "drain:600")]
"""What does not return, or holds the interpreter."""


@pytest.mark.parametrize(("method", "behaviour"), LATE)
def test_a_single_process_that_does_not_stop_leaves_at_the_deadline_with_1(
    running: Start, flavour: str, method: str, behaviour: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--grace", "1", f"--{method}", behaviour)
    program.expect("wait")

    assert stop(program) == 1
    if behaviour != "spin":
        named = rf"Probe.{method}\(\) has not returned"
        program.expect_log(rf"Process \d+ is still running 1.0 s .* {named}")
        program.expect_log("Graceful shutdown timeout exceeded, instantaneous exiting")


@pytest.mark.parametrize(("method", "behaviour"), LATE)
def test_workers_that_do_not_stop_are_killed_at_the_deadline_and_the_parent_exits_1(
    running: Start, flavour: str, method: str, behaviour: str
) -> None:
    args = ("--workers", "2", "--grace", "1", f"--{method}", behaviour)
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", 2)

    assert stop(program) == 1
    assert len(re.findall(r"Worker \d \(pid \d+\) still running .* sent SIGABRT", program.log)) == 2


@pytest.mark.parametrize(("method", "behaviour"), LATE)
def test_a_worker_told_to_stop_by_hand_has_the_same_deadline(
    running: Start, flavour: str, method: str, behaviour: str
) -> None:
    args = ("--workers", "2", "--grace", "1", f"--{method}", behaviour)
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", 2)
    late = program.workers()[0]

    program.send(signal.SIGTERM, late)

    program.expect_log(rf"Child {late} exited with status 1")
    program.expect("wait", 3)
    program.send(signal.SIGINT)
    program.ended()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_grace_of_0_waits_for_ever(running: Start, flavour: str, workers: str) -> None:
    args = ("--workers", workers, "--grace", "0", "--wait", "drain:2")
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", int(workers))

    assert stop(program) == 0
    assert len(program.events("waited")) == int(workers)


# ---- SIGINT, SIGALRM


@pytest.mark.parametrize("workers", ["1", "3"])
@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGALRM])
def test_sigint_and_sigalrm_end_everything_at_once_with_1_and_leave_no_orphan(
    running: Start, flavour: str, workers: str, signo: int
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", workers)
    program.expect("wait", int(workers))

    program.send(signo)

    assert program.ended() == 1
    assert program.events("stop") == []
    assert "instantaneous exiting" in program.log
    wait_until(lambda: not program.members(), "no orphan is left")


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGALRM])
def test_sigint_and_sigalrm_end_one_worker_at_once_with_1_and_another_takes_its_place(
    running: Start, flavour: str, signo: int
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2")
    program.expect("wait", 2)
    leaving, staying = program.workers()

    program.send(signo, leaving)

    program.expect("wait", 3)
    program.expect_log(rf"Child {leaving} exited with status 1")
    assert program.events("stop") == []
    assert staying in program.workers()
    assert stop(program) == 0


@pytest.mark.parametrize("signo", [signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGWINCH])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_signals_that_ask_for_nothing_disturb_neither_parent_nor_worker(
    running: Start, flavour: str, workers: str, signo: int
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", workers)
    program.expect("wait", int(workers))
    before = program.workers()

    for pid in (program.pid, *before):
        for _ in range(20):
            program.send(signo, pid)

    assert stop(program) == 0, "they are still heard"
    assert len(program.events("start")) == int(workers)
    assert len(program.events("stopped")) == int(workers)
    assert program.events("reset") == []


def test_no_fork_obeys_the_signals_of_a_single_process(running: Start, config: Path) -> None:
    args = ("--backend", "threading", "--workers", "1", "--no-fork", "--config", str(config))
    for method, steps in (("mutate", ["reset"]), ("reload", ["stop", "waited", "reset", "start"])):
        program = running("probe.py", *args, "--restart-method", method)
        program.expect("wait")

        program.send(signal.SIGHUP)
        program.expect("reset" if method == "mutate" else "started", len(steps) // 3 + 1)

        seen = re.findall(r"^\d+ (start|stop|reset|waited) ", program.output, re.MULTILINE)
        assert seen[1:] == steps
        program.send(signal.SIGTERM)
        program.send(signal.SIGTERM)
        assert program.ended() == 0


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGALRM])
def test_no_fork_ends_at_once_with_1(running: Start, signo: int) -> None:
    program = running("probe.py", "--backend", "threading", "--workers", "1", "--no-fork")
    program.expect("wait")

    program.send(signo)

    assert program.ended() == 1
    assert program.events("stop") == []
    assert "instantaneous exiting" in program.log


def test_sigint_cuts_a_drain_short(running: Start, flavour: str) -> None:
    args = ("--workers", "2", "--stop", "hang")
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", 2)
    program.send(signal.SIGTERM)
    program.expect("stop", 2)

    program.send(signal.SIGINT)

    assert program.ended() == 1


# ---- SIGHUP


@pytest.mark.parametrize("workers", ["1", "2"])
def test_mutate_resets_in_place_in_parent_and_workers_and_restarts_nothing(
    running: Start, flavour: str, workers: str, config: Path
) -> None:
    args = ("--workers", workers, "--restart-method", "mutate", "--config", str(config))
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", int(workers))
    before = program.workers()
    config.write_text("[DEFAULT]\ncolour = blue\n")

    program.send(signal.SIGHUP)
    resets = program.expect("reset", 1 if workers == "1" else 3)

    assert {pid for pid, _ in resets} == {program.pid, *before}
    assert all(detail.endswith(" blue") for _, detail in resets)
    assert program.workers() == before
    assert len(program.events("mutated")) == len(resets)
    assert len(program.events("start")) == int(workers)
    assert program.events("stop") == []
    assert stop(program) == 0
    assert len(program.events("stop")) == int(workers)


def test_reset_runs_beside_the_main_thread_of_a_worker(
    running: Start, flavour: str, config: Path
) -> None:
    args = ("--workers", "2", "--restart-method", "mutate", "--config", str(config))
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", 2)
    worker = program.workers()[0]

    program.send(signal.SIGHUP, worker)

    assert program.expect("reset", 1, worker)[0][1].split()[1] == "beside"
    assert {pid for pid, _ in program.events("reset")} == {worker}
    assert stop(program) == 0


def test_reload_replaces_every_worker_and_the_new_ones_see_the_new_configuration(
    running: Start, flavour: str, config: Path
) -> None:
    args = ("--workers", "2", "--restart-method", "reload", "--config", str(config))
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", 2)
    before = set(program.workers())

    program.send(signal.SIGHUP)

    program.expect("wait", 4)
    program.expect("waited", 2)
    wait_until(lambda: not before & set(program.workers()), "the old workers are gone")
    assert len(program.workers()) == 2
    assert {pid for pid, _ in program.events("stopped")} == before
    assert stop(program) == 0


def test_a_reload_keeps_an_old_worker_until_its_successor_has_started(
    running: Start, flavour: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "1", "--launcher", "process")
    program.expect("wait")
    old = program.workers()[0]

    program.send(signal.SIGHUP)
    program.expect("stop", 1, old)

    lines = program.output.splitlines()
    stopped_at = next(i for i, line in enumerate(lines) if line.startswith(f"{old} stop "))
    successor = [i for i, line in enumerate(lines) if re.match(r"\d+ started", line)][1]
    assert successor < stopped_at
    assert stop(program) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_reload_in_place_stops_resets_and_starts_in_the_same_process(
    running: Start, flavour: str, workers: str, config: Path
) -> None:
    args = ("--workers", workers, "--config", str(config))
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", int(workers))
    target = program.pid if workers == "1" else program.workers()[0]
    config.write_text("[DEFAULT]\ncolour = blue\n")

    program.send(signal.SIGHUP, target)
    program.expect("wait", 2, target)

    steps = re.findall(rf"^{target} (start|stop|reset|waited) (.*)$", program.output, re.MULTILINE)
    assert steps[1:] == [
        ("stop", "0 beside"),
        ("waited", "0"),
        ("reset", "0 main blue"),
        ("start", "0 main"),
    ]
    if workers == "2":
        assert target in program.workers()
    assert stop(program) == 0
    assert len(program.events("stop", target)) == 2


@pytest.mark.parametrize("method", ["reload", "mutate"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_broken_configuration_file_changes_nothing_and_is_logged(
    running: Start, flavour: str, method: str, workers: str, config: Path
) -> None:
    args = ("--workers", workers, "--restart-method", method, "--config", str(config))
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", int(workers))
    before = program.workers()
    config.write_text("no section and no value\n")

    program.send(signal.SIGHUP)

    program.expect_log("The configuration files could not be read; nothing changes")
    assert program.events("reset") == []
    assert program.events("stop") == []
    assert program.workers() == before
    config.write_text("[DEFAULT]\ncolour = green\n")
    program.send(signal.SIGHUP)
    assert program.expect("reset")[0][1].endswith("green")
    assert stop(program) == 0


def test_a_failing_reset_is_logged_and_ends_nothing(
    running: Start, flavour: str, config: Path
) -> None:
    args = ("--restart-method", "mutate", "--reset", "crash", "--config", str(config))
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait")

    program.send(signal.SIGHUP)
    program.expect_log("planted fault in reset")

    assert stop(program) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("method", ["reload", "mutate"])
def test_a_storm_of_hangups_kills_nobody_and_a_sigterm_behind_it_is_heard(
    running: Start, flavour: str, workers: str, method: str, config: Path
) -> None:
    args = ("--workers", workers, "--restart-method", method, "--config", str(config))
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", int(workers))

    for _ in range(20):
        program.send(signal.SIGHUP)
        for pid in program.workers():
            with contextlib.suppress(ProcessLookupError):
                program.send(signal.SIGHUP, pid)
    program.expect("reset")

    assert stop(program) == 0
    started = [pid for pid, _ in program.events("started")]
    stopped = [pid for pid, _ in program.events("stopped")]
    assert sorted(started) == sorted(stopped)


def test_a_hangup_during_start_waits_for_start_to_return(
    running: Start, flavour: str, config: Path
) -> None:
    args = ("--restart-method", "mutate", "--config", str(config))
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("start")

    program.send(signal.SIGHUP)
    program.expect("reset")

    order = re.findall(r"^\d+ (started|reset) ", program.output, re.MULTILINE)
    assert order == ["started", "reset"]
    assert stop(program) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("method", ["reload", "mutate"])
def test_sigterm_while_a_hangup_is_handled_ends_gracefully(
    running: Start, flavour: str, workers: str, method: str, config: Path
) -> None:
    """reset() waits for stop(): after a mutate the HUP is still under way when SIGTERM comes."""
    args = ("--workers", workers, "--restart-method", method, "--config", str(config))
    program = running("probe.py", "--backend", flavour, *args, "--reset", "wait")
    program.expect("wait", int(workers))

    target = program.pid if workers == "1" else program.workers()[0]
    program.send(signal.SIGHUP, target)
    program.expect("reset", 1, target)
    program.send(signal.SIGHUP, target)
    program.send(signal.SIGTERM)

    assert program.ended() == 0
    assert len(program.events("stopped", target)) == len(program.events("started", target))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_hangup_in_the_foreground_of_a_terminal(
    flavour: str, workers: str, tmp_path: Path
) -> None:
    """It stops the eventlet flavour as SIGTERM does; the threading flavour reloads."""
    main, terminal = pty.openpty()
    output = bytearray()

    def collect() -> None:
        with contextlib.suppress(OSError):
            while data := os.read(main, 4096):
                output.extend(data)

    def in_foreground() -> None:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    reader = threading.Thread(target=collect)
    reader.start()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(APPS / "probe.py"), "--backend", flavour, "--workers", workers],
            stdin=terminal,
            stdout=terminal,
            stderr=log,
            preexec_fn=in_foreground,
        )
    os.close(terminal)
    try:
        wait_until(lambda: output.count(b" wait ") == int(workers), "the service serves")
        process.send_signal(signal.SIGHUP)
        if flavour == "threading":
            wait_until(lambda: output.count(b" wait ") > int(workers), "it has reloaded")
            process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0, output.decode()
    finally:
        process.kill()
        process.wait()
        reader.join(DEADLINE)
        os.close(main)
    assert output.count(b" reset ") == (0 if flavour == "eventlet" else output.count(b" reset "))


# ---- handlers of the application


@pytest.mark.parametrize("workers", ["1", "2"])
def test_handlers_of_the_application_run_promptly_last_in_first_out_in_a_parked_process(
    running: Start, flavour: str, workers: str
) -> None:
    args = ("--workers", workers, "--handler", "SIGUSR1", "--handler", "SIGTERM")
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", int(workers))

    program.send(signal.SIGUSR1)
    ran = program.expect("handler", 2)

    assert ran == [(program.pid, "SIGUSR1 2"), (program.pid, "SIGUSR1 1")]
    assert stop(program) == 0
    of_term = [detail for pid, detail in program.events("handler", program.pid)][2:]
    assert of_term == ["SIGTERM 2", "SIGTERM 1"]


def test_workers_inherit_the_handlers_of_the_application(running: Start, flavour: str) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2", "--handler", "SIGUSR1")
    program.expect("wait", 2)
    worker = program.workers()[0]

    program.send(signal.SIGUSR1, worker)

    assert len(program.expect("handler", 2, worker)) == 2
    assert stop(program) == 0


def test_a_service_may_install_a_handler_in_start(running: Start, flavour: str) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", "2", "--signal-in-start")
    program.expect("wait", 2)
    worker = program.workers()[0]

    program.send(signal.SIGUSR2, worker)

    assert program.expect("usr2") == [(worker, "")]
    assert stop(program) == 0


# ---- SignalHandler by itself


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> signal_handler.SignalHandler:
    """A handler table of its own; the process' signal dispositions are put back afterwards."""
    monkeypatch.setattr(signal_handler.Singleton, "_instances", {})
    fresh = signal_handler.SignalHandler()
    yield fresh
    fresh.clear()


def test_the_handler_is_one_per_process(handler: signal_handler.SignalHandler) -> None:
    assert signal_handler.SignalHandler() is handler


def test_handlers_run_last_in_first_out(handler: signal_handler.SignalHandler) -> None:
    ran: list[int] = []
    handler.add_handler("SIGUSR1", lambda *_: ran.append(1))
    handler.add_handlers(["SIGUSR1", "SIGUSR2"], lambda *_: ran.append(2))

    os.kill(os.getpid(), signal.SIGUSR1)

    assert ran == [2, 1]


def test_unknown_names_are_ignored(handler: signal_handler.SignalHandler) -> None:
    handler.add_handler("SIGNONSENSE", print)

    assert not handler.is_signal_supported("SIGNONSENSE")
    assert not handler._signal_handlers


def test_a_failing_handler_does_not_keep_the_others_from_running(
    handler: signal_handler.SignalHandler, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []
    handler.add_handler("SIGUSR1", lambda *_: ran.append(1))
    handler.add_handler("SIGUSR1", lambda *_: 1 / 0)

    os.kill(os.getpid(), signal.SIGUSR1)

    assert ran == [1]
    assert "A handler of SIGUSR1 failed" in caplog.text


def test_exit_in_a_handler_takes_effect_after_the_others_ran(
    handler: signal_handler.SignalHandler,
) -> None:
    ran: list[int] = []
    handler.add_handler("SIGUSR1", lambda *_: ran.append(1))
    handler.add_handler("SIGUSR1", lambda *_: sys.exit(7))

    with pytest.raises(SystemExit, match="7"):
        os.kill(os.getpid(), signal.SIGUSR1)

    assert ran == [1]


def test_clear_puts_back_what_was_there_before(handler: signal_handler.SignalHandler) -> None:
    def mine(*_: object) -> None: ...

    before = signal.signal(signal.SIGUSR1, mine)
    try:
        handler.add_handler("SIGUSR1", lambda *_: None)
        handler.clear()

        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_replace_never_lets_the_signal_fall_back_to_its_default(
    handler: signal_handler.SignalHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def old(*_: object) -> None: ...

    def new(*_: object) -> None: ...

    handler.add_last({"SIGUSR1": old})
    calls: list[object] = []
    monkeypatch.setattr(signal, "signal", lambda *args: calls.append(args))

    handler.replace([old], {"SIGUSR1": new})

    assert calls == []
    assert handler._signal_handlers[signal.SIGUSR1] == [new]


def test_handlers_added_last_run_after_those_of_the_application(
    handler: signal_handler.SignalHandler,
) -> None:
    ran: list[str] = []
    handler.add_handler("SIGUSR1", lambda *_: ran.append("application"))
    handler.add_last({"SIGUSR1": lambda *_: ran.append("launcher")})

    os.kill(os.getpid(), signal.SIGUSR1)

    assert ran == ["application", "launcher"]


def test_an_ignored_signal_stays_ignored(handler: signal_handler.SignalHandler) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        handler.add_handler("SIGUSR1", lambda *_: 1 / 0)
        handler.ignore_handler("SIGUSR1")

        os.kill(os.getpid(), signal.SIGUSR1)

        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("stdout", [None, "closed", "without descriptor"])
def test_a_process_without_stdout_is_a_daemon(
    stdout: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import io

    if stdout == "closed":
        replacement = (tmp_path / "out").open("w")
        replacement.close()
    else:
        replacement = None if stdout is None else io.StringIO()
    monkeypatch.setattr(sys, "stdout", replacement)

    assert signal_handler.is_daemon()
