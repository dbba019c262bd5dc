"""Launchers where something is refused: descriptors, room on the disk, streams, an interpreter.

Real processes. What is taken away is given back where the fault is one that passes.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _children import environment, run_command
from conftest import Program, wait_until
from procfs import children, is_alive, session_members, stat
from support.serving import LOGGING, OSLOXIDE, Running, fetch, starter

Start = Callable[..., Program]

SITE = """
import os

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "mysite.py").write_text(SITE)
    with starter(tmp_path) as begin:
        yield begin


def highest_descriptor(pid: int) -> int:
    return max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))


def refuse_descriptors(pid: int) -> tuple[int, int]:
    """Have *pid* get no descriptor any more; returns the limit that it had."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # As many as are open: what is closed leaves no place that another file may take.
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    return before


def give_back(pid: int, limit: tuple[int, int]) -> None:
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)


# ---- descriptors


@pytest.mark.parametrize("behaviour", ["until-stopped", "return"])
def test_a_single_process_without_descriptors_mutates_and_drains(
    running: Start, flavour: str, behaviour: str
) -> None:
    args = ("--restart-method", "mutate", "--wait", behaviour)
    program = running("probe.py", "--backend", flavour, "--workers", "1", *args)
    program.expect("waited" if behaviour == "return" else "wait")
    refuse_descriptors(program.pid)

    for count in (1, 2):
        program.send(signal.SIGHUP)
        program.expect_log(rf"(?s)(?:Caught SIGHUP, handling.*){{{count}}}")
    program.send(signal.SIGTERM)

    assert program.ended() == 0, repr(program)
    assert len(program.events("stopped")) == 1


@pytest.mark.parametrize("options", [[], ["--warm"]], ids=["fork", "warm"])
def test_a_parent_without_descriptors_keeps_its_workers_and_forks_again_later(
    start: Callable[..., Running], options: list[str]
) -> None:
    site = start("serve", "mysite", "-b", "127.0.0.1:0", "-w", "2", *options)
    port, before = site.port(), set(site.running(2))
    limit = refuse_descriptors(site.pid)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not is_alive(victim), "the end of a worker")
    site.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "Caught SIGHUP" in site.log, f"the hangup is heard\n{site.log}")

    assert site.process.poll() is None, site.log
    if options:
        wait_until(lambda: "The template could not be forked" in site.log, "a refusal")
    assert fetch(port)
    give_back(site.pid, limit)

    wait_until(lambda: len(set(site.running(2)) - before) == 2, "a new generation of full strength")
    assert fetch(port)
    assert site.stop() == 0, site.log


def test_a_template_that_does_not_answer_delays_no_stop(start: Callable[..., Running]) -> None:
    site = start(
        "serve", "mysite", "-b", "127.0.0.1:0", "-w", "2", "--warm", "--graceful-timeout", "3"
    )
    workers = set(site.running(2))
    (template,) = set(children(site.pid)) - workers
    os.kill(template, signal.SIGSTOP)
    wait_until(lambda: (seen := stat(template)) and seen.state == "T", "a stopped template")
    os.kill(min(workers), signal.SIGKILL)
    wait_until(lambda: not is_alive(min(workers)), "the end of a worker")

    assert site.stop() == 0, site.log


# ---- the interpreter


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_ends_a_process_whose_interpreter_is_held_at_the_deadline(
    running: Start, flavour: str, workers: str
) -> None:
    """Told directly: no Python code runs any more, neither a handler nor the control thread."""
    args = ("--workers", workers, "--burn-on-usr2", "--grace", "1")
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", int(workers))
    held = program.pid if workers == "1" else program.workers()[0]
    program.send(signal.SIGUSR2, held)
    program.expect("burning")

    program.send(signal.SIGTERM, held)

    if workers == "1":
        assert program.ended() == 1
    else:
        program.expect_log(rf"Child {held} exited with status 1")
        program.expect("wait", 3)
        program.send(signal.SIGTERM)
        assert program.ended() == 0
    program.expect_log(rf"osloxide: process {held}: a signal came \d\.\d+ s ago")


@pytest.mark.parametrize("workers", ["2"])
def test_a_late_worker_whose_interpreter_is_held_shows_where_it_is(
    running: Start, flavour: str, workers: str
) -> None:
    args = ("--workers", workers, "--burn-on-usr2", "--grace", "1")
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", int(workers))
    held = program.workers()[0]
    program.send(signal.SIGUSR2, held)
    program.expect("burning")

    program.send(signal.SIGTERM)

    assert program.ended() == 1
    program.expect_log(rf"Worker \d \(pid {held}\) still running .* sent SIGABRT")
    program.expect_log(rf"Worker \d \(pid {held}\) ended here:\n(.*\n)+?.*in burn\n")
    program.expect_log(rf"Child {held} killed by signal {signal.SIGABRT.value}")


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT])
def test_a_main_thread_that_never_comes_back_from_c_is_cut_off_at_the_deadline(
    running: Start, flavour: str, signo: signal.Signals
) -> None:
    """The interpreter is free, and the handler cannot run: its thread waits for a lock of C."""
    args = ("--start", "deadlock", "--grace", "1")
    program = running("probe.py", "--backend", flavour, "--workers", "1", *args)
    program.expect("start")

    program.send(signo)

    assert program.ended() == 1


HELD = [("burn", "burning"), ("deadlock", "waiting-in-c")]
"""How the main thread of a launching process never comes back, and what it says before."""


@pytest.mark.parametrize(("how", "says"), HELD, ids=["interpreter", "C"])
@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT])
def test_a_parent_whose_main_thread_is_held_ends_at_its_deadline_and_its_workers_leave(
    running: Start, flavour: str, how: str, says: str, signo: signal.Signals
) -> None:
    args = ("--workers", "2", f"--{how}-here-on-winch", "--grace", "1")
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait", 2)
    program.send(signal.SIGWINCH)
    program.expect(says)

    program.send(signo)

    assert program.ended() == 1
    program.expect_log(rf"osloxide: process {program.pid}: a signal came 2\.000 s ago")
    wait_until(lambda: not program.members(), "the end of all")
    assert len(program.events("stopped")) == 2, "workers drain when their parent has ended"


@pytest.mark.parametrize(("how", "says"), HELD, ids=["interpreter", "C"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_main_thread_that_is_held_before_it_comes_to_wait_is_cut_off_at_the_deadline(
    running: Start, flavour: str, how: str, says: str, workers: str
) -> None:
    args = ("--workers", workers, f"--{how}-here-on-winch", "--grace", "1", "--pause")
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("paused")
    program.send(signal.SIGWINCH)
    program.expect(says)

    program.send(signal.SIGTERM)

    assert program.ended() == 1
    program.expect_log(rf"osloxide: process {program.pid}: a signal came [12]\.\d+ s ago")


GUARDED = """
import os, signal, time
from osloxide import _native

