"""RPC with the settings that deployment tools write, on the RabbitMQ releases that they run on.

The settings are the tools' files (tests/deployments/files/*/messaging.conf), read by oslo.config as
a service reads them. Everyday runs take each file and each release once or more; with
OSLOXIDE_LONG=1 every pair runs.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from services.conftest import Figure, Start
from services.infra import RELEASES, USER, Broker, MissingTreeError, retried
from services.processes import RunningService
from services.rpc import Senders, options, runs, start_rpc_service
from services.subject import IS_STOCK, REPOSITORY

FILES = REPOSITORY / "tests" / "deployments" / "files"
TOOLS = sorted(path.parent.name for path in FILES.glob("*/messaging.conf"))
#: Which of them every run takes; RabbitMQ of the release is what the tool installs today.
EVERYDAY = {("", tool) for tool in TOOLS} | {("trixie", "kolla-ansible"), ("sid", "openstack-helm")}
PAIRS = [
    pytest.param((release, tool), id=f"{release or 'host'}-{tool}")
    for release in RELEASES
    for tool in TOOLS
    if (release, tool) in EVERYDAY or os.environ.get("OSLOXIDE_LONG") == "1"
]

pytestmark = pytest.mark.timeout(1500)  # the first use of a release installs it


class Deployment:
    """A broker, and services and clients with one tool's settings."""

    def __init__(self, start: Start, broker: Broker, tool: str, trace: Path) -> None:
        self._start = start
        self._file = str(FILES / tool / "messaging.conf")
        self._name = f"osloxide-{secrets.token_hex(4)}"
        self._trace = trace
        self._started = 0
        self.broker = broker
        # Of its own: tools declare the same queues in other ways. It ends with the broker.
        self.url = f"{broker.url[:-1]}{self._name}"
        broker.control("add_vhost", self._name)
        broker.control("set_permissions", "-p", self._name, USER, ".*", ".*", ".*")

    def serve(self, threads: int = 4, trace: Path | None = None) -> RunningService:
        """A service, with a name of its own."""
        return start_rpc_service(
            self._start, self.url, trace or self._trace, threads=threads, **self._named()
        )

    @contextmanager
    def senders(self, kind: str, threads: int) -> Iterator[Senders]:
        senders = Senders(self.url, kind, threads, options(self._named()))
        try:
            yield senders
        finally:
            senders.kill()

    def _named(self) -> dict[str, Any]:
        """Every service has a place for its locks, and a name; the queue manager counts by both."""
        self._started += 1
        own = self._trace.with_name(f"own-{self._started}.conf")
        own.write_text(
            f"[oslo_concurrency]\nlock_path = {self._trace.parent}\n"
            f"[oslo_messaging_rabbit]\nprocessname = {self._name}-{self._started}\n"
        )
        return {"config": self._file, "config_of_its_own": str(own)}

    def clean(self) -> None:
        """Delete the counters that queue managers leave in shared memory."""
        for counter in Path("/dev/shm").glob(f"*_{self._name}-*_qmanager"):
            counter.unlink()


@pytest.fixture(scope="module")
def broker_of() -> Iterator[Callable[[str], Broker]]:
    """The broker of a release; one at a time is up."""
    current: dict[str, Broker] = {}

    def have(release: str) -> Broker:
        if release not in current:
            for other in current.values():
                other.stop()
            current.clear()
            try:
                current[release] = retried(partial(Broker, release))
            except MissingTreeError as error:
                pytest.skip(str(error))
        return current[release]

    yield have
    for broker in current.values():
        broker.stop()


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Release and tool. Of the module: pytest then runs all tests of one pair in a row."""
    chosen: tuple[str, str] = request.param
    return chosen


@pytest.fixture
def deployment(
    pair: tuple[str, str],
    start: Start,
    broker_of: Callable[[str], Broker],
    trace: Path,
) -> Iterator[Deployment]:
    release, tool = pair
    deployment = Deployment(start, broker_of(release), tool, trace)
    yield deployment
    deployment.clean()


def test_sigterm_to_one_of_two_loses_and_doubles_no_cast(
    deployment: Deployment, trace: Path, figure: Figure
) -> None:
    first, second = deployment.serve(), deployment.serve()
    with deployment.senders("cast", 4) as casts:
        casts.wait_more(100)
        first.signal(signal.SIGTERM)
        status = first.wait_exit(60)
        casts.wait_more(100)
        report = casts.stop()
    sent = set(report["sent"])
    wait_until(lambda: sent <= set(runs(trace)), "every cast has run", 60)
    second.stop()

    done = runs(trace)
    doubled = sum(times > 1 for times in done.values())
    figure(f"{len(sent)} casts, SIGTERM to one of two: 0 lost, {doubled} doubled")
    assert status == 0
    assert report["failures"] == {}
    assert doubled == 0


def test_connections_closed_under_calls_lose_none(
    deployment: Deployment, trace: Path, figure: Figure
) -> None:
    first, second = deployment.serve(), deployment.serve()
    with deployment.senders("call", 8) as calls:
        report = calls.through(deployment.broker.close_connections, 2, more=100)
    first.stop()
    second.stop()

    done = runs(trace)
    lost = set(report["sent"]) - set(done)
    figure(f"{len(report['sent'])} calls, all connections closed twice: failed "
           f"{report['failures']}, {len(lost)} lost, "
           f"{sum(times > 1 for times in done.values())} doubled, slowest "
           f"{report['slowest']:.1f} s")  # fmt: skip
    assert report["failures"] == {}
    assert not lost
    for service in (first, second):
        assert "Unexpected exception" not in service.text()


def test_fanouts_reach_every_server_once(
    deployment: Deployment, tmp_path: Path, figure: Figure
) -> None:
    traces = [tmp_path / f"server-{number}" for number in range(2)]
    for path in traces:
        path.touch()
    services = [deployment.serve(trace=path) for path in traces]
    with deployment.senders("fanout", 2) as fanouts:
        fanouts.wait_more(100)
        report = fanouts.stop()
    sent = set(report["sent"])
    wait_until(lambda: all(sent <= set(runs(path)) for path in traces), "all have run", 60)
    for service in services:
        service.stop()

    figure(f"{len(sent)} fanouts to two servers")
    assert report["failures"] == {}
    assert all(set(runs(path).values()) == {1} for path in traces)


@pytest.mark.skipif(IS_STOCK, reason="stock declares such queues again for ever")
def test_a_release_that_permits_no_transient_queues_says_what_to_set(
    start: Start, trace: Path
) -> None:
    try:
        broker = retried(
            partial(Broker, "sid", "deprecated_features.permit.transient_nonexcl_queues = false")
        )
    except MissingTreeError as error:
        pytest.skip(str(error))
    try:
        with pytest.raises(AssertionError) as raised:
            start_rpc_service(start, broker.url, trace)
        deployment = Deployment(start, broker, "kolla-ansible", trace)
        deployment.serve().stop()
    finally:
        broker.stop()
    log = trace.with_name("service-0.log").read_text()
    assert "rabbit_transient_quorum_queue = true" in log, raised.value
