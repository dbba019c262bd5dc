"""What a service of several processes survives: each test is one promise, driven from outside.

The subject is a small WSGI service (apps/small.py) under a ProcessLauncher. Nothing here looks
inside it: signals, sockets, the log and /proc are all an operator has, too.
``OSLOXIDE_SUBJECT=stock`` runs the same tests on oslo.service with eventlet; README.md lists which
of them it fails.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from procfs import context_switches, cpu_seconds, is_alive, open_fds
from waiting import wait_until

from services.client import Held, KeepAlive, get, queue_request, read_all
from services.conftest import Figure, SmallService, Start
from services.load import Load, Report
from services.processes import RunningService, free_port, held, is_refused

pytestmark = pytest.mark.timeout(120)

StartLoad = Callable[..., Load]
HOLD = "holding a request"


def end(service: RunningService, within: float = 20) -> None:
    """Stop a service that has nothing in flight: exit 0, nothing left."""
    service.signal(signal.SIGTERM)
    assert service.wait_exit(within) == 0, service.text()[-3000:]
    service.wait_gone()


def assert_death_named(service: RunningService, pid: int, signo: signal.Signals) -> str:
    """The log says which process of which slot died of which signal; return that line."""
    lines = service.wait_log(rf"\b{pid}\b.*(signal {signo.value}\b|{signo.name})")
    assert any(re.search(rf"(?i)\bworker \d+ \(pid {pid}\)", line) for line in lines), lines
    return lines[0]


def replaced(service: RunningService, old: list[int], count: int) -> bool:
    """True when none of *old* is left and *count* workers run."""
    now = service.workers()
    return len(now) == count and not set(now) & set(old)


def replaced_one(service: RunningService, old: int, count: int) -> bool:
    """True when *old* has left and *count* workers run."""
    now = service.workers()
    return len(now) == count and old not in now


def settle(service: RunningService, count: int, within: float = 60) -> None:
    """Wait until the same *count* workers have been seen for a second."""
    seen: tuple[float, list[int]] = (time.monotonic(), [])

    def settled() -> bool:
        nonlocal seen
        service.assert_running()
        now = service.workers()
        if now != seen[1]:
            seen = (time.monotonic(), now)
        return len(now) == count and time.monotonic() - seen[0] > 1

    wait_until(settled, f"{count} workers that stay", within)


def assert_unharmed(report: Report) -> None:
    assert report.answers, "the load driver was never answered"
    assert not report.failures, f"{report.kinds()}: {report.failures[:5]}"


# ---- workers that die ---------------------------------------------------------------------------


def test_a_worker_killed_under_load_costs_only_its_own_requests(
    small: SmallService, load: StartLoad, figure: Figure
) -> None:
    service = small.start(workers=3)
    driver = load(small.port, connections=9)
    driver.wait_answered(300)
    came_back, victims = [], {}

    for _ in range(4):
        workers = service.workers()
        victim = workers[0]
        killed_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        victims[victim] = killed_at
        wait_until(
            lambda w=workers: len(set(service.workers()) - set(w)) == 1,
            "a new worker",  # type: ignore[misc]
            10,
            pause=0.002,
        )
        came_back.append(time.monotonic() - killed_at)
        assert_death_named(service, victim, signal.SIGKILL)
        driver.wait_answered(100)
    report = driver.stop()

    foreign = [f for f in report.failures if f.pid and f.pid not in victims]
    assert not foreign, f"requests on other workers failed: {foreign}"
    slow = [
        f
        for f in report.failures
        if not any(abs(f.done - killed_at) < 1 for killed_at in victims.values())
    ]
    assert not slow, f"requests failed long after a worker died: {slow}"
    assert len(report.failures) <= 9 * len(victims), report.kinds()
    figure(f"forked again after {[f'{s * 1e3:.0f} ms' for s in came_back]}; {report.summary()}")
    end(service)


def test_a_worker_that_crashes_is_replaced_and_its_signal_named(
    small: SmallService, figure: Figure
) -> None:
    service = small.start()
    before = service.workers()

    with pytest.raises((OSError, http.client.HTTPException)):
        get(small.port, "/segv")
    crashed_at = time.monotonic()
    wait_until(lambda: len(set(service.workers()) - set(before)) == 1, "full strength", 60, 0.002)
    took = time.monotonic() - crashed_at

    (victim,) = set(before) - set(service.workers())
    line = assert_death_named(service, victim, signal.SIGSEGV)
    assert get(small.port)[0] == 200
    figure(f"replaced {took * 1e3:.0f} ms after the client saw it; log: {line[-120:]}")
    end(service)


def test_a_crash_loop_is_paced_reported_and_ends_when_its_cause_does(
    small: SmallService, figure: Figure
) -> None:
    small.crash_file.touch()
    service = small.launch()
    small.wait_port(service)
    service.wait_log("start crashes", times=4)
    seconds, mark, cpu = 6.0, service.mark(), cpu_seconds([service.pid])

    held("the parent survives a crash loop", lambda: is_alive(service.pid), seconds)
    forks = service.text(mark).count("start crashes")
    cpu = (cpu_seconds([service.pid]) - cpu) / seconds

    assert forks <= 2 * seconds, f"{forks} forks in {seconds} s"
    assert cpu < 0.10, f"the parent used {cpu:.0%} of a core"
    assert "crash on demand" in service.text(), "the traceback is not in the log"
    small.crash_file.unlink()
    service.wait_log("worker serves", times=2, within=60)
    assert get(small.port)[0] == 200
    figure(f"{forks} forks in {seconds:.0f} s, parent at {cpu:.1%} of a core")
    end(service)


def test_a_crash_loop_can_be_stopped_at_once(small: SmallService, figure: Figure) -> None:
    small.crash_file.touch()
    service = small.launch()
    small.wait_port(service)
    # Late enough that the slots wait for their next fork.
    service.wait_log("start crashes", times=8)

    begin = time.monotonic()
    service.signal(signal.SIGTERM)
    service.wait_exit(30)
    service.wait_gone()
    figure(f"left after {time.monotonic() - begin:.2f} s")


def test_no_descriptor_is_lost_over_many_respawns(small: SmallService, figure: Figure) -> None:
    service = small.start(workers=2)
    before = open_fds(service.pid)

    for count in range(8):
        workers = service.workers()
        mark = service.mark()
        os.kill(workers[count % 2], signal.SIGKILL)
        # Serving workers are killed, not starting ones: this is no crash loop.
        service.wait_log("worker serves", since=mark)
        service.wait_workers(2)

    wait_until(
        lambda: open_fds(service.pid) <= before,
        "the parent's descriptors are back to what they were",
        5,
    )
    figure(f"{before} descriptors before, {open_fds(service.pid)} after 8 respawns")
    end(service)


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A memory control group of 64 MiB, version 1 or 2. Needs root."""
    for root, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = root / f"osloxide-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(64 << 20))
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        yield group
        members = group / "cgroup.procs"
        wait_until(lambda m=members: not m.read_text(), "the control group is empty", 10)  # type: ignore[misc]
        group.rmdir()
        return
    pytest.skip("no memory control group can be made here (needs root and a writable cgroupfs)")


