"""Services that live on RPC alone: nova 34's conductor and scheduler, with a real broker.

They have no port of their own. What counts is that calls are answered whatever signals arrive, and
that a stop leaves nothing behind. cinder's scheduler and volume are in test_rpc_cinder.py.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from services.cinder import Environment, stop_politely
from services.conftest import Figure, Start
from services.infra import Broker, Database
from services.nova import LOCK, Calls, Nova
from services.processes import RunningService, held, is_alive, main_thread_switches

pytestmark = pytest.mark.timeout(900)  # two services start, on a machine that may be busy

StartCalls = Callable[..., Calls]


@dataclass
class Deployment:
    """nova-conductor and nova-scheduler, two workers each, running."""

    nova: Nova
    conductor: RunningService
    scheduler: RunningService
    restart: Callable[[str], RunningService]
    """Starts the named service again after its end."""

    def services(self) -> list[RunningService]:
        return [self.conductor, self.scheduler]


@pytest.fixture(scope="module")
def nova(broker: Broker, database: Database, tmp_path_factory: pytest.TempPathFactory) -> Nova:
    environment = Environment("nova", LOCK, "nova-conductor")
    nova = Nova(environment, broker, database, tmp_path_factory.mktemp("nova"))
    nova.create_schema()
    return nova


@pytest.fixture(scope="module")
def deployment(nova: Nova, shared_start: Start) -> Deployment:
    conductor = nova.start_service("conductor", shared_start)
    scheduler = nova.start_service("scheduler", shared_start)
    return Deployment(
        nova, conductor, scheduler, lambda name: nova.start_service(name, shared_start)
    )


@pytest.fixture
def calls(nova: Nova) -> Iterator[StartCalls]:
    """Start callers; none outlives the test."""
    running: list[Calls] = []

    def run(topic: str, **options: int) -> Calls:
        running.append(Calls(nova, topic, **options))
        return running[-1]

    yield run
    for caller in running:
        caller.kill()


def test_a_mutate_keeps_every_pid_and_answers_every_call(
    deployment: Deployment, calls: StartCalls, figure: Figure
) -> None:
    before = {service.name: service.workers() for service in deployment.services()}
    callers = [calls("conductor"), calls("scheduler")]
    for caller in callers:
        caller.wait_answered(100)
    marks = {service.name: service.mark() for service in deployment.services()}

    for debug in (True, False):
        deployment.nova.write(debug=debug)
        for service in deployment.services():
            service.signal(signal.SIGHUP)
        change = rf"DEFAULT.debug changed from \[{not debug}\] to \[{debug}\]"
        for service in deployment.services():
            for pid in [service.pid, *before[service.name]]:
                service.wait_log(rf"\b{pid}\b.*{change}", since=marks[service.name])
        for caller in callers:
            caller.wait_answered(100)
    reports = [caller.stop() for caller in callers]

    for report in reports:
        assert not report["failures"], report
    assert before == {service.name: service.workers() for service in deployment.services()}
    figure(
        "; ".join(
            f"{service.name}: {report['answered']} calls answered, 0 failed, median"
            f" {report['median'] * 1e3:.1f} ms, slowest {report['slowest'] * 1e3:.0f} ms"
            for service, report in zip(deployment.services(), reports, strict=True)
        )
    )


def test_a_killed_worker_is_replaced_and_the_other_keeps_answering(
    deployment: Deployment, calls: StartCalls, figure: Figure
) -> None:
    conductor = deployment.conductor
    before = conductor.workers()
    mark = conductor.mark()

    killed_at = time.monotonic()
    os.kill(before[0], signal.SIGKILL)
    caller = calls("conductor")
    caller.wait_answered(50)
    conductor.wait_log("Starting conductor node", within=60, since=mark)
    back = time.monotonic() - killed_at
    caller.wait_answered(50)
    report = caller.stop()

    assert not report["failures"], report
    assert len(conductor.workers()) == 2
    assert before[1] in conductor.workers()
    figure(f"listening again after {back:.2f} s; {report['answered']} calls answered, 0 failed")


def test_an_idle_parent_never_wakes_up(deployment: Deployment, figure: Figure) -> None:
    parents, seconds = [service.pid for service in deployment.services()], 10.0
    before = {pid: main_thread_switches(pid) for pid in parents}
    held("both run", lambda: all(is_alive(pid) for pid in parents), seconds, every=1.0)
    woken = [main_thread_switches(pid) - before[pid] for pid in parents]

    figure(f"{woken} context switches in {seconds:.0f} s")
    assert woken == [0, 0]


def test_calls_go_on_after_a_crash_of_the_broker(
    deployment: Deployment, broker: Broker, calls: StartCalls, figure: Figure
) -> None:
    before = {service.name: service.workers() for service in deployment.services()}
    callers = [calls("conductor"), calls("scheduler")]
    for caller in callers:
        caller.wait_answered(50)

    broker.kill_server()
    broker.start_server()
    for caller in callers:
        caller.wait_answered(100, within=120)
    reports = [caller.stop() for caller in callers]

    # The callers are plain oslo.messaging: what was in flight at the crash may end by its timeout.
    for report in reports:
        assert set(report["failures"]) <= {"MessagingTimeout", "MessageDeliveryFailure"}, report
        assert sum(report["failures"].values()) <= 2 * 4, report
    assert before == {service.name: service.workers() for service in deployment.services()}
    figure(
        "; ".join(
            f"{service.name}: {report['answered']} answered, failed {report['failures']}, slowest "
            f"{report['slowest']:.1f} s"
            for service, report in zip(deployment.services(), reports, strict=True)
        )
    )


def test_a_stop_under_load_and_a_new_start_answer_every_call(
    deployment: Deployment, calls: StartCalls, figure: Figure
) -> None:
    # A start takes several seconds, on a busy machine a minute.
    callers = [calls(topic, timeout=120) for topic in ("conductor", "scheduler")]
    for caller in callers:
        caller.wait_answered(50)

    for name, service in (("conductor", deployment.conductor), ("scheduler", deployment.scheduler)):
        assert stop_politely(service, 60) == 0, service.text()[-3000:]
        setattr(deployment, name, deployment.restart(name))
    for caller in callers:
        caller.wait_answered(100)
    reports = [caller.stop() for caller in callers]

    for report in reports:
        assert not report["failures"], report
    figure(
        "; ".join(
            f"{service.name}: {report['answered']} calls answered, 0 failed, slowest"
            f" {report['slowest']:.1f} s (the new start)"
            for service, report in zip(deployment.services(), reports, strict=True)
        )
    )


# The last test of the shared deployment: it stops it.
def test_a_stop_leaves_nothing_behind(deployment: Deployment, figure: Figure) -> None:
    took = []
    for service in deployment.services():
        begin = time.monotonic()
        assert stop_politely(service, 60) == 0, service.text()[-3000:]
        took.append(f"{service.name} left after {time.monotonic() - begin:.2f} s")
    figure(", ".join(took))