def heard(*_):
    if is_parent:
        _native.guard_heard()

is_parent = True
signal.signal(signal.SIGTERM, heard)
_native.guard_signals(0.2)
if not (child := os.fork()):
    is_parent = False
os.kill(os.getpid(), signal.SIGTERM)
# Longer than the guard allows, and in it an unheard signal would have ended this process.
until = time.monotonic() + 1
while time.monotonic() < until:
    pass
if is_parent:
    assert os.waitpid(child, 0)[1] == 0
    is_parent = False
    print("unheard", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        pass
"""


def test_the_guard_ends_who_does_not_hear_and_neither_who_has_heard_nor_a_child() -> None:
    done = run_command([sys.executable, "-c", GUARDED])

    assert (done.returncode, done.stdout) == (1, "unheard\n"), done.stderr
    assert done.stderr.count("a signal came 0.200 s ago") == 1


def test_a_handler_of_the_application_that_is_slow_but_returns_is_waited_for(
    running: Start, flavour: str
) -> None:
    args = ("--workers", "1", "--grace", "30", "--handler", "SIGTERM")
    program = running("probe.py", "--backend", flavour, *args)
    program.expect("wait")

    program.send(signal.SIGTERM)

    assert program.ended() == 0
    assert len(program.events("handler")) == 2


# ---- stopped workers


@pytest.mark.parametrize("workers", ["2"])
def test_a_stopped_worker_does_not_outlive_a_killed_parent(
    running: Start, flavour: str, workers: str
) -> None:
    program = running("probe.py", "--backend", flavour, "--workers", workers)
    program.expect("wait", int(workers))
    stopped = program.workers()
    for pid in stopped:
        program.send(signal.SIGSTOP, pid)
    wait_until(
        lambda: all((seen := stat(pid)) and seen.state == "T" for pid in stopped), "stopped workers"
    )

    program.send(signal.SIGKILL)
    program.ended()

    wait_until(lambda: not program.members(), "the end of all")


# ---- standard streams and disks


CLOSED = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
FULL = ("sh", "-c", 'exec "$@" >/dev/full 2>&1', "sh")


def begin(prefix: tuple[str, ...], tmp_path: Path, *options: str) -> subprocess.Popen[bytes]:
    (tmp_path / "mysite.py").write_text(SITE)
    address = f"unix:{tmp_path}/socket"
    return subprocess.Popen(
        [*prefix, *OSLOXIDE, "serve", "mysite", "-b", address, *options],
        cwd=tmp_path,
        env=environment(),
        start_new_session=True,
    )


def answers(tmp_path: Path) -> bool:
    """Whether one request was answered over the unix socket."""
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
        client.settimeout(20)
        client.connect(f"{tmp_path}/socket")
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return client.recv(64).startswith(b"HTTP/1.1 200")
    return False


def standard_streams(pid: int) -> list[str] | None:
    """What the first three descriptors name; None for a process that was about to end, as the one
    is through which a template forks a worker."""
    try:
        return [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)]
    except OSError:
        # Descriptors go first. One that lives on without them fails the test here.
        wait_until(lambda: not is_alive(pid), f"three descriptors, or the end, of process {pid}")
        return None


def serve_and_replace(
    prefix: tuple[str, ...],
    tmp_path: Path,
    options: list[str],
    look: Callable[[subprocess.Popen[bytes]], None] = lambda _: None,
) -> None:
    """Serve; replace a worker that was killed, where there are two; stop with status 0.

    :param look: called with the process once it serves.
    """
    process = begin(prefix, tmp_path, *options)
    try:
        wait_until(lambda: answers(tmp_path), "an answer")
        look(process)
        if "2" in options:
            victim = children(process.pid)[-1]
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: not is_alive(victim), "the end of a worker")
            count = 3 if "--warm" in options else 2
            wait_until(lambda: len(children(process.pid)) == count, "another worker")
            wait_until(lambda: answers(tmp_path), "an answer")
        process.terminate()
        assert process.wait(30) == 0
    finally:
        for pid in session_members(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait(30)
    assert not session_members(process.pid)


@pytest.mark.parametrize("options", [["-w", "1"], ["-w", "2"], ["-w", "2", "--warm"]], ids=" ".join)
@pytest.mark.parametrize("prefix", [CLOSED, FULL], ids=["closed", "full"])
def test_standard_streams_that_are_closed_or_full_change_neither_service_nor_status(
    tmp_path: Path, prefix: tuple[str, ...], options: list[str]
) -> None:
    def look(process: subprocess.Popen[bytes]) -> None:
        if prefix is CLOSED:
            for pid in session_members(process.pid):
                assert standard_streams(pid) in (["/dev/null"] * 3, None)

    serve_and_replace(prefix, tmp_path, options, look)


NO_FILE = ("sh", "-c", 'ulimit -f 0; exec "$@"', "sh")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_process_that_may_make_no_file_longer_serves_and_replaces_workers(
    tmp_path: Path, workers: str
) -> None:
    """The limit is one of shared memory as well."""
    serve_and_replace(NO_FILE, tmp_path, ["-w", workers])


def test_a_working_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = ("sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "sh")
    done = run_command([*gone, *OSLOXIDE, "serve", "mysite", "-b", "127.0.0.1:0"], cwd=tmp_path)

    assert done.returncode == 1
    assert done.stderr.startswith("osloxide: the working directory cannot be named: No such file")


# ---- a program that executes itself again


def inheritable_sockets(pid: int) -> list[str]:
    """Sockets that a command of that process would keep open."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            flags = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text()
            number = re.search(r"flags:\s*(\d+)", flags)
            is_kept = number and not int(number[1], 8) & os.O_CLOEXEC
            if is_kept and os.readlink(descriptor).startswith("socket:"):
                found.append(descriptor.name)
    return found


def test_a_hangup_whose_interpreter_is_gone_leaves_the_old_program_serving(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    real = Path(sys.prefix)
    if (real / "pyvenv.cfg").exists():
        (venv / "pyvenv.cfg").write_bytes((real / "pyvenv.cfg").read_bytes())
        (venv / "lib").symlink_to(real / "lib")
    else:  # the distribution's own interpreter, with the distribution's packages
        home = os.path.dirname(os.path.realpath(sys.executable))
        text = f"home = {home}\ninclude-system-site-packages = true\n"
        (venv / "pyvenv.cfg").write_text(text)
    python = venv / "bin" / "python"
    python.symlink_to(os.path.realpath(sys.executable))
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "mysite.py").write_text(SITE)
    log = tmp_path / "log"
    serve = ["serve", "mysite", "-b", f"unix:{tmp_path}/socket", "--chdir", "app"]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [str(python), "-m", "osloxide", *serve],
            cwd=tmp_path,
            env=environment(),
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        wait_until(lambda: answers(tmp_path), "an answer")
        python.unlink()
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "goes on with the code" in log.read_text(), "the report")

        wait_until(lambda: answers(tmp_path), "an answer of the old program")
        blocked = Path(f"/proc/{process.pid}/status").read_text().partition("SigBlk:")[2].split()[0]
        assert int(blocked, 16) == 0
        assert os.readlink(f"/proc/{process.pid}/cwd") == str(tmp_path / "app")
        assert not inheritable_sockets(process.pid)
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
    finally:
        for pid in session_members(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait(30)


STORM = (
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
)


def test_signals_of_operators_while_a_program_executes_itself_end_and_stop_nothing(
    start: Callable[..., Running],
) -> None:
    site = start("serve", "mysite", "-b", "127.0.0.1:0")
    port = site.port()
    assert fetch(port) == [str(site.pid)]

    site.process.send_signal(signal.SIGHUP)

    def begun_again() -> bool:
        for signo in STORM:
            site.process.send_signal(signo)
        assert site.process.poll() is None, site.log
        return site.log.count("listening on") >= 4

    # Each start has all of them to answer before it listens, and takes a loaded machine seconds.
    wait_until(begun_again, lambda: f"two further starts\n{site.log}", 120, pause=0.05)
    wait_until(lambda: fetch(port) == [str(site.pid)], "an answer")
    assert site.stop() == 0, site.log


def test_a_stop_that_comes_as_a_program_is_about_to_execute_itself_is_heard(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    # What is read again at SIGHUP holds the program there until it has had the SIGTERM as well.
    config = tmp_path / "logging.ini"
    config.write_text(LOGGING)
    site = start("serve", "mysite", "-b", "127.0.0.1:0", "--log-config", str(config))
    wait_until(lambda: fetch(site.port()) == [str(site.pid)], "an answer")
    gate, passed = tmp_path / "gate", tmp_path / "passed"
    os.mkfifo(gate)
    config.write_text(
        LOGGING.replace("(sys.stderr,)", f"({HELD.format(gate=str(gate), passed=str(passed))},)")
    )

    site.process.send_signal(signal.SIGHUP)
    with gate.open("w"):  # opened by both: the program is in the middle of its configuration
        site.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Caught SIGTERM" in site.log, f"the stop is heard\n{site.log}")
    wait_until(passed.exists, "the configuration is read")

    assert site.process.wait(30) == 0, site.log


HELD = "(open({gate!r}).read(), open({passed!r}, 'w').close(), sys.stderr)[2]"
