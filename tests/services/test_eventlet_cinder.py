"""cinder 26, unmodified, which monkey-patches at import, on the eventlet that osloxide serves.

Its four programs do the whole job on a real broker and database; a reload, a kill and a stop under
load cost no request. ``OSLOXIDE_SUBJECT=stock`` runs the same on the real eventlet.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from procfs import is_alive
from waiting import wait_until

from services.cinder import PROJECT, Cinder, Environment, stop_politely, whole_job
from services.conftest import Figure, Start
from services.infra import Broker, Database
from services.load import Load
from services.processes import RunningService, held
from services.subject import IS_STOCK, LONG_RUN_SECONDS, REPOSITORY

pytestmark = pytest.mark.timeout(600)

LOCK = REPOSITORY / "requirements" / "cinder26.lock"
VOLUMES = f"/v3/{PROJECT}/volumes/detail"
AUTH = {"X-Auth-Token": f"admin:{PROJECT}"}
WORKERS = 2


@dataclass
class Deployment:
    """API, scheduler and volume, running."""

    cinder: Cinder
    api: RunningService
    scheduler: RunningService
    volume: RunningService


@pytest.fixture(scope="module")
def deployment(
    durable_broker: Broker,
    database: Database,
    shared_start: Start,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    environment = Environment("cinder26", LOCK, "cinder-api", own=True)
    directory = tmp_path_factory.mktemp("cinder26")
    cinder = Cinder(environment, durable_broker.url, database, directory)
    cinder.write(workers=WORKERS)
    cinder.create_schema()
    scheduler = cinder.start_scheduler(shared_start)
    volume = cinder.start_volume(shared_start)
    api = cinder.start_api(shared_start)
    yield Deployment(cinder, api, scheduler, volume)
    for service in (api, volume, scheduler):
        assert stop_politely(service, 60) == 0, service.text()[-3000:]
        assert "Traceback" not in service.text(), service.text()[-3000:]


def test_the_whole_job_passes(deployment: Deployment, figure: Figure) -> None:
    steps = whole_job(deployment.cinder.port)
    figure(f"{len(steps)} steps")


@pytest.mark.skipif(IS_STOCK, reason="stock cinder runs on green threads")
def test_the_real_eventlet_is_in_no_process(deployment: Deployment) -> None:
    for service in (deployment.api, deployment.scheduler, deployment.volume):
        for pid in [service.pid, *service.workers()]:
            with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
                assert "_greenlet" not in maps.read(), service.name


def test_a_mutate_under_load_loses_no_request(
    deployment: Deployment, load: Callable[..., Load], figure: Figure
) -> None:
    api, cinder = deployment.api, deployment.cinder
    driver = load(cinder.port, connections=8, path=VOLUMES, headers=AUTH, timeout=60)
    driver.wait_answered(40, within=120)
    workers = api.workers()
    for debug in (True, False):
        since = api.mark()
        cinder.write(debug=debug)
        api.signal(signal.SIGHUP)
        for pid in [api.pid, *workers]:
            api.wait_log(rf"\b{pid}\b.*DEFAULT.debug changed", since=since, within=60)
        driver.wait_answered(40, within=120)
    report = driver.stop()

    assert not report.failures, report.kinds()
    assert api.workers() == workers
    figure(report.summary())


def test_volumes_are_made_while_the_services_are_under_load(
    deployment: Deployment, load: Callable[..., Load], figure: Figure
) -> None:
    driver = load(deployment.cinder.port, connections=4, path=VOLUMES, headers=AUTH, timeout=60)
    driver.wait_answered(40, within=120)
    whole_job(deployment.cinder.port)
    held("cinder-api runs", lambda: is_alive(deployment.api.pid), LONG_RUN_SECONDS)
    report = driver.stop()
    assert not report.failures, report.kinds()
    figure(report.summary())


def test_a_killed_worker_is_replaced(deployment: Deployment) -> None:
    api = deployment.api
    before = set(api.workers())
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(set(api.workers()) - {victim}) == WORKERS, "the worker is replaced", 60)
    whole_job(deployment.cinder.port)
