"""Services that live on RPC alone: nova 34's conductor and scheduler, with a real broker, counted.

Callers make calls to both without a pause while the services get signals, are killed, and their
broker crashes. Each call leaves a trace each time that it is run (apps/nova_calls.py): a row in
MariaDB by the conductor, a line in its own log by the scheduler, which keeps nothing. So of each
call it is known whether it was answered, lost or run twice. The services have no port of their own,
and a stop leaves nothing behind. cinder's scheduler and volume are in test_rpc_cinder.py. With
OSLOXIDE_LONG=1 all of it on each release of RabbitMQ that there is.
"""

from __future__ import annotations

import math
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from procfs import is_alive, main_thread_switches, stat
from waiting import wait_until

from services.cinder import Environment, stop_politely
from services.conftest import Figure, Start, broker_of
from services.infra import Broker, Database
from services.nova import API, CELL1, LOCK, Calls, Nova, Report
from services.processes import RunningService, held

pytestmark = pytest.mark.timeout(900)  # two services start, on a machine that may be busy

TOPICS = ("conductor", "scheduler")
CALLERS = 12
"""Of each service: many more than its two workers can serve at a time, so that calls wait."""
THREADS = 2
"""Of each worker: what it can run at a time."""
TOLD_AFTER = 12
"""Seconds until the caller of a lost call hears of it (``rpc_response_timeout``)."""
PATIENCE = 120
"""The same where each call is answered; a new start takes up to a minute on a busy machine."""
CUTS = 2
"""How often all connections are closed."""
A_TURN = 5
"""Seconds in which a request that waits in its queue gets its turn once services answer again."""
WITHIN_GRACE = 50
"""Seconds for a stop: below ``graceful_shutdown_timeout``, so that what hangs can be asked."""
SETTINGS = f"""\
[DEFAULT]
executor_thread_pool_size = {THREADS}
"""
DURABLE = """\
[oslo_messaging_rabbit]
amqp_durable_queues = True
"""

StartCalls = Callable[..., Calls]


@dataclass
class Counted:
    """What became of the calls to one service."""

    topic: str
    report: Report
    runs: Counter[str]
    """How often each was run, by its key."""

    @property
    def failed(self) -> list[str]:
        """Not answered: the caller got an exception, or a wrong answer."""
        return list(self.report.failed)

    @property
    def lost(self) -> list[str]:
        """Failed, and without a trace: nobody did what was asked for."""
        return [key for key in self.report.failed if not self.runs[key]]

    @property
    def doubled(self) -> list[str]:
        """With two traces or more, whether answered or not."""
        return [key for key, times in self.runs.items() if times > 1]

    def summary(self) -> str:
        sent = len(self.report.sent)
        return (
            f"{self.topic}: {sent} calls sent, {sent - len(self.failed)} answered,"
            f" failed {dict(Counter(self.report.failed.values()))}, {len(self.lost)} lost,"
            f" {len(self.doubled)} doubled; pings {self.report.pings};"
            f" median {self.report.median * 1e3:.0f} ms, slowest {self.report.slowest:.2f} s"
        )


@dataclass
class Deployment:
    """nova-conductor and nova-scheduler, two workers each, running."""

    nova: Nova
    database: Database
    conductor: RunningService
    scheduler: RunningService
    restart: Callable[[str], RunningService]
    """Starts the named service again after its end."""

    def services(self) -> list[RunningService]:
        return [self.conductor, self.scheduler]

    def families(self) -> list[list[int]]:
        """Pids of both services, parents first."""
        return [[service.pid, *service.workers()] for service in self.services()]

    def is_full(self) -> bool:
        """Whether all threads of all workers wait for the locked tables."""
        waiting = self.database.waiting()
        # One request at a time is worked on in a scheduler, beside it others wait.
        return waiting[CELL1] >= 2 * THREADS and waiting[API] >= 2

    def count(self, callers: list[Calls]) -> list[Counted]:
        """End the callers, let what still runs end, and count."""
        for caller in callers:
            caller.end()
        reports = [caller.report() for caller in callers]
        seen, since = -1, 0.0

        def settled() -> bool:
            nonlocal seen, since
            total = sum(self._runs(caller).total() for caller in callers)
            if total != seen:
                seen, since = total, time.monotonic()
            return time.monotonic() > since + 1

        wait_until(settled, "nothing runs any more", 60, pause=0.25)
        counted = []
        for caller, report in zip(callers, reports, strict=True):
            runs = self._runs(caller)
            assert set(runs) <= set(report.sent)
            answered = report.sent.keys() - report.failed.keys()
            assert answered <= set(runs), "answered, but left no trace"
            counted.append(Counted(caller.topic, report, runs))
        return counted

    def _runs(self, callers: Calls) -> Counter[str]:
        if callers.topic == "conductor":
            query = f"SELECT source_node FROM migrations WHERE source_compute = '{callers.run}'"
            return Counter(self.database.sql(query, CELL1).split())
        known = rf"(?:from an unknown host|instance sync for host) '({callers.run}-\d+)'"
        return Counter(re.findall(known, self.scheduler.text()))


