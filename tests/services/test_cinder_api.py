"""cinder 29, unmodified, with its real broker and database: the whole job, and what signals do.

cinder-api runs four workers; scheduler and volume run beside it. ``OSLOXIDE_SUBJECT=stock`` runs
the same tests on cinder as released, with eventlet; README.md lists which of them it fails.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from procfs import is_alive, main_thread_switches, stat
from waiting import wait_until

from services.cinder import (
    LOCK,
    PROJECT,
    Cinder,
    Client,
    Environment,
    stop_politely,
    whole_job,
)
from services.client import get
from services.conftest import Figure, Start
from services.infra import Broker, Database
from services.load import Load, Report
from services.processes import RunningService, held, is_refused
from services.subject import IS_STOCK, LONG_RUN_SECONDS

pytestmark = pytest.mark.timeout(300)

StartLoad = Callable[..., Load]
WORKERS = 4
VOLUMES = f"/v3/{PROJECT}/volumes/detail"
AUTH = {"X-Auth-Token": f"admin:{PROJECT}"}
HEADER_LINES = 90
"""As the deployment's cinder.conf allows, below the server's own 100."""


@pytest.fixture(scope="session")
def environment() -> Environment:
    return Environment("cinder", LOCK, "cinder-api")


@pytest.fixture(scope="session")
def schema(
    environment: Environment,
    broker: Broker,
    database: Database,
    tmp_path_factory: pytest.TempPathFactory,
) -> float:
    """The tables of cinder, once for all tests."""
    directory = tmp_path_factory.mktemp("schema")
    return Cinder(environment, broker.url, database, directory).create_schema()


@pytest.fixture
def cinder(
    environment: Environment, broker: Broker, database: Database, schema: float, tmp_path: Path
) -> Cinder:
    """A deployment of the test's own; nothing of it runs yet."""
    return Cinder(environment, broker.url, database, tmp_path)


@dataclass
class Deployment:
    """All three services, running."""

    cinder: Cinder
    api: RunningService
    scheduler: RunningService
    volume: RunningService


