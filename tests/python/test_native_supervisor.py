"""Promises of the native supervisor, scoreboard and watch thread, with real forks and signals.

Each test runs ``tests/support/parent.py`` as a process of its own and reads what it and its
workers say. The fixture proves that nobody is left afterwards.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from osloxide import _native

PARENT = Path(__file__).parents[1] / "support" / "parent.py"
LONGEST = 20.0  # Nothing here takes this long unless it is broken.


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(what: str, is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST
    while not is_true():
        assert time.monotonic() < deadline, f"not within {LONGEST} s: {what}"
        time.sleep(0.005)


class Parent:
    """A running parent.py and what it has said so far."""

    def __init__(self, *args: object) -> None:
        command = [sys.executable, str(PARENT), *map(str, args)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.pid = self.process.pid
        self.said: list[list] = []
        self._rest = b""

    def hear(self, kind: str, count: int = 1) -> list[list]:
        """Read until *kind* was said *count* times in all, and return these lines."""
        deadline = time.monotonic() + LONGEST
        while len(self.all(kind)) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"no {kind!r} number {count}; said: {self.said[-20:]}"
            if not self._read(left):
                break
        found = self.all(kind)
        assert len(found) >= count, f"ended before {kind!r} number {count}: {self.said[-20:]}"
        return found

    def hear_running(self, count: int) -> None:
        """Wait until *count* workers are ready and their parent has taken note."""
        self.hear("announced", count)
        self.signal(signal.SIGUSR1)
        self.hear("interrupted")

    def all(self, kind: str) -> list[list]:
        return [line for line in self.said if line[0] == kind]

    def _read(self, seconds: float) -> bool:
        pipe = self.process.stdout
        if not select.select([pipe], [], [], seconds)[0]:
            return True
        piece = os.read(pipe.fileno(), 65536)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self.said += [json.loads(line) for line in lines]
        return bool(piece)

    def workers(self) -> set[int]:
        return {line[1] for line in self.all("ready")}

    def signal(self, signo: int) -> None:
        os.kill(self.pid, signo)

    def wait(self) -> int:
        """Read to the end, which needs every process to have ended, and return the status."""
        deadline = time.monotonic() + LONGEST
        while self._read(1.0):
            assert time.monotonic() < deadline, f"somebody still runs: {self.said[-20:]}"
        return self.process.wait(LONGEST)


@pytest.fixture
def start() -> Iterator[Callable[..., Parent]]:
    started: list[Parent] = []

    def start(*args: object) -> Parent:
        started.append(Parent(*args))
        return started[-1]

    yield start
    for parent in started:
        if parent.process.poll() is None:
            parent.process.kill()
        parent.process.wait(LONGEST)
        for pid in parent.workers():
            wait_until(f"worker {pid} is gone", lambda pid=pid: not is_alive(pid))
        parent.process.stdout.close()
        parent.process.stderr.close()


def test_a_stop_drains_every_worker_and_ends_with_0(start):
    parent = start(3, 30)
    parent.hear("ready", 3)

    parent.signal(signal.SIGTERM)

    assert parent.wait() == 0
    assert [line[1] for line in parent.all("stopping")] == [3]
    assert {line[4] for line in parent.all("exited")} == {0}
    assert len(parent.all("exited")) == 3
    assert len(parent.all("left")) == 3


def test_a_killed_worker_is_respawned_in_its_slot_at_once(start):
    parent = start(2, 30)
    parent.hear("ready", 2)
    victim = next(line for line in parent.all("ready") if line[2] == 1)

    os.kill(victim[1], signal.SIGKILL)

    again = parent.hear("ready", 3)[2]
    assert again[2] == 1
    exited = parent.all("exited")[0]
    assert exited[1] == victim[1]
    assert os.WTERMSIG(exited[4]) == signal.SIGKILL
    assert not parent.all("backoff")
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0


def test_a_second_stop_is_ignored(start):
    parent = start(2, 30)
    parent.hear_running(2)

    parent.signal(signal.SIGTERM)
    parent.hear("stopping")
    with contextlib.suppress(ProcessLookupError):
        parent.signal(signal.SIGTERM)

    assert parent.wait() == 0
    assert len(parent.all("stopping")) == 1
    assert len(parent.all("term")) == 2


def test_a_worker_beyond_its_deadline_is_killed_and_the_status_is_1(start):
    parent = start(2, 0.3, "stubborn")
    parent.hear("ready", 2)

    parent.signal(signal.SIGTERM)

    assert parent.wait() == 1
    late = parent.all("late")
    assert {line[2] for line in late} == parent.workers()
    assert all(line[3] >= 0.3 for line in late)
    assert {os.WTERMSIG(line[4]) for line in parent.all("exited")} == {signal.SIGKILL}


def test_a_worker_that_spins_in_the_interpreter_is_killed_at_the_deadline(start):
    parent = start(1, 0.3, "spin")
    parent.hear("ready", 1)

    parent.signal(signal.SIGTERM)

    assert parent.wait() == 1
    assert len(parent.all("late")) == 1


def test_an_abort_ends_everybody_at_once(start):
    parent = start(2, 0, "stubborn")
    parent.hear("ready", 2)

    parent.signal(signal.SIGINT)

    assert parent.wait() == 1
    assert {os.WTERMSIG(line[4]) for line in parent.all("exited")} == {signal.SIGKILL}


def test_a_stop_during_start_up_is_not_lost(start):
    for _ in range(5):
        parent = start(2, 0, "slow")
        parent.hear("fork")
        parent.signal(signal.SIGTERM)
        assert parent.wait() == 0


def test_mutate_hangs_up_every_worker_and_replaces_none(start):
    parent = start(2, 30)
    parent.hear_running(2)

    parent.signal(signal.SIGHUP)

    parent.hear("hup", 2)
    assert {line[1] for line in parent.all("hup")} == parent.workers()
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0
    assert len(parent.all("fork")) == 2


def test_reload_replaces_every_worker_after_its_successor_is_ready(start):
    parent = start(2, 30, "plain", "reload")
    parent.hear("ready", 2)

    parent.signal(signal.SIGHUP)

    parent.hear("exited", 2)
    order = [(line[0], *line[2:4]) for line in parent.said if line[0] in {"ready", "exited"}]
    assert [line[3] for line in parent.all("ready")] == [0, 0, 1, 1]
    assert [line[2] for line in parent.all("ready")][2:] == [0, 1]
    first_exit = next(i for i, line in enumerate(order) if line[0] == "exited")
    assert first_exit >= 3, "an old worker left before its successor was ready"
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0


def test_a_storm_of_reloads_leaves_one_generation_after_two_rounds_at_most(start):
    parent = start(2, 30, "slow", "reload")
    parent.hear("ready", 2)

    parent.signal(signal.SIGHUP)
    parent.hear("reload")
    for _ in range(20):
        parent.signal(signal.SIGHUP)
    # A worker that is asked last shows that the second round is over.
    wait_until("two workers of one generation", lambda: bool(parent._read(0.01)) and one_left(parent))
    assert len(parent.all("reload")) <= 2
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0


def one_left(parent: Parent) -> bool:
    rows = _native.Scoreboard.attach(parent.pid).read()
    live = [row for row in rows if row["pid"]]
    reloads = len(parent.all("reload"))
    return (
        [row["state"] for row in live] == ["running"] * 2
        and {row["generation"] for row in live} == {reloads}
        and reloads == 2
    )


def test_workers_of_a_broken_new_generation_are_retried_while_the_old_ones_stay(start):
    parent = start(2, 30, "crash-later", "reload")
    parent.hear("ready", 2)

    parent.signal(signal.SIGHUP)

    parent.hear("backoff", 3)
    assert all(is_alive(pid) for pid in parent.workers())
    assert {line[3] for line in parent.all("exited")} == {0}, "more than one slot was touched"
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0


def test_a_crash_loop_backs_off_and_can_be_stopped(start):
    parent = start(1, 30, "crash")

    waits = [line[3] for line in parent.hear("backoff", 5)]

    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8]
    assert len(parent.all("fork")) == 6
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0


@pytest.mark.parametrize("behaviour", ["plain", "spin", "stubborn", "daemon"])
def test_workers_end_when_their_parent_is_killed(start, behaviour):
    parent = start(2, 30, behaviour)
    parent.hear("ready", 2)

    killed = time.monotonic()
    parent.process.kill()

    for pid in parent.workers():
        wait_until(f"worker {pid} is gone", lambda pid=pid: not is_alive(pid))
    if behaviour in {"plain", "daemon"}:
        parent.hear("left", 2)
        assert {line[2] for line in parent.all("left")} == {True}
        assert {line[1] for line in parent.all("term")} == parent.workers()
    else:
        assert time.monotonic() - killed >= 2.4, "no time was given to drain"
        assert b"its parent is gone" in parent.process.stderr.read()
    for line in parent.all("daemon"):
        os.kill(line[1], signal.SIGKILL)


def switches(pid: int) -> int:
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if "ctxt_switches" in line:
                total += int(line.split()[1])
    return total


def test_an_idle_supervisor_and_its_workers_never_wake_up(start):
    parent = start(2, 30)
    parent.hear("ready", 2)
    everybody = [parent.pid, *parent.workers()]
    # Settled: two looks in a row see no change.
    before = [switches(pid) for pid in everybody]
    time.sleep(0.2)
    wait_until(
        "idle",
        lambda: before == (now := [switches(pid) for pid in everybody]) or bool(before.clear())
        or bool(before.extend(now)),
    )

    time.sleep(1.5)  # The window that is looked at, not a wait for anything.

    assert [switches(pid) for pid in everybody] == before
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0


def test_a_handler_of_the_application_runs_while_the_supervisor_is_parked(start):
    parent = start(1, 30)
    parent.hear("ready", 1)

    for count in range(1, 4):
        parent.signal(signal.SIGUSR1)
        parent.hear("usr1", count)

    parent.hear("interrupted", 1)
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0
