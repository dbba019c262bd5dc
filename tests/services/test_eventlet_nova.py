"""nova 31, unmodified, which monkey-patches at import unless told not to: here it does.

Its API, conductor and scheduler run on the eventlet that osloxide serves, with a real broker and
database. ``OSLOXIDE_SUBJECT=stock`` runs the same on the real one.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from typing_extensions import override

from services.cinder import Environment
from services.conftest import Start
from services.infra import Broker, Database, retried
from services.nova import LOCK_31, NovaApi
from services.processes import RunningService
from services.subject import IS_STOCK
from services.test_nova_api import Client, whole_job

pytestmark = pytest.mark.timeout(600)


class PatchingEnvironment(Environment):
    """One in which nova monkey-patches, as it is released."""

    @override
    def variables(self) -> dict[str, str]:
        return super().variables() | {"OS_NOVA_DISABLE_EVENTLET_PATCHING": "0"}


@pytest.fixture(scope="module")
def nova(broker: Broker, database: Database, tmp_path_factory: pytest.TempPathFactory) -> NovaApi:
    environment = PatchingEnvironment("nova31", LOCK_31, "nova-api")
    nova = NovaApi(environment, broker, database, tmp_path_factory.mktemp("nova31-patching"))
    nova.create_schema()
    return nova


@pytest.fixture(scope="module")
def conductor(nova: NovaApi, shared_start: Start) -> RunningService:
    return nova.start_service("conductor", shared_start)


@pytest.fixture(scope="module")
def scheduler(nova: NovaApi, conductor: RunningService, shared_start: Start) -> RunningService:
    return nova.start_service("scheduler", shared_start)


@pytest.fixture(scope="module")
def api(
    nova: NovaApi, conductor: RunningService, scheduler: RunningService, shared_start: Start
) -> RunningService:
    return retried(lambda: nova.start_api(shared_start))


def test_the_whole_job_is_done(nova: NovaApi, api: RunningService) -> None:
    whole_job(nova)
    assert "Traceback" not in api.text()


@pytest.mark.skipif(IS_STOCK, reason="stock nova runs on green threads")
def test_the_real_eventlet_is_in_no_process(
    api: RunningService, conductor: RunningService, scheduler: RunningService
) -> None:
    for service in (api, conductor, scheduler):
        for pid in [service.pid, *service.workers()]:
            assert "_greenlet" not in Path(f"/proc/{pid}/maps").read_text(), service.name


def test_a_reload_of_all_services_is_survived(
    nova: NovaApi, api: RunningService, conductor: RunningService, scheduler: RunningService
) -> None:
    for service in (conductor, scheduler, api):
        since = service.mark()
        service.signal(signal.SIGHUP)
        service.wait_log("SIGHUP", since=since, within=60)
    whole_job(nova)
    for service in (conductor, scheduler, api):
        service.assert_running()
        assert "Traceback" not in service.text(), service.text()[-3000:]


def test_a_stop_leaves_nothing(nova: NovaApi, api: RunningService, start: Start) -> None:
    client = Client(nova)
    client.call(200, "GET", "/v2.1/")
    client.close()
    service = nova.start_service("conductor", start)
    service.signal(signal.SIGTERM)
    assert service.wait_exit(60) == 0, service.text()[-3000:]
    service.wait_gone()