@pytest.fixture(scope="module")
def deployment(
    environment: Environment,
    broker: Broker,
    database: Database,
    schema: float,
    shared_start: Start,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    """The services that the tests share which harm none of them."""
    cinder = Cinder(environment, broker.url, database, tmp_path_factory.mktemp("cinder"))
    cinder.write(extra=f"[osloxide]\nmax_request_headers = {HEADER_LINES}\n")
    scheduler = cinder.start_scheduler(shared_start)
    volume = cinder.start_volume(shared_start)
    api = cinder.start_api(shared_start)
    yield Deployment(cinder, api, scheduler, volume)
    for service in (api, volume, scheduler):
        assert stop_politely(service) == 0, service.text()[-3000:]


def load_on(cinder: Cinder, load: StartLoad, connections: int = 8) -> Load:
    """Keep-alive load on a call that goes through every layer down to the database."""
    driver = load(cinder.port, connections=connections, path=VOLUMES, headers=AUTH, timeout=55)
    # Every connection has its worker, and every worker its database connections.
    driver.wait_answered(20 * connections, within=60)
    return driver


def hold_requests(cinder: Cinder, api: RunningService, load: StartLoad, count: int) -> Load:
    """*count* real requests that stay in flight for two seconds."""
    mark = api.mark()
    headers = {**AUTH, "X-Probe-Delay": "2"}
    driver = load(cinder.port, connections=count, keep_alive=False, path=VOLUMES, headers=headers)
    api.wait_log("holding a request", since=mark, times=count)
    return driver


# ---- what a user sees ---------------------------------------------------------------------------


@pytest.mark.skipif(IS_STOCK, reason="oslo.service has no option for the number of headers")
def test_the_bounds_of_the_server_stand_in_cinder_conf(deployment: Deployment) -> None:
    for more, expected in ((HEADER_LINES - 10, 200), (HEADER_LINES + 5, 431)):
        connection = http.client.HTTPConnection("127.0.0.1", deployment.cinder.port, timeout=60)
        headers = {**AUTH, **{f"X-Probe-{number}": "1" for number in range(more)}}
        connection.request("GET", VOLUMES, headers=headers)
        assert connection.getresponse().status == expected
        connection.close()


def test_the_whole_job_passes(deployment: Deployment, schema: float, figure: Figure) -> None:
    begin = time.monotonic()
    steps = whole_job(deployment.cinder.port)
    figure(f"{len(steps)} steps in {time.monotonic() - begin:.1f} s; schema in {schema:.1f} s")


def test_every_request_of_64_connections_is_answered(
    deployment: Deployment, load: StartLoad, figure: Figure
) -> None:
    driver = load_on(deployment.cinder, load, connections=64)
    held("cinder-api runs", lambda: is_alive(deployment.api.pid), LONG_RUN_SECONDS)
    report = driver.stop()

    assert not report.failures, report.kinds()
    assert len(report.pids()) == WORKERS, f"not every worker took part: {report.pids()}"
    figure(f"{LONG_RUN_SECONDS} s: {report.summary()}; by worker {list(report.pids().values())}")


# ---- what an operator sees ----------------------------------------------------------------------


def test_no_process_is_monkey_patched_and_no_eventlet_hub_runs(
    deployment: Deployment, load: StartLoad, figure: Figure
) -> None:
    port, api = deployment.cinder.port, deployment.api
    # An idle service lets one worker do everything: only load makes the others answer as well.
    driver = load_on(deployment.cinder, load, connections=16)
    seen: dict[int, dict[str, object]] = {}

    def all_asked() -> bool:
        facts = json.loads(get(port, "/probe")[2])
        seen[facts["pid"]] = facts
        return set(seen) >= set(api.workers())

    wait_until(all_asked, "each worker has answered the probe", 60)
    assert not driver.stop().failures
    for facts in seen.values():
        assert not facts["patched"], facts
        assert not facts["hub"], facts
        assert not facts["green_lock"], facts
        assert not facts["green_sleep"], facts

    # cinder's own diagnosis: SIGUSR2 makes a process print the stacks of all its threads.
    asked = 0
    for service in (api, deployment.scheduler, deployment.volume):
        for pid in [service.pid, *service.workers()]:
            if not cinder_process(pid):
                continue
            mark = service.mark()
            os.kill(pid, signal.SIGUSR2)
            service.wait_log(rf"Process {pid} ", since=mark)
            service.wait_log(r"==\s+Configuration", since=mark)
            report = service.text(mark)
            assert "eventlet/hubs" not in report, f"{service.name} {pid} runs an eventlet hub"
            assert "eventlet/green/" not in report, f"{service.name} {pid} waits in green code"
            # A thread that once asked for its current greenlet has one, without a stack.
            stacks = re.findall(r"Green Thread +-+\n\n(.+)", report)
            assert set(stacks) <= {"No Traceback!"}, f"{service.name} {pid}: {stacks}"
            asked += 1
    assert asked >= 1 + WORKERS + 2
    figure(f"{len(seen)} workers probed, {asked} processes reported their stacks: none patched")


def cinder_process(pid: int) -> bool:
    """True for the services themselves, not for a privsep daemon or another helper of theirs."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"cinder-" in command and b"privsep" not in command


def test_scheduler_and_volume_keep_their_pids_and_work_after_a_mutate(
    deployment: Deployment, figure: Figure
) -> None:
    services = [deployment.scheduler, deployment.volume]
    before = {service.name: [service.pid, *service.workers()] for service in services}

    for debug in (True, False):
        marks = {service.name: service.mark() for service in services}
        deployment.cinder.write(debug=debug)
        for service in services:
            service.signal(signal.SIGHUP)
        change = rf"DEFAULT.debug changed from \[{not debug}\] to \[{debug}\]"
        for service in services:
            processes = [pid for pid in before[service.name] if cinder_process(pid)]
            service.wait_log(change, since=marks[service.name], times=len(processes))
    steps = whole_job(deployment.cinder.port)

    assert before == {service.name: [service.pid, *service.workers()] for service in services}
    kept = sum(map(len, before.values()))
    figure(f"{kept} processes mutated twice and kept; then {len(steps)} steps of the job")


def test_an_idle_parent_never_wakes_up(deployment: Deployment, figure: Figure) -> None:
    parent, seconds = deployment.api.pid, 10.0
    wait_until(lambda: _quiet(parent), "no signal of an earlier test is being handled", 10)

    before = main_thread_switches(parent)
    held("cinder-api runs", lambda: is_alive(parent), seconds, every=1.0)
    woken = main_thread_switches(parent) - before

    figure(f"{woken} context switches of cinder-api's parent in {seconds:.0f} s")
    assert woken == 0


def _quiet(pid: int) -> bool:
    before = main_thread_switches(pid)
    time.sleep(0.5)
    return main_thread_switches(pid) == before


def test_a_mutate_under_load_loses_no_request_and_reaches_every_process(
    cinder: Cinder, start: Start, load: StartLoad, figure: Figure
) -> None:
    api = cinder.start_api(start)
    workers = api.workers()
    driver = load_on(cinder, load, connections=16)
    mark = api.mark()

    cinder.write(debug=True)
    api.signal(signal.SIGHUP)
    for pid in [api.pid, *workers]:
        api.wait_log(
            rf"\b{pid}\b.*DEFAULT.debug changed from \[False\] to \[True\]", since=mark, within=30
        )
    talkative_from = time.monotonic()
    driver.wait_answered(200)
    talkative_until = time.monotonic()
    cinder.write(debug=False)
    api.signal(signal.SIGHUP)
    for pid in [api.pid, *workers]:
        api.wait_log(rf"\b{pid}\b.*changed from \[True\] to \[False\]", since=mark, within=30)
    driver.wait_answered(100)
    report = driver.stop()

    assert not report.failures, report.kinds()
    assert api.workers() == workers, "a mutate must not replace workers"
    busy = {a.pid for a in report.answers if talkative_from < a.sent and a.done < talkative_until}
    debugging = {pid for pid in workers if re.search(rf"\b{pid} DEBUG ", api.text(mark))}
    assert busy, "no worker answered while debug was on"
    assert debugging >= busy, "a worker answered without logging at the new level"
    figure(f"debug on and off again in parent and {WORKERS} workers; {report.summary()}")
    assert stop_politely(api) == 0


def test_a_killed_worker_costs_only_its_own_requests_and_is_back_at_once(
    cinder: Cinder, start: Start, load: StartLoad, figure: Figure
) -> None:
    api = cinder.start_api(start)
    before = api.workers()
    driver = load_on(cinder, load, connections=12)
    victim = before[1]

    killed_at = time.monotonic()
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(set(api.workers()) - set(before)) == 1, "forked again", 10)
    (successor,) = set(api.workers()) - set(before)
    born = stat(successor)
    assert born is not None, f"worker {successor} has ended"
    # The kernel's word: on a busy machine this test looks later than it happens.
    forked = born.started - since_boot
    driver.wait_answered(200)
    wait_until(lambda: get(cinder.port, "/")[1] == successor, "the new worker answers", 60)
    report = driver.stop()

    assert_only_victim_lost(report, victim, killed_at)
    # Which process of which slot died of what.
    api.wait_log(rf"(?i)\bworker \d+ \(pid {victim}\).*SIGKILL")
    api.wait_log(rf"Child {victim} killed by signal 9")
    others = {pid for pid in report.pids(since=killed_at) if pid in before and pid != victim}
    assert others == set(before) - {victim}, "the other workers went on answering"
    figure(f"forked after {forked * 1e3:.0f} ms (a tick is 10 ms); {report.summary()}")
    assert stop_politely(api) == 0


def assert_only_victim_lost(report: Report, victim: int, killed_at: float) -> None:
    foreign = [f for f in report.failures if f.pid not in (victim, 0)]
    assert not foreign, f"requests on other workers failed: {foreign}"
    late = [f for f in report.failures if f.sent > killed_at + 1]
    assert not late, f"requests still failed a second after the kill: {late}"
    assert len(report.failures) <= 12, report.kinds()


def test_a_stop_under_load_answers_what_is_in_flight_and_leaves_nothing(
    cinder: Cinder, start: Start, load: StartLoad, figure: Figure
) -> None:
    api = cinder.start_api(start)
    driver = load_on(cinder, load)
    slow = hold_requests(cinder, api, load, 4)

    stopped_at = time.monotonic()
    api.signal(signal.SIGTERM)
    wait_until(lambda: is_refused(cinder.port), "new connections are refused", 10)
    refused = time.monotonic() - stopped_at
    assert is_alive(api.pid), "they were refused only after the drain"
    status = api.wait_exit(30)
    took = time.monotonic() - stopped_at
    api.wait_gone()
    report, slow_report = driver.stop(), slow.stop()

    assert status == 0, api.text()[-3000:]
    in_flight = [f for f in report.failures if f.sent < stopped_at]
    assert not in_flight, f"requests in flight were lost: {in_flight}"
    assert len([a for a in slow_report.answers if a.sent < stopped_at]) == 4
    assert not [f for f in slow_report.failures if f.sent < stopped_at]
    hung = [f for f in report.failures + slow_report.failures if "Timeout" in f.kind]
    assert not hung, f"connections were left hanging: {hung}"
    assert is_refused(cinder.port)
    figure(
        f"exit 0 after {took:.2f} s, 4 of 4 held requests answered, refused after"
        f" {refused * 1e3:.0f} ms; {report.summary()}"
    )


def test_no_worker_outlives_a_killed_parent(
    cinder: Cinder, start: Start, load: StartLoad, figure: Figure
) -> None:
    api = cinder.start_api(start)
    driver = load_on(cinder, load)

    os.kill(api.pid, signal.SIGKILL)
    api.wait_exit(30)
    took = api.wait_gone(30)
    driver.stop()

    assert is_refused(cinder.port)
    figure(f"{WORKERS} workers gone {took:.2f} s after the parent")


def test_a_stop_leaves_nothing_behind_also_in_the_middle_of_the_job(
    cinder: Cinder, start: Start, figure: Figure
) -> None:
    services = [
        cinder.start_scheduler(start),
        cinder.start_volume(start),
        cinder.start_api(start),
    ]
    client = Client(cinder.port)
    body = {"volume": {"size": 1, "name": "unfinished"}}
    client.call("POST", f"/v3/{PROJECT}/volumes", body, 202)
    client.close()

    took = []
    for service in reversed(services):
        begin = time.monotonic()
        assert stop_politely(service) == 0, service.text()[-3000:]
        took.append(f"{service.name.split('-')[0]} {time.monotonic() - begin:.1f} s")
    figure(", ".join(took))