@pytest.fixture(scope="module")
def broker(release: str) -> Iterator[Broker]:
    yield from broker_of(release)


@pytest.fixture
def durable_broker(release: str) -> Iterator[Broker]:
    """On the other one the same queues are transient."""
    yield from broker_of(release)


@pytest.fixture(scope="module")
def nova(broker: Broker, database: Database, tmp_path_factory: pytest.TempPathFactory) -> Nova:
    environment = Environment("nova", LOCK, "nova-conductor")
    nova = Nova(environment, broker, database, tmp_path_factory.mktemp("nova"), SETTINGS)
    nova.create_schema()
    return nova


def deploy(nova: Nova, database: Database, start: Start) -> Deployment:
    def started(name: str) -> RunningService:
        return nova.start_service(name, start)

    conductor, scheduler = (started(topic) for topic in TOPICS)
    return Deployment(nova, database, conductor, scheduler, started)


@pytest.fixture(scope="module")
def deployment(nova: Nova, database: Database, shared_start: Start) -> Deployment:
    """Transient queues: what oslo.messaging makes unless it is told otherwise."""
    return deploy(nova, database, shared_start)


@pytest.fixture
def calls() -> Iterator[StartCalls]:
    """Put callers of both services to work; none outlives the test."""
    running: list[Calls] = []

    def run(nova: Nova, timeout: int = TOLD_AFTER) -> list[Calls]:
        started = [Calls(nova, topic, timeout, CALLERS) for topic in TOPICS]
        running.extend(started)
        for callers in started:
            callers.wait_answered(100)
        return started

    yield run
    for callers in running:
        callers.kill()


def assert_all_answered_once(counted: list[Counted]) -> None:
    for service in counted:
        assert not service.failed, service.summary()
        assert not service.doubled, service.summary()
        assert set(service.report.pings) == {"answered"}, service.summary()


def test_sighup_keeps_every_pid_and_loses_and_doubles_no_call(
    deployment: Deployment, calls: StartCalls, figure: Figure
) -> None:
    families = deployment.families()
    callers = calls(deployment.nova, timeout=PATIENCE)

    for debug in (True, False):
        marks = [service.mark() for service in deployment.services()]
        deployment.nova.write(debug=debug)
        for service in deployment.services():
            service.signal(signal.SIGHUP)
        change = rf"DEFAULT.debug changed from \[{not debug}\] to \[{debug}\]"
        for service, mark, family in zip(deployment.services(), marks, families, strict=True):
            for pid in family:
                service.wait_log(rf"\b{pid}\b.*{change}", since=mark)
        for caller in callers:
            caller.wait_answered(100)
    counted = deployment.count(callers)

    figure("; ".join(service.summary() for service in counted))
    assert_all_answered_once(counted)
    assert families == deployment.families()


def test_kill9_of_a_worker_costs_at_most_what_its_threads_ran(
    deployment: Deployment, calls: StartCalls, figure: Figure
) -> None:
    before = [service.workers() for service in deployment.services()]
    callers = calls(deployment.nova)
    marks = [service.mark() for service in deployment.services()]

    with deployment.database.locked(f"{CELL1}.migrations", f"{API}.host_mappings"):
        for caller in callers:
            caller.wait_under_way()
        wait_until(deployment.is_full, "every thread of every worker runs a call", 60, pause=0.05)
        killed = time.monotonic()
        for victim, _ in before:
            os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not any(stat(victim) for victim, _ in before), "both are reaped", 30)
        gone = time.monotonic()
    successors = []
    for service, mark in zip(deployment.services(), marks, strict=True):
        service.wait_log(rf"Starting {service.name} node", within=60, since=mark)
        successors.append(f"{time.monotonic() - killed:.2f} s")
    for caller in callers:
        caller.wait_answered(100)
    counted = deployment.count(callers)

    figure("; ".join([*(s.summary() for s in counted), f"successors after {successors}"]))
    for service in counted:
        unanswered = sum(service.report.pings.values()) - service.report.pings["answered"]
        assert 1 <= len(service.failed) + unanswered <= THREADS, service.summary()
        assert set(service.report.failed.values()) <= {"MessagingTimeout"}
        assert not service.doubled
        assert all(service.report.sent[key] <= gone for key in service.failed)
    for (victim, other), service in zip(before, deployment.services(), strict=True):
        assert other in service.wait_workers(2)
        assert victim not in service.workers()


