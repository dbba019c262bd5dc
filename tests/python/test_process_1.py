"""``osloxide`` as process 1 of a container: a stop is heard at every moment of its start.

The kernel drops signals of process 1 that have no handler. Real commands in a PID namespace of
their own, whose pids from outside are not those that they see.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _children import run_command
from conftest import UNSHARE
from procfs import children
from support.serving import OSLOXIDE, Running, starter
from waiting import DEADLINE, wait_until, whole_lines

from osloxide._native import Scoreboard
from osloxide.cli import snapshot
from osloxide.cli.errors import CommandError

ENDED_BY_SIGTERM = 128 + signal.SIGTERM
"""As a shell, and docker, tell of a program that the signal has ended."""


class Container(Running):
    """A command as process 1."""

    prefix = UNSHARE

    def expect(self, text: str) -> None:
        def is_there() -> bool:
            assert self.process.poll() is None, f"it has ended: {self.log}"
            return any(text in line for line in whole_lines(self._log))

        wait_until(is_there, f"{text!r}\n{self.log}")

    def stop(self) -> int:
        """SIGTERM to process 1; the exit status of the container, once it is empty."""
        (init,) = children(self.pid)
        os.kill(init, signal.SIGTERM)
        return self.process.wait(DEADLINE)


@pytest.fixture
def contain(tmp_path: Path, namespace: tuple[str, ...]) -> Iterator[Callable[..., Container]]:
    with starter(tmp_path, Container) as start:
        yield start


SLOW_IMPORT = """
import time
print("importing", flush=True)
# As imports do, it executes one instruction after the other: a signal that comes in the instant
# before a system call of CPython's is seen when that has returned.
while True:
    time.sleep(0.05)
"""

HELD_IMPORT = """
print("importing", flush=True)
sum(range(10**12))  # one instruction that never releases the interpreter
"""

SERVICE = """
import sys, threading
from oslo_config import cfg
from oslo_service import backend
backend.init_backend(backend.BackendType.THREADING)
from oslo_service import service

class Service(service.Service):
    def __init__(self):
        super().__init__()
        self.stopped = threading.Event()
    def start(self):
        print("started", flush=True)
    def stop(self):
        self.stopped.set()
    def wait(self):
        self.stopped.wait()

conf = cfg.ConfigOpts()
conf([], default_config_files=[])
status = service.launch(conf, Service(), workers=int(sys.argv[1])).wait()
print("drained", flush=True)
sys.exit(status)
"""


@pytest.mark.parametrize("source", [SLOW_IMPORT, HELD_IMPORT], ids=["python", "C"])
@pytest.mark.parametrize(
    "command",
    [
        ("run", sys.executable, "slow.py"),
        ("serve", "slow", "-b", "127.0.0.1:0", "--preload", "-w", "2"),
        ("serve", "slow", "-b", "127.0.0.1:0", "--preload"),
    ],
    ids=["run", "serve --preload", "serve --preload alone"],
)
def test_a_stop_while_process_1_imports_ends_it(
    contain: Callable[..., Container], tmp_path: Path, command: tuple[str, ...], source: str
) -> None:
    (tmp_path / "slow.py").write_text(source)
    container = contain(*command)
    container.expect("importing")

    assert container.stop() == ENDED_BY_SIGTERM, container.log


def test_a_stop_as_process_1_executes_the_program_is_kept_for_it(
    contain: Callable[..., Container], tmp_path: Path
) -> None:
    """The interpreter of the program is held where it has no handler yet."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    python = tmp_path / "python3"
    python.write_text(
        "#!/bin/sh\n"
        # The probe of `osloxide run` starts it as well, and is no process 1.
        f'if [ $$ = 1 ]; then echo executed; read line < {gate}; fi\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    (tmp_path / "slow.py").write_text(SLOW_IMPORT)
    container = contain("run", str(python), "slow.py")
    container.expect("executed")
    (init,) = children(container.pid)

    os.kill(init, signal.SIGTERM)
    gate.write_text("on\n")

    assert container.process.wait(DEADLINE) == ENDED_BY_SIGTERM, container.log
    assert "importing" not in container.log


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_launcher_takes_over_from_there_and_a_stop_is_graceful(
    contain: Callable[..., Container], tmp_path: Path, workers: str
) -> None:
    (tmp_path / "program.py").write_text(SERVICE)
    container = contain("run", sys.executable, "program.py", workers)
    container.expect("started")

    assert container.stop() == 0, container.log
    assert "drained" in container.log


HELD_PARENT = (
    SERVICE.partition("status = ")[0]
    + """
launcher = service.ProcessLauncher(conf)
conf.set_override("graceful_shutdown_timeout", 1)
launcher.launch_service(Service(), workers=2)
print("holding", flush=True)
sum(range(10**12))
"""
)


def test_a_launcher_as_process_1_whose_interpreter_is_held_ends_at_its_deadline(
    contain: Callable[..., Container], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(HELD_PARENT)
    container = contain("run", sys.executable, "program.py")
    container.expect("holding")

    assert container.stop() == 1, container.log
    assert "osloxide: process 1: a signal came 2.000 s ago" in container.log


GIVEN_BACK = """
import time
from oslo_service import service
handler = service.SignalHandler()
handler.add_handler("SIGTERM", lambda *_: None)
handler.clear()
print("given back", flush=True)
while True:
    time.sleep(0.05)
"""


def test_process_1_obeys_sigterm_again_when_a_launcher_has_given_it_back(
    contain: Callable[..., Container], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(GIVEN_BACK)
    container = contain("run", sys.executable, "program.py")
    container.expect("given back")

    assert container.stop() == ENDED_BY_SIGTERM, container.log


CHILDREN = """
import multiprocessing, os, signal, subprocess, sys, time

def blocked(pid):
    text = open(f"/proc/{pid}/status").read()
    return int(text.partition("SigBlk:")[2].split()[0], 16)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    child = context.Process(target=time.sleep, args=(600,))
    child.start()
    command = subprocess.Popen(["sleep", "600"])
    assert blocked("self") == blocked(child.pid) == 0
    for each in (child, command):
        each.terminate()
    child.join()
    print("ended by", child.exitcode, command.wait(), flush=True)
"""


def test_children_and_commands_of_process_1_obey_sigterm_as_ever(
    contain: Callable[..., Container], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(CHILDREN)
    container = contain("run", sys.executable, "program.py")

    assert container.process.wait(DEADLINE) == 0, container.log
    assert "ended by -15 -15" in container.log


def test_another_process_than_1_keeps_the_default_of_sigterm(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import signal\nprint(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)\n"
    )
    done = run_command([*OSLOXIDE, "run", sys.executable, "program.py"], cwd=tmp_path)

    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_launcher_of_a_container_is_not_taken_for_one_with_the_pids_of_the_host(
    contain: Callable[..., Container], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(SERVICE)
    container = contain("run", sys.executable, "program.py", "2")
    container.expect("started")
    (init,) = children(container.pid)
    ours = Scoreboard("ours")  # so the process of the tests counts as a launcher of the host
    ours.claim(0, 0)

    found = snapshot.find()
    assert os.getpid() in found
    assert not {1, init}.intersection(found)
    with pytest.raises(CommandError, match=f"process {init} is in another PID namespace"):
        snapshot.View(init)

    assert container.stop() == 0, container.log
