"""Releases that monkey-patch at import, unmodified, on the eventlet that osloxide serves.

Each does its job, goes on after SIGHUP, replaces a killed worker, and ends at SIGTERM.
releases.toml has them; ``OSLOXIDE_SUBJECT=stock`` runs the same on the real eventlet.
"""

from __future__ import annotations

import os
import shlex
import signal
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from services.apis import Api, WrongStatusError, ask, filled
from services.calls import Call, call_to
from services.conftest import Figure, Starter
from services.infra import Broker, Database
from services.processes import RunningService, free_port
from services.subject import IS_LONG, IS_STOCK

pytestmark = pytest.mark.timeout(900)

TABLE: dict[str, dict[str, Any]] = tomllib.loads(
    (Path(__file__).parent / "releases.toml").read_text()
)
CHOSEN = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            bool(values.get("long")) and not IS_LONG, reason="OSLOXIDE_LONG=1 runs it"
        ),
    )
    for name, values in TABLE.items()
]
_PATIENCE = 180.0


@dataclass
class Release:
    """One release, running."""

    api: Api
    call: Call
    programs: list[dict[str, Any]]
    services: list[RunningService] = field(default_factory=list)

    def answers(self) -> bool:
        """Whether the API answers what its clients ask."""
        for service in self.services:
            service.assert_running()
        try:
            ask(self.call, self.api.load, {})
        except (OSError, WrongStatusError):
            return False
        return True

    def wait_up(self) -> None:
        """Wait for answers, and for all workers."""
        wait_until(self.answers, f"{self.api.name} answers", _PATIENCE, pause=0.1)
        for service, program in zip(self.services, self.programs, strict=True):
            if "workers" in program:
                service.wait_workers(program["workers"], _PATIENCE)


def said(service: RunningService, text: str) -> bool:
    """Whether *service*, which has to run, has logged *text*."""
    service.assert_running()
    return text in service.text()


@pytest.fixture(scope="module", params=CHOSEN)
def release(
    request: pytest.FixtureRequest, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Release]:
    values = dict(TABLE[request.param])
    programs = values.pop("programs")
    values.pop("long", None)
    api = Api(request.param, **values)
    directory = tmp_path_factory.mktemp(api.name)
    port = free_port()
    names = {"port": str(port), "broker": broker.url}
    if api.database == "mariadb":
        database: Database = request.getfixturevalue("database")
        schema = api.name.replace("-", "_")
        database.sql(f"DROP DATABASE IF EXISTS {schema}; CREATE DATABASE {schema}")
        names["database"] = database.url(schema)
    variables = api.prepare(directory, **names)
    starter = Starter()
    running = Release(api, call_to(f"http://127.0.0.1:{port}"), programs)
    try:
        for program in programs:
            words = shlex.split(filled(program["program"], {"directory": str(directory)}))
            service = starter(
                api.installed().command(*words), directory / f"{words[0]}.log", variables
            )
            running.services.append(service)
        for service, program in zip(running.services, programs, strict=True):
            if "ready" in program:
                wait_until(
                    lambda s=service, p=program: said(s, p["ready"]), "it is ready", _PATIENCE
                )  # type: ignore[misc]
        running.wait_up()
        yield running
    finally:
        starter.end()


def test_the_job_is_done(release: Release, figure: Figure) -> None:
    figure(f"{release.api.name}: {release.api.use(release.call)} requests")


@pytest.mark.skipif(IS_STOCK, reason="stock services run on green threads")
def test_the_real_greenlet_is_in_no_process(release: Release) -> None:
    for service in release.services:
        for pid in service.family():
            assert "_greenlet" not in Path(f"/proc/{pid}/maps").read_text(), service.name


def test_a_reload_is_survived(release: Release) -> None:
    for service in release.services:
        service.signal(signal.SIGHUP)
    release.wait_up()
    release.api.use(release.call)
    for service in release.services:
        service.assert_running()


def test_a_killed_worker_is_replaced(release: Release) -> None:
    for service, program in zip(release.services, release.programs, strict=True):
        if "workers" in program:
            victim = service.workers()[0]
            os.kill(victim, signal.SIGKILL)
            wait_until(
                lambda s=service, v=victim, n=program["workers"]: (  # type: ignore[misc]
                    len(now := s.workers()) == n and v not in now
                ),
                f"{service.name}: another worker", _PATIENCE,
            )  # fmt: skip
    release.wait_up()
    release.api.use(release.call)


def test_a_stop_leaves_nothing(release: Release) -> None:
    for service in release.services:
        service.signal(signal.SIGTERM)
    for service in release.services:
        assert service.wait_exit(_PATIENCE) == 0, service.text()[-3000:]
        service.wait_gone()
        assert "Traceback" not in service.text(), service.text()[-5000:]
