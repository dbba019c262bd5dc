"""Releases that monkey-patch at import, unmodified, on the eventlet that osloxide serves.

Each does its job, goes on after SIGHUP, replaces a killed worker, and ends at SIGTERM; with
OSLOXIDE_LONG=1 it is put under load for an hour, or OSLOXIDE_SOAK_SECONDS, and its costs are shown;
OSLOXIDE_SOAK_PAUSE makes the load a light one.
releases.toml has them; ``OSLOXIDE_SUBJECT=stock`` runs the same on the real eventlet.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from procfs import SwitchCount, cpu_seconds, open_fds, proportional_bytes, threads
from waiting import wait_until

from services.apis import Api, WrongStatusError, ask, filled
from services.calls import Call, call_to
from services.conftest import Figure, Starter
from services.infra import Broker, Database
from services.load import Load
from services.processes import RunningService, free_port, held
from services.subject import IS_LONG, IS_STOCK, SOAK_PAUSE, SOAK_SECONDS

pytestmark = pytest.mark.timeout(900)

_READ = tomllib.loads((Path(__file__).parent / "releases.toml").read_text())
TABLE: dict[str, dict[str, Any]] = {
    name: _READ.get(values.pop("like", None), {}) | values for name, values in _READ.items()
}
CHOSEN = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            bool(values.get("long")) and not IS_LONG, reason="OSLOXIDE_LONG=1 runs it"
        ),
    )
    for name, values in TABLE.items()
]
HANDOVER = "OSLOXIDE_EVENTLET_HANDOVER"
"""Passed on where it is set, to compare the handovers."""
_PATIENCE = 180.0
IDLE_SECONDS = 20.0
CONNECTIONS = 8


@dataclass
class Release:
    """One release, running."""

    api: Api
    call: Call
    port: int
    programs: list[dict[str, Any]]
    drains: bool
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

    def under(self, load: Callable[..., Load], **options: Any) -> Load:
        """*load* of its API, begun."""
        return load(
            self.port,
            connections=CONNECTIONS,
            path=self.api.load["send"].partition(" ")[2],
            headers=self.api.load.get("headers", {}),
            timeout=60,
            **options,
        )

    def family(self) -> list[int]:
        """All its processes."""
        return [pid for service in self.services for pid in service.family()]

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


def serves(service: RunningService, broker: Broker, queue: str) -> bool:
    """Whether *service*, which has to run, takes calls from *queue*, as no other service does."""
    service.assert_running()
    listed = broker.control("list_queues", "name", "consumers").splitlines()
    return any(line.split()[:1] == [queue] and line.split()[1:] != ["0"] for line in listed)


@pytest.fixture(scope="module", params=CHOSEN)
def release(
    request: pytest.FixtureRequest, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Release]:
    values = dict(TABLE[request.param])
    programs = values.pop("programs")
    values.pop("long", None)
    drains = values.pop("drains", False)
    api = Api(request.param, **values)
    directory = tmp_path_factory.mktemp(api.name)
    port = free_port()
    names = {"port": str(port), "broker": broker.url}
    names |= {f"port{number}": str(free_port()) for number in (2, 3, 4)}
    if api.database == "mariadb":
        database: Database = request.getfixturevalue("database")
        for number in ("", "2", "3"):
            schema = api.name.replace("-", "_") + number
            database.sql(f"DROP DATABASE IF EXISTS {schema}; CREATE DATABASE {schema}")
            names[f"database{number}"] = database.url(schema)
    variables = api.prepare(directory, **names)
    if HANDOVER in os.environ:
        variables[HANDOVER] = os.environ[HANDOVER]
    starter = Starter()
    running = Release(api, call_to(f"http://127.0.0.1:{port}"), port, programs, drains)
    try:
        for program in programs:
            words = shlex.split(filled(program["program"], {"directory": str(directory)}))
            service = starter(
                api.installed().command(*words), directory / f"{words[0]}.log", variables
            )
            running.services.append(service)
            if "queue" in program:
                wait_until(
                    lambda s=service, q=program["queue"]: serves(s, broker, q),  # type: ignore[misc]
                    f"the queue {program['queue']}", _PATIENCE, pause=0.5,
                )  # fmt: skip
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
    for service, program in zip(release.services, release.programs, strict=True):
        if name := program.get("reload", "HUP"):
            service.signal(signal.Signals[f"SIG{name}"])
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


@pytest.mark.skipif(not IS_LONG, reason="OSLOXIDE_LONG=1 runs it")
@pytest.mark.timeout(SOAK_SECONDS + 900)
def test_a_soak_loses_no_request_and_keeps_nothing(
    release: Release, load: Callable[..., Load], figure: Figure
) -> None:
    name, family = release.api.name, release.family()
    release.api.use(release.call)
    held("it runs", lambda: len(release.family()) == len(family), IDLE_SECONDS / 2, every=1)
    cpu, switches = cpu_seconds(family), SwitchCount(family)
    held("it runs", switches.look, IDLE_SECONDS, every=0.1)
    cpu = cpu_seconds(family) - cpu
    assert len(release.family()) == len(family)
    figure(
        f"{name}, idle: {sum(map(proportional_bytes, family)) / 2**20:.0f} MiB PSS of "
        f"{len(family)} processes, {cpu / IDLE_SECONDS * 100:.2f} % CPU, "
        f"{switches.total / IDLE_SECONDS:.0f} switches/s"
    )

    driver = release.under(load, pause=SOAK_PAUSE)
    driver.wait_answered(400, within=_PATIENCE)  # caches and pools are full
    cpu = cpu_seconds(family)
    began, kept = time.monotonic(), [holdings(family)]
    for _ in range(2):
        held("all run", lambda: len(release.family()) == len(family), SOAK_SECONDS / 2, every=1)
        kept.append(holdings(family))
    seconds, cpu = time.monotonic() - began, cpu_seconds(family) - cpu
    first, midway, last = kept
    grown = {what: last[what] - first[what] for what in first}
    late = last["memory"] - midway["memory"]
    report = driver.stop(within=120)
    requests = sum(1 for answer in report.answers if answer.sent >= began)

    figure(
        f"{name}, load: {report.summary()}; {cpu / requests * 1e3:.2f} ms CPU a request over "
        f"{seconds:.0f} s; {grown['memory'] / 2**20:+.1f} MiB, of these {late / 2**20:+.1f} in the "
        f"second half, {grown['threads']:+} threads, {grown['descriptors']:+} descriptors"
    )
    assert not report.failures, report.kinds()
    assert grown["threads"] <= 2 * CONNECTIONS * len(family), grown
    assert grown["descriptors"] <= 2 * CONNECTIONS * len(family), grown
    assert grown["memory"] < 64 * 2**20, grown
    assert late < 16 * 2**20, kept  # what still grows once all is warm grows for ever
    for service in release.services:
        assert re.search("^Traceback", service.text(), re.MULTILINE) is None, service.text()[-3000:]


def holdings(family: list[int]) -> dict[str, int]:
    """What processes hold: memory in bytes, threads, descriptors."""
    return {
        "memory": sum(map(proportional_bytes, family)),
        "threads": sum(map(threads, family)),
        "descriptors": sum(map(open_fds, family)),
    }


def test_a_stop_answers_what_was_sent_and_leaves_nothing(
    release: Release, load: Callable[..., Load], figure: Figure
) -> None:
    driver = None
    if release.drains and IS_LONG:
        # Each request has a connection of its own, so that some wait in the kernel's queue.
        driver = release.under(load, keep_alive=False)
        driver.wait_answered(3 * CONNECTIONS, within=_PATIENCE)
    signalled = time.monotonic()
    for service in release.services:
        service.signal(signal.SIGTERM)
    for service in release.services:
        assert service.wait_exit(_PATIENCE) == 0, service.text()[-3000:]
        service.wait_gone()
    if driver is not None:
        report = driver.stop(within=120)
        lost = [it for it in report.failures if it.sent < signalled]
        figure(
            f"{release.api.name}, stop under load: {len(report.answers)} answered, {len(lost)} "
            f"failed that were sent before the signal {dict(Counter(it.kind for it in lost))}"
        )
        assert not lost, lost
    for service in release.services:
        assert "Traceback" not in service.text(), service.text()[-5000:]