def test_a_worker_shot_by_the_oom_killer_is_replaced_and_the_suspicion_named(
    memory_group: Path, small: SmallService, figure: Figure
) -> None:
    service = small.start()
    before = service.workers()
    for pid in before:
        (memory_group / "cgroup.procs").write_text(str(pid))

    with pytest.raises((OSError, http.client.HTTPException)):
        get(small.port, "/memory?s=512")
    wait_until(lambda: len(set(service.workers()) - set(before)) == 1, "full strength", 10)
    (victim,) = set(before) - set(service.workers())

    (line, *_) = service.wait_log(rf"(?i)\b{victim}\b.*(out of memory|OOM)")
    assert [get(small.port)[0] for _ in range(10)] == [200] * 10
    figure(f"log: {line[-140:]}")
    end(service)


def test_an_allocation_beyond_the_limit_fails_one_request_only(small: SmallService) -> None:
    service = small.start()
    for pid in service.workers():
        size = int(re.search(r"VmSize:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]
        resource.prlimit(pid, resource.RLIMIT_AS, ((size << 10) + (256 << 20),) * 2)

    hogs = [get(small.port, "/memory?s=1024")[0] for _ in range(6)]
    after = [get(small.port)[0] for _ in range(10)]

    assert hogs == [500] * 6
    assert after == [200] * 10
    end(service)


def test_a_stopped_worker_does_not_hold_up_the_clients_of_the_others(
    small: SmallService, figure: Figure
) -> None:
    service = small.start(workers=2)
    frozen = service.workers()[0]
    os.kill(frozen, signal.SIGSTOP)

    def is_frozen() -> bool:
        # Each thread stops when it next runs; until then it may accept a connection.
        states = Path(f"/proc/{frozen}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in states)

    try:
        wait_until(is_frozen, "every thread of the worker has stopped", 20)
        begin = time.monotonic()
        statuses = Held(small.port, "/", 40, timeout=20).statuses(30)
        took = time.monotonic() - begin
    finally:
        os.kill(frozen, signal.SIGCONT)

    assert statuses == [200] * 40
    wait_until(lambda: get(small.port)[1] == frozen, "the worker that goes on serves again", 20)
    figure(f"40 of 40 answered in {took:.2f} s by the other worker")
    end(service)


@pytest.mark.parametrize("how", ["frozen", "holding_the_interpreter"])
def test_a_hung_worker_is_replaced_after_worker_timeout_and_shows_where_it_hung(
    small: SmallService, figure: Figure, how: str
) -> None:
    service = small.start(workers=2, worker_timeout=2)
    before = service.workers()
    begin = time.monotonic()
    if how == "frozen":
        hung = before[0]
        os.kill(hung, signal.SIGSTOP)
    else:
        lost = Held(small.port, "/spin?s=600", 1)
        (line,) = service.wait_log("spinning")
        hung = next(pid for pid in before if str(pid) in line)

    wait_until(lambda: replaced_one(service, hung, 2), "the hung worker is replaced", 60)
    took = time.monotonic() - begin
    service.wait_log("worker serves", times=3)

    (line, *_) = service.wait_log(rf"\(pid {hung}\) did nothing")
    service.wait_log(rf"\(pid {hung}\) ended here")
    if how != "frozen":
        service.wait_log(r"small\.py.* in application")
        assert "1 request in flight" in line
        assert [o.status for o in lost.wait(60)] == [0]
    assert [get(small.port)[0] for _ in range(10)] == [200] * 10
    figure(f"replaced {took:.1f} s after it hung (worker_timeout 2 s), tracebacks in the log")
    end(service)


def test_a_worker_that_is_told_to_stop_drains_and_is_replaced(
    small: SmallService, load: StartLoad, figure: Figure
) -> None:
    service = small.start(workers=2)
    request = Held(small.port, "/hold?s=1", 1)
    (line,) = service.wait_log(HOLD)
    busy = next(pid for pid in service.workers() if str(pid) in line)

    os.kill(busy, signal.SIGTERM)

    wait_until(lambda: busy not in service.workers(), "the worker is replaced", 20)
    service.wait_workers(2)
    assert request.statuses() == [200]
    service.wait_log("worker serves", times=3)
    figure("its request was answered, full strength again")
    end(service)


def test_workers_terminated_one_by_one_under_load_lose_no_request(
    small: SmallService, load: StartLoad, figure: Figure
) -> None:
    service = small.start(workers=3)
    driver = load(small.port, connections=9)
    driver.wait_answered(200)

    for _ in range(3):
        before = service.workers()
        mark = service.mark()
        os.kill(before[0], signal.SIGTERM)
        wait_until(lambda b=before: b[0] not in service.workers(), "it has left", 30)  # type: ignore[misc]
        service.wait_log("worker serves", since=mark)
        driver.wait_answered(100)
    report = driver.stop()

    assert_unharmed(report)
    figure(f"3 of 3 workers replaced; {report.summary()}")
    end(service)


def test_a_storm_of_sigchld_costs_nothing_but_a_look(small: SmallService) -> None:
    service = small.start(workers=2)
    before = service.workers()
    for _ in range(2000):
        service.signal(signal.SIGCHLD)

    assert get(small.port)[0] == 200
    assert service.workers() == before
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: len(set(service.workers()) - set(before)) == 1, "a death is still seen", 10)
    end(service)


# ---- the parent dies ----------------------------------------------------------------------------


def test_no_worker_outlives_a_killed_parent(small: SmallService, figure: Figure) -> None:
    service = small.start(workers=3)
    port = small.port

    os.kill(service.pid, signal.SIGKILL)
    service.wait_exit(30)
    took = service.wait_gone(20)

    assert is_refused(port)
    figure(f"3 workers gone after {took:.2f} s")


def test_requests_in_flight_are_answered_when_the_parent_is_killed(
    small: SmallService, figure: Figure
) -> None:
    service = small.start(workers=2)
    port = small.port
    requests = Held(port, "/hold?s=1", 4)
    service.wait_log(HOLD, times=4)

    os.kill(service.pid, signal.SIGKILL)
    service.wait_exit(30)
    took = service.wait_gone(30)

    assert requests.statuses() == [200] * 4
    assert is_refused(port)
    figure(f"4 of 4 answered, workers gone after {took:.2f} s")


# ---- reload -------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_alive", [False, True], ids=["new_connections", "keep_alive"])
def test_a_reload_under_load_replaces_every_worker_and_loses_no_request(
    small: SmallService, load: StartLoad, figure: Figure, keep_alive: bool
) -> None:
    service = small.start(workers=2, restart_method="reload")
    old = service.workers()
    driver = load(small.port, connections=8, keep_alive=keep_alive)
    driver.wait_answered(200)

    small.write(greeting="reloaded")
    begin = time.monotonic()
    service.signal(signal.SIGHUP)
    wait_until(lambda: replaced(service, old, 2), "every worker is a new one", 60)
    took = time.monotonic() - begin
    driver.wait_answered(200)
    report = driver.stop()

    assert_unharmed(report)
    assert get(small.port)[2].startswith(b"reloaded"), "the new configuration is not in use"
    figure(f"new generation alone after {took:.2f} s; {report.summary()}")
    end(service)


def test_a_storm_of_reloads_loses_no_request_and_leaves_one_generation(
    small: SmallService, load: StartLoad, figure: Figure
) -> None:
    service = small.start(workers=2, restart_method="reload")
    old = service.workers()
    driver = load(small.port, connections=8)
    driver.wait_answered(200)

    for _ in range(20):
        mark = service.mark()
        service.signal(signal.SIGHUP)
        # The next one arrives as soon as this one shows an effect, whatever that is.
        wait_until(lambda m=mark: service.mark() > m, "the service reacts", 10)  # type: ignore[misc]
    wait_until(lambda: replaced(service, old, 2), "none of the first workers is left", 60)
    settle(service, 2)
    driver.wait_answered(200)
    report = driver.stop()

    assert_unharmed(report)
    figure(report.summary())
    end(service)


def test_a_mutate_under_load_keeps_every_pid_and_loses_no_request(
    small: SmallService, load: StartLoad, figure: Figure
) -> None:
    service = small.start(workers=2, restart_method="mutate")
    old = service.workers()
    driver = load(small.port, connections=8)
    driver.wait_answered(200)

    small.write(greeting="mutated")
    service.signal(signal.SIGHUP)
    for pid in old:
        service.wait_log(rf"\b{pid}\b.*service reset, greeting is mutated")
    driver.wait_answered(200)
    report = driver.stop()

    assert_unharmed(report)
    assert service.workers() == old
    assert {get(small.port)[2].split()[0] for _ in range(10)} == {b"mutated"}
    figure(report.summary())
    end(service)


@pytest.mark.parametrize("restart_method", ["reload", "mutate"])
def test_a_broken_configuration_file_at_a_reload_keeps_the_old_one_and_says_so(
    small: SmallService, restart_method: str
) -> None:
    service = small.start(workers=2, restart_method=restart_method, greeting="sound")
    sound = small.config.read_text()
    mark = service.mark()

    small.config.write_text("[DEFAULT\nnot a configuration file\n")
    service.signal(signal.SIGHUP)
    service.wait_log(r"(?i)(error|critical|warning).*", since=mark)
    assert get(small.port)[2].startswith(b"sound")
    service.assert_running()

    small.config.write_text(sound.replace("sound", "repaired"))
    service.signal(signal.SIGHUP)
    wait_until(lambda: get(small.port)[2].startswith(b"repaired"), "the repaired file is used", 30)
    end(service)


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile long *jump;
static long zero;

__attribute__((constructor)) static void begin(void) {
    int fd = open(getenv("CLOCK_JUMP"), O_RDONLY | O_CLOEXEC);
    void *memory = fd < 0 ? MAP_FAILED : mmap(0, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);
    jump = memory == MAP_FAILED ? &zero : memory;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (jump && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *jump;
    return status;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}
"""


@pytest.fixture(scope="module")
def jumping_clock(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    """A library that moves the wall clock of a program, and the file that says how far."""
    directory = tmp_path_factory.mktemp("clock")
    (directory / "clock.c").write_text(CLOCK)
    library, jump = directory / "clock.so", directory / "jump"
    compile_it = ["cc", "-shared", "-fPIC", "-O1", "-o", library, directory / "clock.c", "-ldl"]
    subprocess.run(compile_it, check=True)
    jump.write_bytes(bytes(8))
    return {"LD_PRELOAD": str(library), "CLOCK_JUMP": str(jump)}, jump


@pytest.mark.parametrize("days", [1, -1], ids=["forward", "back"])
def test_a_jump_of_the_wall_clock_moves_no_deadline_and_no_back_off(
    small: SmallService, jumping_clock: tuple[dict[str, str], Path], figure: Figure, days: int
) -> None:
    variables, file = jumping_clock
    small.environment.update(variables)

    def jump(seconds: int) -> None:
        with file.open("r+b") as memory:  # never shorter than what is mapped
            memory.write(seconds.to_bytes(8, "little", signed=True))

    jump(0)
    service = small.start(workers=2, graceful_shutdown_timeout=3, worker_timeout=20)
    before = service.workers()
    stamp = service.text().split()[0]

    jump(days * 86400)
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: replaced_one(service, before[0], 2), "a death is seen at once", 60)
    service.wait_log("worker serves", times=3)
    request = Held(small.port, "/hold?s=60", 1)
    (line,) = service.wait_log(HOLD)
    assert not line.startswith(stamp), "the clock of the service did not jump"
    begin = time.monotonic()
    service.signal(signal.SIGTERM)
    jump(0)
    status = service.wait_exit(20)
    took = time.monotonic() - begin

    service.wait_gone()
    request.wait(60)
    assert status == 1
    assert took >= 2.9, "the grace period was cut short"
    assert "did nothing" not in service.text(), "a worker was taken to hang"
    figure(f"the clock jumped {days:+} day and back: grace of 3 s took {took:.1f} s")


def test_a_stop_in_the_middle_of_a_reload_still_leaves_with_status_0(
    small: SmallService,
) -> None:
    service = small.start(workers=2, restart_method="reload")
    requests = Held(small.port, "/hold?s=1", 2)
    service.wait_log(HOLD, times=2)
    mark = service.mark()

    service.signal(signal.SIGHUP)
    service.wait_log(".", since=mark)
    service.signal(signal.SIGTERM)

    assert service.wait_exit(20) == 0, service.text()[-3000:]
    service.wait_gone()
    assert requests.statuses() == [200, 200]


def test_a_reload_while_workers_are_starting_ends_at_full_strength(small: SmallService) -> None:
    service = small.launch(workers=4, restart_method="reload")
    small.wait_port(service)
    wait_until(service.workers, "the first worker is forked", 60, 0.001)

    service.signal(signal.SIGHUP)

    wait_until(lambda: get(small.port)[0] == 200, "it serves", 30)
    settle(service, 4)
    end(service)


# ---- stop ---------------------------------------------------------------------------------------


def test_every_request_in_flight_is_answered_before_the_exit(
    small: SmallService, figure: Figure
) -> None:
    service = small.start(workers=2)
    port = small.port
    requests = Held(port, "/hold?s=4", 8)
    service.wait_log(HOLD, times=8)
    cpu, begin = cpu_seconds([service.pid]), time.monotonic()

    service.signal(signal.SIGTERM)
    wait_until(lambda: is_refused(port), "new connections are refused", 10)
    refused_after = time.monotonic() - begin
    assert is_alive(service.pid), "they were refused only after the drain"
    held("the parent waits for its workers", lambda: is_alive(service.pid), 1.0)
    cpu = (cpu_seconds([service.pid]) - cpu) / (time.monotonic() - begin)
    status = service.wait_exit(20)
    took = time.monotonic() - begin

    assert requests.statuses() == [200] * 8
    assert status == 0
    assert cpu < 0.10, f"the parent used {cpu:.0%} of a core while it waited"
    service.wait_gone()
    figure(
        f"8 of 8 answered, exit 0 after {took:.2f} s, refused after {refused_after * 1e3:.0f} ms,"
        f" parent at {cpu:.1%} of a core"
    )


def test_idle_keep_alive_connections_never_delay_the_exit(
    small: SmallService, figure: Figure
) -> None:
    service = small.start(workers=2, graceful_shutdown_timeout=60)
    connections = [KeepAlive(small.port) for _ in range(20)]
    for connection in connections:
        connection.get()

    begin = time.monotonic()
    service.signal(signal.SIGTERM)
    assert service.wait_exit(30) == 0
    took = time.monotonic() - begin

    service.wait_gone()
    for connection in connections:
        connection.close()
    figure(f"exit 0 after {took:.2f} s with 20 idle connections")


@pytest.mark.parametrize("path", ["/hold?s=60", "/spin?s=600"], ids=["sleeping", "holding_the_gil"])
def test_at_the_deadline_everything_leaves_with_status_1(
    small: SmallService, figure: Figure, path: str
) -> None:
    grace = 2
    service = small.start(workers=2, graceful_shutdown_timeout=grace)
    request = Held(small.port, path, 1)
    (line,) = service.wait_log("holding a request|spinning")
    late = next(pid for pid in service.workers() if str(pid) in line)

    begin = time.monotonic()
    service.signal(signal.SIGTERM)
    status = service.wait_exit(grace + 8)
    took = time.monotonic() - begin
    gone = service.wait_gone(20)

    assert took >= grace - 0.1, "the grace period was cut short"
    assert status == 1
    assert [o.status for o in request.wait(60)] == [0]
    service.wait_log(
        rf"Worker \d \(pid {late}\) still running.*\b1 request in flight, the oldest for [\d.]+ s"
    )
    figure(f"grace {grace} s: parent left after {took:.2f} s, the last worker {gone:.2f} s later")


def test_the_second_sigterm_is_ignored(small: SmallService, figure: Figure) -> None:
    service = small.start(workers=2)
    request = Held(small.port, "/hold?s=2", 1)
    service.wait_log(HOLD)
    mark = service.mark()

    service.signal(signal.SIGTERM)
    service.wait_log("(?i)stop|SIGTERM", since=mark)
    begin = time.monotonic()
    for _ in range(3):
        service.signal(signal.SIGTERM)
    for pid in service.workers():
        os.kill(pid, signal.SIGTERM)

    assert service.wait_exit(20) == 0
    assert request.statuses() == [200]
    service.wait_gone()
    figure(f"answered and exit 0, {time.monotonic() - begin:.2f} s after the second SIGTERM")


def test_sigint_leaves_at_once_with_status_1(small: SmallService, figure: Figure) -> None:
    service = small.start(workers=2)
    request = Held(small.port, "/hold?s=30", 1)
    service.wait_log(HOLD)

    begin = time.monotonic()
    service.signal(signal.SIGINT)
    assert service.wait_exit(20) == 1
    service.wait_gone(20)
    figure(f"everything gone {time.monotonic() - begin:.2f} s after SIGINT")
    request.wait(60)


def test_a_stop_at_any_moment_of_the_start_leaves_nothing_behind(
    small: SmallService, figure: Figure
) -> None:
    slowest, statuses = 0.0, []
    for attempt in range(20):
        service = small.launch(workers=2)
        # Spread over the first second: imports, bind, fork, start, serving.
        moment = service.started_at + attempt * 0.05
        wait_until(lambda m=moment: time.monotonic() >= m, "the chosen moment", 5, 0.001)  # type: ignore[misc]
        begin = time.monotonic()
        service.signal(signal.SIGTERM)
        statuses.append(service.wait_exit(30))
        service.wait_gone()
        slowest = max(slowest, time.monotonic() - begin)
    assert set(statuses) <= {0, -signal.SIGTERM}, statuses
    figure(f"20 moments, slowest exit {slowest:.2f} s, statuses {sorted(set(statuses))}")


def test_a_stop_between_fork_and_serving_leaves_nothing_behind(
    small: SmallService, figure: Figure
) -> None:
    statuses = []
    for attempt in range(10):
        service = small.launch(workers=3)
        small.wait_port(service)
        wait_until(lambda s=service, n=attempt: len(s.workers()) > n % 3, "forks", 60, 0.0005)  # type: ignore[misc]
        service.signal(signal.SIGTERM)
        statuses.append(service.wait_exit(30))
        service.wait_gone()
    assert set(statuses) == {0}, statuses
    figure("10 of 10 left with status 0")


# ---- the machine says no ------------------------------------------------------------------------


def unprivileged(directory: Path) -> list[str]:
    """A prefix that makes process limits apply: root is exempt from RLIMIT_NPROC."""
    if os.getuid() != 0:
        return []
    uid = 60000 + os.getpid() % 4000
    os.chown(directory, uid, uid)
    return [
        "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
        # The interpreter may live in a directory that only root can enter.
        "--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override",
        "--bounding-set=-all,+dac_override",
    ]  # fmt: skip


REFUSED = r"(?i)fork.*(EAGAIN|temporarily unavailable|errno 11)"


def process_limit(service: RunningService, prefix: list[str]) -> Callable[[str], None]:
    """Sets RLIMIT_NPROC of the parent; to what it was where the number is empty."""
    limits = Path(f"/proc/{service.pid}/limits").read_text()
    (normal,) = re.findall(r"Max processes\s+(\S+)", limits)

    def limit(soft: str) -> None:
        command = ["prlimit", f"--pid={service.pid}", f"--nproc={soft or normal}:"]
        subprocess.run([*prefix, *command], check=True)

    return limit


def test_a_fork_refused_by_the_kernel_is_retried_while_the_others_serve(
    start: Start, tmp_path: Path, figure: Figure
) -> None:
    prefix = unprivileged(tmp_path)
    small = SmallService(start, tmp_path, prefix)
    service = small.start(workers=2)
    limit_processes = process_limit(service, prefix)

    victim, survivor = service.workers()
    mark = service.mark()
    limit_processes("1")

    os.kill(victim, signal.SIGKILL)
    service.wait_log(REFUSED, since=mark)
    cpu, begin = cpu_seconds([service.pid]), time.monotonic()
    for _ in range(20):
        assert get(small.port)[1] == survivor
    held("the parent keeps running", lambda: is_alive(service.pid), 2)
    cpu = (cpu_seconds([service.pid]) - cpu) / (time.monotonic() - begin)
    limit_processes("")
    begin = time.monotonic()
    service.wait_workers(2, within=30)
    took = time.monotonic() - begin

    assert cpu < 0.10, f"the parent used {cpu:.0%} of a core between its attempts"
    service.wait_log("worker serves", since=mark)
    figure(f"full strength {took:.2f} s after the limit was lifted, parent at {cpu:.1%} meanwhile")
    end(service)


@pytest.mark.parametrize("follows", ["forks", "a stop"])
def test_a_reload_whose_forks_the_kernel_refuses_costs_nothing_and_goes_on_later(
    start: Start, tmp_path: Path, load: StartLoad, figure: Figure, follows: str
) -> None:
    prefix = unprivileged(tmp_path)
    small = SmallService(start, tmp_path, prefix)
    service = small.start(workers=2, restart_method="reload")
    old = service.workers()
    limit_processes = process_limit(service, prefix)
    driver = load(small.port, connections=8)
    driver.wait_answered(100)
    mark = service.mark()
    limit_processes("1")

    service.signal(signal.SIGHUP)
    service.wait_log(REFUSED, times=2, since=mark)
    driver.wait_answered(100)
    assert service.workers() == old, "an old worker has left before its successor could be forked"
    if follows == "forks":
        limit_processes("")
        begin = time.monotonic()
        wait_until(lambda: replaced(service, old, 2), "every worker is a new one", 60)
        figure(f"a new generation {time.monotonic() - begin:.2f} s after the limit was lifted")
        driver.wait_answered(100)
        assert_unharmed(driver.stop())
    else:
        driver.stop()
    end(service)


def test_a_worker_out_of_descriptors_does_not_spin_and_recovers(
    small: SmallService, figure: Figure
) -> None:
    service = small.start(workers=2)
    workers = service.workers()
    assert get(small.port)[0] == 200
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in workers}
    for pid in workers:
        highest = max(int(fd) for fd in os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1, limits[pid][1]))
    # More than any hole below the limit can take.
    waiting = [queue_request(small.port, "/hold?s=0.1") for _ in range(40)]

    cpu, seconds = cpu_seconds(workers), 3.0
    held("the workers stay", lambda: service.workers() == workers, seconds)
    cpu = (cpu_seconds(workers) - cpu) / seconds
    for pid in workers:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits[pid])
    answers = [read_all(connection) for connection in waiting]

    assert cpu < 0.20, f"the workers used {cpu:.0%} of a core"
    assert all(b" 200 OK\r\n" in answer for answer in answers), answers
    assert [get(small.port)[0] for _ in range(10)] == [200] * 10
    assert service.workers() == workers
    figure(f"workers at {cpu:.1%} of a core at the limit, 40 of 40 answered after it")
    end(service)


def test_a_port_in_use_ends_the_start_with_an_error_that_names_it(
    small: SmallService, figure: Figure
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]

        service = small.launch(port=port)
        status = service.wait_exit(20)

    service.wait_gone()
    assert status not in (0, None)
    assert re.search(rf"(?i)(bind|in use).*\b{port}\b|\b{port}\b.*in use", service.text())
    figure(f"exit {status}, named, nothing left")


def test_two_services_never_share_one_port(small: SmallService, start: Start) -> None:
    """SO_REUSEPORT would let a second service steal half of the connections unnoticed."""
    (small.directory / "second").mkdir()
    second = SmallService(start, small.directory / "second")
    first = small.start(port=free_port())

    late = second.launch(port=small.port)

    assert late.wait_exit(20) != 0
    late.wait_gone()
    end(first)


def test_a_full_log_disk_stops_neither_serving_nor_respawning(
    small: SmallService, figure: Figure
) -> None:
    service = small.start(log=Path("/dev/full"))
    before = service.workers()
    answered = sum(get(small.port)[0] == 200 for _ in range(50))

    os.kill(before[0], signal.SIGKILL)
    killed_at = time.monotonic()
    wait_until(lambda: len(set(service.workers()) - set(before)) == 1, "full strength", 60, 0.002)
    took = time.monotonic() - killed_at

    assert answered == 50
    assert [get(small.port)[0] for _ in range(20)] == [200] * 20
    figure(f"50 of 50 answered, respawn after {took * 1e3:.0f} ms")
    service.signal(signal.SIGTERM)
    # 120 is CPython's own word for "standard error could not be flushed".
    assert service.wait_exit(20) in (0, 120)
    service.wait_gone()


def test_every_connection_of_a_full_backlog_is_served(small: SmallService, figure: Figure) -> None:
    service = small.start(workers=2)
    workers = service.workers()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        # A backlog of 128 holds 129.
        queued = [queue_request(small.port, timeout=30) for _ in range(129)]
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)

    served = sum(b" 200 OK\r\n" in read_all(connection) for connection in queued)

    assert served == 129
    figure(f"{served} of 129 queued connections served")
    end(service)


def test_connections_queued_at_the_stop_are_answered_or_reset_never_left_hanging(
    small: SmallService, figure: Figure
) -> None:
    service = small.start(workers=2)
    requests = Held(small.port, "/hold?s=1", 2)
    service.wait_log(HOLD, times=2)
    late = [queue_request(small.port, timeout=10) for _ in range(16)]

    service.signal(signal.SIGTERM)
    answers = []
    for connection in late:
        try:
            answers.append(read_all(connection))
        except ConnectionError:
            answers.append(b"reset")

    assert all(b" 200 OK\r\n" in a or a == b"reset" for a in answers), answers
    assert service.wait_exit(20) == 0
    assert requests.statuses() == [200, 200]
    service.wait_gone()
    figure(f"{sum(a != b'reset' for a in answers)} of 16 answered, the others reset")


# ---- cost ---------------------------------------------------------------------------------------


def test_an_idle_service_never_wakes_up(small: SmallService, figure: Figure) -> None:
    service = small.start(workers=2)
    idle = [KeepAlive(small.port) for _ in range(10)]
    for connection in idle:
        connection.get()
    pids = [service.pid, *service.workers()]

    def quiet() -> bool:
        before = {pid: context_switches(pid) for pid in pids}
        time.sleep(0.5)
        return before == {pid: context_switches(pid) for pid in pids}

    wait_until(quiet, "the service settles", 30)
    seconds = 10.0
    # What an idle service puts away once (buffers after 10 s, threads after 15 s) is no rhythm:
    # one of three windows in a row must be without any wake-up.
    for _ in range(3):
        before = {pid: context_switches(pid) for pid in pids}
        cpu = cpu_seconds(pids)
        held("the service runs", lambda: is_alive(service.pid), seconds, every=1.0)
        woken = [context_switches(pid) - before[pid] for pid in pids]
        cpu = cpu_seconds(pids) - cpu
        if not any(woken):
            break

    figure(f"wake-ups in {seconds:.0f} s: parent {woken[0]}, workers {woken[1:]}; CPU {cpu:.2f} s")
    for connection in idle:
        connection.close()
    assert woken[0] == 0, f"the idle parent woke up {woken[0]} times in {seconds:.0f} s"
    assert woken[1:] == [0, 0], f"idle workers woke up {woken[1:]} times in {seconds:.0f} s"
    assert cpu == 0
    end(service)


def test_workers_forked_from_one_parent_draw_different_random_numbers(small: SmallService) -> None:
    service = small.start(workers=4)

    lines = service.wait_log("worker serves, and draws", times=4)

    drawn = [line.split()[-1] for line in lines]
    assert len(set(drawn)) == 4, "workers go on with the parent's random sequence"
    end(service)
