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
from procfs import is_alive, open_fds
from waiting import wait_until

from osloxide import _native

PARENT = Path(__file__).parents[1] / "support" / "parent.py"
LONGEST = 45.0  # Nothing here takes this long unless it is broken.


class Parent:
    """A running parent.py and what it has said so far."""

    def __init__(self, *args: object, before: tuple[str, ...] = ()) -> None:
        command = [*before, sys.executable, str(PARENT), *map(str, args)]
        self.has_own_pids = bool(before)
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
        while not self.all("interrupted"):  # which one that comes between two commands does not say
            self.signal(signal.SIGUSR1)
            self.hear("usr1", len(self.all("usr1")) + 1)

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
            assert time.monotonic() < deadline, f"processes still run: {self.said[-20:]}"
        return self.process.wait(LONGEST)


@pytest.fixture
def start() -> Iterator[Callable[..., Parent]]:
    started: list[Parent] = []

    def start(*args: object, **options: tuple[str, ...]) -> Parent:
        started.append(Parent(*args, **options))
        return started[-1]

    yield start
    for parent in started:
        if parent.process.poll() is None:
            parent.process.kill()
        parent.process.wait(LONGEST)
        for line in parent.all("stray"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(line[1], signal.SIGKILL)
        for pid in parent.workers() if not parent.has_own_pids else ():
            wait_until(lambda pid=pid: not is_alive(pid), f"worker {pid} is gone")
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
    assert {os.WTERMSIG(line[4]) for line in parent.all("exited")} == {signal.SIGABRT}


def test_a_worker_that_spins_in_the_interpreter_is_killed_at_the_deadline(start):
    parent = start(1, 0.3, "spin")
    parent.hear("ready", 1)

    parent.signal(signal.SIGTERM)

    assert parent.wait() == 1
    assert len(parent.all("late")) == 1


def test_a_stopped_worker_drains_like_any_other(start):
    parent = start(2, 0)
    parent.hear_running(2)
    os.kill(parent.all("ready")[0][1], signal.SIGSTOP)

    parent.signal(signal.SIGTERM)

    assert parent.wait() == 0
    assert len(parent.all("left")) == 2


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
    wait_until(
        lambda: bool(parent._read(0.01)) and one_left(parent), "two workers of one generation"
    )
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


def test_a_broken_new_generation_is_tried_again_and_costs_one_slot_at_most(start):
    parent = start(2, 30, "crash-later", "reload")
    old = {line[2]: line[1] for line in parent.hear("ready", 2)}

    parent.signal(signal.SIGHUP)

    parent.hear("backoff", 4)
    ended = [line[1] for line in parent.said if line[0] == "exited"]
    assert ended[0] not in old.values(), "an old worker left before a new one had failed"
    assert {line[3] for line in parent.all("exited")} == {0}, "more than one slot was touched"
    assert is_alive(old[1])
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
        wait_until(lambda pid=pid: not is_alive(pid), f"worker {pid} is gone")
    if behaviour in {"plain", "daemon"}:
        parent.hear("left", 2)
        assert {line[2] for line in parent.all("left")} == {True}
        assert {line[1] for line in parent.all("term")} == parent.workers()
    else:
        assert time.monotonic() - killed >= 2.4, "no time was given to drain"
        assert b"its parent is gone" in parent.process.stderr.read()


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
        lambda: (
            before == (now := [switches(pid) for pid in everybody])
            or bool(before.clear())
            or bool(before.extend(now))
        ),
        "idle",
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
    assert {line[2] for line in parent.all("usr1")} == {3}, "the status of a command was stolen"
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0


@pytest.mark.timeout(300)
def test_hundreds_of_respawns_leak_no_descriptor(start):
    rounds = 20 if os.environ.get("OSLOXIDE_LONG") else 4
    parent = start(50, 30)
    parent.hear_running(50)
    before = open_fds(parent.pid)

    for round_ in range(1, rounds + 1):
        youngest = parent.all("ready")[-50:]
        # Grown up, or the deaths would count as a crash loop and be put off.
        newest = max(row["started_at"] for row in rows_of(parent.pid))
        wait_until(lambda newest=newest: time.monotonic() - newest > 1.0, "grown up")
        for line in youngest:
            os.kill(line[1], signal.SIGKILL)
        parent.hear("announced", 50 * (round_ + 1))

    assert not parent.all("backoff")
    parent.signal(signal.SIGUSR1)
    parent.hear("usr1")
    wait_until(lambda: open_fds(parent.pid) <= before, "all is closed")
    assert {line[4] for line in parent.all("ready")} == {parent.all("ready")[0][4]}, (
        "workers inherit descriptors of their siblings"
    )
    assert sum(row["respawns"] for row in rows_of(parent.pid)) == 50 * rounds
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0


def rows_of(pid: int) -> list[dict]:
    return _native.Scoreboard.attach(pid).read()


def test_a_stopped_worker_is_replaced_after_the_worker_timeout(start):
    parent = start(2, 30, "--worker-timeout", 0.4)
    parent.hear_running(2)
    victim = parent.all("ready")[0]

    os.kill(victim[1], signal.SIGSTOP)

    hung = parent.hear("hung")[0]
    assert hung[1:3] == [victim[2], victim[1]]
    assert hung[3] >= 0.4
    assert parent.hear("ready", 3)[2][2] == victim[2]
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0


def test_refused_forks_are_tried_again_until_all_slots_are_filled(start):
    parent = start(3, 30, "--refuse-forks", 5)

    parent.hear("ready", 3)

    assert len(parent.all("backoff")) == 5
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0


def test_without_pidfds_a_dead_worker_is_seen_through_sigchld(start):
    parent = start(2, 30, "--without-pidfd")
    parent.hear("ready", 2)

    os.kill(parent.all("ready")[0][1], signal.SIGKILL)

    parent.hear("ready", 3)
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0
    assert parent.all("ended")[0][3] is True, "nothing but a timer would have noticed"


def test_a_stray_child_of_a_killed_parent_does_not_keep_its_workers_alive(start):
    parent = start(2, 30, "--stray-child")
    parent.hear_running(2)

    parent.process.kill()

    parent.hear("left", 2)


def test_two_supervisors_in_one_process_do_not_keep_each_others_workers_alive(start):
    parent = start(2, 30, "--second")
    parent.hear("announced", 3)

    parent.process.kill()

    parent.hear("left", 3)


def test_process_1_reaps_and_reports_orphans(start):
    unshare = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("unshare(1) may not make a PID namespace here")
    parent = start(2, 30, "orphan", before=unshare)
    parent.hear("ready", 2)
    assert parent.all("parent")[0][1] == 1

    reaped = parent.hear("reaped")[0]

    assert os.waitstatus_to_exitcode(reaped[2]) == 5
    assert reaped[1] not in parent.workers()
    init = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text()
    os.kill(int(init), signal.SIGTERM)
    assert parent.wait() == 0


def test_the_watch_thread_is_named_and_takes_no_signals(start):
    parent = start(1, 30)
    pid = parent.hear("ready", 1)[0][1]

    def threads() -> dict[str, int]:
        masks = {}
        for task in Path(f"/proc/{pid}/task").iterdir():
            lines = (task / "status").read_text().splitlines()
            status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            masks[status["Name"]] = int(status["SigBlk"], 16)
        return masks

    wait_until(lambda: "osloxide-watch" in threads(), "it has its name")
    blocked = threads()["osloxide-watch"]
    for signo in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        assert blocked & 1 << (signo - 1), f"signal {signo} may be delivered to the watch thread"
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0


def run_alone(code: str, **options: object) -> subprocess.CompletedProcess:
    program = f"import os, signal, sys, time\nfrom osloxide import _native\n{code}"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, timeout=LONGEST, check=False, **options)