def test_an_idle_parent_never_wakes_up(deployment: Deployment, figure: Figure) -> None:
    parents, seconds = [service.pid for service in deployment.services()], 10.0
    before = {pid: main_thread_switches(pid) for pid in parents}
    held("both run", lambda: all(is_alive(pid) for pid in parents), seconds, every=1.0)
    woken = [main_thread_switches(pid) - before[pid] for pid in parents]

    figure(f"{woken} context switches in {seconds:.0f} s")
    assert woken == [0, 0]


def crash(
    deployment: Deployment, broker: Broker, callers: list[Calls]
) -> tuple[list[Counted], float]:
    """Crash the broker and start it again; check what holds whatever queues there are.

    :returns: also when both services answered again, in seconds of ``time.monotonic``.
    """
    families = deployment.families()

    crashed = time.monotonic()
    broker.kill_server()
    broker.start_server()
    for caller in callers:
        caller.wait_answered(100, within=120)
    answering = time.monotonic()
    counted = deployment.count(callers)

    # Replies wait in transient queues in any case, and the callers are plain oslo.messaging: what
    # is under way may end by its timeout, and what is asked for then, until the servers are back.
    rounds = 1 + math.ceil((answering - crashed) / TOLD_AFTER)
    for service in counted:
        assert len(service.failed) <= CALLERS * rounds, service.summary()
        assert len(service.doubled) <= CALLERS, service.summary()
        told = {"MessagingTimeout", "MessageDeliveryFailure"}
        assert set(service.report.failed.values()) <= told, service.summary()
        assert "answered" in service.report.pings, service.summary()
        assert set(service.report.pings) <= {"answered", *told}, service.summary()
        harmed = {*service.failed, *service.doubled}
        assert all(service.report.sent[key] <= answering for key in harmed), service.summary()
    assert families == deployment.families()
    return counted, answering


def test_connections_that_the_broker_closes_lose_no_call(
    deployment: Deployment, broker: Broker, calls: StartCalls, figure: Figure
) -> None:
    families = deployment.families()
    callers = calls(deployment.nova, timeout=PATIENCE)

    for _ in range(CUTS):
        broker.close_connections()
        for caller in callers:
            caller.wait_answered(100)
    counted = deployment.count(callers)

    figure("; ".join(service.summary() for service in counted))
    for service in counted:
        assert not service.failed, service.summary()
        # A request whose acknowledgement or confirm is lost is delivered or sent again.
        assert len(service.doubled) <= CUTS * CALLERS, service.summary()
        assert set(service.report.pings) == {"answered"}, service.summary()
    assert families == deployment.families()


def test_a_crash_of_the_broker_harms_only_calls_under_way(
    deployment: Deployment, broker: Broker, calls: StartCalls, figure: Figure
) -> None:
    counted, _ = crash(deployment, broker, calls(deployment.nova))
    figure("; ".join(service.summary() for service in counted))


def test_sigterm_and_a_new_start_lose_and_double_no_call(
    deployment: Deployment, calls: StartCalls, figure: Figure
) -> None:
    callers = calls(deployment.nova, timeout=PATIENCE)

    for name in TOPICS:
        service = getattr(deployment, name)
        assert stop_politely(service, WITHIN_GRACE) == 0, service.text()[-3000:]
        setattr(deployment, name, deployment.restart(name))
    for caller in callers:
        caller.wait_answered(100)
    counted = deployment.count(callers)

    figure("; ".join(service.summary() for service in counted))
    assert_all_answered_once(counted)


# The last test of this deployment: it stops it.
def test_a_stop_leaves_nothing_behind(deployment: Deployment, figure: Figure) -> None:
    took = []
    for service in deployment.services():
        begin = time.monotonic()
        assert stop_politely(service, WITHIN_GRACE) == 0, service.text()[-3000:]
        took.append(f"{service.name} left after {time.monotonic() - begin:.2f} s")
    figure(", ".join(took))


def test_a_crash_of_the_broker_loses_no_call_over_durable_queues(
    nova: Nova,
    durable_broker: Broker,
    database: Database,
    start: Start,
    tmp_path_factory: pytest.TempPathFactory,
    calls: StartCalls,
    figure: Figure,
) -> None:
    directory = tmp_path_factory.mktemp("durable")
    durable = Nova(nova.environment, durable_broker, database, directory, SETTINGS + DURABLE)
    durable.map_cells()
    deployment = deploy(durable, database, start)

    counted, answering = crash(deployment, durable_broker, calls(durable))

    figure("; ".join(service.summary() for service in counted))
    for service in counted:
        # Requests stay in their queues for as long as their callers wait; their replies do not.
        # Some callers leave just as the services answer again, on a busy machine.
        waited_until = {key: service.report.sent[key] + TOLD_AFTER for key in service.lost}
        assert not [key for key, until in waited_until.items() if until > answering + A_TURN]
    for service in deployment.services():
        assert stop_politely(service, WITHIN_GRACE) == 0, service.text()[-3000:]