def test_an_armed_deadline_ends_a_process_that_spins_in_the_interpreter():
    ended = run_alone(
        "_native.arm_deadline(3600)\n_native.arm_deadline(0.1)\nwhile True: all(range(10**9))",
        capture_output=True,
    )

    assert ended.returncode == 1
    assert b"had 0.100 s to leave and is still there" in ended.stderr


def test_a_deadline_that_was_taken_back_does_not_hold():
    ended = run_alone(
        "_native.arm_deadline(0.05)\n_native.disarm_deadline()\n"
        "_native.arm_deadline(3600)\n_native.disarm_deadline()\ntime.sleep(0.3)\nsys.exit(5)",
    )

    assert ended.returncode == 5


def test_a_process_may_fork_again_after_a_deadline_was_taken_back():
    ended = run_alone(
        "_native.arm_deadline(3600)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "_native.disarm_deadline()\n"
        "after = len(os.listdir('/proc/self/task'))\n"
        "_native.arm_deadline(0.1) if (before, after) == (2, 1) else sys.exit(5)\n"
        "time.sleep(1000)",
    )

    assert ended.returncode == 1


def test_a_full_standard_error_does_not_delay_the_deadline():
    code = (
        "os.set_blocking(2, False)\n"
        "try:\n"
        "    while True: os.write(2, b'x' * 4096)\n"
        "except BlockingIOError: os.set_blocking(2, True)\n"
        "_native.arm_deadline(0)\n"
        "time.sleep(1000)"
    )
    read_end, write_end = os.pipe()
    try:
        assert run_alone(code, stderr=write_end).returncode == 1
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(),
    reason="without a lock CPython's fork hangs beside threads that log, without osloxide too: "
    "tests/installed/fork_beside_threads.py",
)
def test_forks_beside_threads_that_log_and_use_the_native_core_never_deadlock():
    code = """
import logging, threading
sys.setswitchinterval(0.0002)

class Unbuffered(logging.Handler):  # CPython does not reset the lock of a buffered stream at fork.
    def emit(self, record):
        os.write(null, self.format(record).encode())

null = os.open(os.devnull, os.O_WRONLY)
logging.basicConfig(handlers=[Unbuffered()])
board = _native.Scoreboard("threads")
newest = _native.Supervisor(board)
_native.install_wakeup()
is_over = False

def disturb(number):
    while not is_over:
        logging.warning("thread %d", number)
        newest.pids(), board.read(), _native.park(0), newest.liveness_fd()
        newest.set_graceful_timeout(5)
        _native.wake()

threads = [threading.Thread(target=disturb, args=(number,)) for number in range(3)]
for thread in threads:
    thread.start()
statuses = []
for _ in range(300):
    newest = _native.Supervisor(board)
    newest.add_group("one", 1)
    while (command := newest.next()) is not None:
        if command[0] == "exited":
            statuses.append(command[4])
            newest.request("stop")
        if command[0] == "fork":
            pid = os.fork()
            if pid == 0:
                _native.enter_worker(newest, board, command[2], command[3])
                logging.warning("worker %d", command[2])
                _native.wake()
                os._exit(7 if _native.park(0) else 8)
            newest.forked(command[2], pid)
is_over = True
for thread in threads:
    thread.join()
del newest
codes = set(map(os.waitstatus_to_exitcode, statuses))
print(len(statuses), codes, len(os.listdir("/proc/self/fd")))
"""
    ended = run_alone(code, stdout=subprocess.PIPE)

    assert ended.returncode == 0
    forks, status, fds = ended.stdout.split()
    assert (forks, status) == (b"300", b"{7}")
    assert int(fds) < 15, "supervisors leave descriptors behind"


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_deadline_that_is_no_time_is_refused(seconds):
    with pytest.raises(ValueError, match="seconds must be a number of seconds"):
        _native.arm_deadline(seconds)


def test_outside_a_worker_there_is_no_parent():
    _native.worker_ready()
    assert _native.parent_died() is False


def test_the_parent_itself_cannot_enter_a_worker():
    board = _native.Scoreboard()
    supervisor = _native.Supervisor(board)

    with pytest.raises(RuntimeError, match="is the parent itself"):
        _native.enter_worker(supervisor, board, 0, 0)


def test_a_worker_cannot_drive_its_parents_supervisor():
    ended = run_alone(
        "board = _native.Scoreboard()\n"
        "supervisor = _native.Supervisor(board)\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        supervisor.next()\n"
        "    except RuntimeError as error:\n"
        "        os._exit(4 if 'belongs to process' in str(error) else 5)\n"
        "    os._exit(6)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))",
    )

    assert ended.returncode == 4


def test_a_handler_that_a_worker_inherited_cannot_kill_its_siblings():
    ended = run_alone(
        "board = _native.Scoreboard()\n"
        "supervisor = _native.Supervisor(board)\n"
        "supervisor.add_group('two', 2)\n"
        "first = os.fork() or time.sleep(1000)\n"
        "supervisor.due()\n"
        "supervisor.forked(0, first)\n"
        "second = os.fork()\n"
        "if second == 0:\n"
        "    supervisor.kill_all(signal.SIGKILL)\n"
        "    os._exit(len(supervisor.pids()))\n"
        "status = os.waitpid(second, 0)[1]\n"
        "alive = supervisor.pids() == [first] and not os.waitpid(first, os.WNOHANG)[0]\n"
        "supervisor.kill_all(signal.SIGKILL)\n"
        "os.waitpid(first, 0)\n"
        "sys.exit(0 if alive and status == 0 else 1)",
    )

    assert ended.returncode == 0


def test_wrong_use_of_a_supervisor_is_named():
    supervisor = _native.Supervisor(_native.Scoreboard())

    with pytest.raises(ValueError, match='unknown request "restart"; use "stop"'):
        supervisor.request("restart")
    with pytest.raises(ValueError, match="graceful timeout must be a number of seconds"):
        supervisor.set_graceful_timeout(-1)
    with pytest.raises(ValueError, match="5000 workers are too many"):
        supervisor.add_group("many", 5000)
    with pytest.raises(ValueError, match="0 is no signal; use a number from 1 to 64"):
        supervisor.kill_all(0)
    with pytest.raises(RuntimeError, match="slot 3 has no fork to answer"):
        supervisor.forked(3, 1)


def test_due_hands_out_forks_without_parking():
    supervisor = _native.Supervisor(_native.Scoreboard())
    assert supervisor.due() is None
    group = supervisor.add_group("now", 1)

    assert supervisor.due() == ("fork", group, 0, 0)
    with pytest.raises(RuntimeError, match="was not answered"):
        supervisor.due()
    supervisor.fork_failed(0, 11)
    assert supervisor.due() == ("backoff", group, 0, 0.05, 1)
    assert supervisor.due() is None


def test_exit_statuses_are_kept_where_sigchld_was_ignored():
    ended = run_alone(
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "_native.Supervisor(_native.Scoreboard())\n"
        "sys.exit(0 if signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL else 1)",
    )

    assert ended.returncode == 0


def test_a_scoreboard_is_read_from_outside(start):
    parent = start(2, 30)
    parent.hear_running(2)

    board = _native.Scoreboard.attach(parent.pid)

    rows = board.read()
    assert (board.name, board.pid) == ("parent.py", parent.pid)
    assert [row["slot"] for row in rows] == [0, 1]
    assert {row["pid"] for row in rows} == parent.workers()
    for row in rows:
        assert row["state"] == "running"
        assert row["started_at"] <= row["ready_at"] <= time.monotonic()
        assert (row["in_flight"], row["oldest_since"], row["last_exit"]) == (0, None, None)
    assert _native.Scoreboard.attach(rows[0]["pid"]).pid == parent.pid, "workers lead to it too"
    with pytest.raises(PermissionError, match="read-only"):
        board.claim(0, 0)
    parent.signal(signal.SIGTERM)
    assert parent.wait() == 0


def test_a_process_without_a_scoreboard_is_refused():
    with subprocess.Popen(["sleep", "1000"]) as process:
        with pytest.raises(ProcessLookupError, match=f"process {process.pid} has no scoreboard"):
            _native.Scoreboard.attach(process.pid)
        process.kill()
