"""RPC with the settings that deployment tools write, on the RabbitMQ releases that they run on.

The settings are the tools' files (tests/deployments/files/*/messaging.conf), read by oslo.config as
a service reads them. Everyday runs take each file and each release once or more; with
OSLOXIDE_LONG=1 every pair runs, and what takes a minute of each: an outage, a memory alarm, a
channel that the broker closes, a certificate that is renewed.
"""

from __future__ import annotations

import secrets
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from waiting import until, wait_until

from services.conftest import Figure, Start
from services.infra import RELEASES, USER, Broker, MissingTreeError, TlsBroker, required, retried
from services.processes import RunningService
from services.rpc import (
    Senders,
    became_of_calls,
    became_of_casts,
    check_that_each_caller_lost_one_at_most,
    client_of,
    options,
    runs,
    start_rpc_service,
)
from services.subject import IS_LONG, IS_STOCK, REPOSITORY
from services.test_rpc_channels import CLOSED, EARLY, begun

FILES = REPOSITORY / "tests" / "deployments" / "files"
TOOLS = sorted(path.parent.name for path in FILES.glob("*/messaging.conf"))
#: Which of them every run takes; RabbitMQ of the release is what the tool installs today.
EVERYDAY = {("", tool) for tool in TOOLS} | {("trixie", "kolla-ansible"), ("sid", "openstack-helm")}
PAIRS = [
    pytest.param((release, tool), id=f"{release or 'host'}-{tool}")
    for release in RELEASES
    for tool in TOOLS
    if (release, tool) in EVERYDAY or IS_LONG
]
OUTAGE = 60.0
"""Seconds that the broker is away."""
MIB = 1024 * 1024

long = pytest.mark.skipif(not IS_LONG, reason="a minute for each pair (OSLOXIDE_LONG=1)")

pytestmark = pytest.mark.timeout(1500)  # the first use of a release installs it


class Deployment:
    """A broker, and services and clients with one tool's settings."""

    def __init__(self, start: Start, broker: Broker, tool: str, trace: Path) -> None:
        self._start = start
        self._file = str(FILES / tool / "messaging.conf")
        self._name = f"osloxide-{secrets.token_hex(4)}"
        self._trace = trace
        self._started = 0
        self.options: dict[str, Any] = {}
        """Of the tests, which win over those of the tool."""
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

    @contextmanager
    def client(self) -> Iterator[Any]:
        """One with the settings of the tool, in this process."""
        with client_of(self.url, files=self._named().values()) as client:
            yield client

    def _named(self) -> dict[str, Any]:
        """Every service has a place for its locks, and a name; the queue manager counts by both."""
        self._started += 1
        own = self._trace.with_name(f"own-{self._started}.conf")
        own.write_text(
            f"[oslo_concurrency]\nlock_path = {self._trace.parent}\n"
            f"[oslo_messaging_rabbit]\nprocessname = {self._name}-{self._started}\n"
            + "".join(f"{name} = {value}\n" for name, value in self.options.items())
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


@long
def test_an_outage_of_a_minute_costs_a_caller_one_call_at_most(
    deployment: Deployment, trace: Path, figure: Figure
) -> None:
    callers = 8
    deployment.options["rabbit_qos_prefetch_count"] = 1
    services = [deployment.serve(), deployment.serve()]
    broker = deployment.broker
    with deployment.senders("call", callers) as calls:
        calls.wait_more(100)
        broker.write_elections()
        broker.kill_server()
        try:
            time.sleep(OUTAGE)  # the fault itself, no wait for something
        finally:
            broker.start_server()
        back = time.monotonic()
        calls.wait_more(1)
        gap = time.monotonic() - back
        calls.wait_more(100)
        report = calls.stop()
    for service in services:
        service.stop()

    words, doubled = became_of_calls(report, trace)
    figure(f"broker away for {OUTAGE:.0f} s, prefetch 1, {callers} callers: {words}; "
           f"answered again after {gap:.1f} s")  # fmt: skip
    check_that_each_caller_lost_one_at_most(report, callers)
    assert len(doubled) <= callers


@long
def test_a_memory_alarm_under_large_replies_holds_up_no_request(
    deployment: Deployment, trace: Path, figure: Figure
) -> None:
    casts, large = 40, 3
    service = deployment.serve(threads=8)
    gate = trace.with_name("gate")
    with deployment.client() as client, ThreadPoolExecutor(large) as callers:
        call = client.prepare(timeout=120).call
        replies = [
            callers.submit(call, {}, "large", size=8 * MIB, after=str(gate)) for _ in range(large)
        ]
        at_work = trace.with_name(f"{trace.name}.large")
        wait_until(lambda: at_work.exists() and len(at_work.read_text()) == large, "calls run", 60)
        for number in range(casts):
            client.cast({}, "work", number=number, seconds=2)
        deployment.broker.control("set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            gate.touch()
            wait_until(lambda: set(runs(trace)) == set(range(casts)), "every cast has run", 90)
            early = sum(reply.done() for reply in replies)
        finally:
            deployment.broker.control("set_vm_memory_high_watermark", "absolute", "1GB")
        assert [len(reply.result()) for reply in replies] == [8 * MIB] * large
    service.stop()

    figure(f"memory alarm under {large} replies of 8 MiB: {became_of_casts(casts, trace)}; "
           f"{large} answered, {early} of them before its end")  # fmt: skip
    assert set(runs(trace).values()) == {1}


@long
@pytest.mark.skipif(IS_STOCK, reason="stock acknowledges on arrival")
def test_requests_that_wait_for_longer_than_consumer_timeout_run_once(
    pair: tuple[str, str], deployment: Deployment, trace: Path, figure: Figure
) -> None:
    release, _ = pair

    def patience(timeout: int, tick: int) -> None:
        deployment.broker.control(
            "eval",
            f"application:set_env(rabbit,consumer_timeout,{timeout}),"
            f"application:set_env(rabbit,channel_tick_interval,{tick}).",
        )

    gate = trace.with_name("gate")
    patience(4000, 1000)
    try:
        service = deployment.serve(threads=2)
        with deployment.client() as client:
            for number in (0, 1):
                client.cast({}, "work", number=number, seconds=0, after=str(gate))
            wait_until(lambda: len(begun(trace)) == 2, "both threads are busy", 90)
            for number in range(2, 6):
                client.cast({}, "work", number=number, seconds=0)
            # RabbitMQ 4.3 closes no channel in this time, whatever the queue.
            is_closed = until(lambda: EARLY in service.text(), 40 if release == "sid" else 150)
            assert is_closed or release == "sid"
            gate.touch()
            wait_until(lambda: set(runs(trace)) == set(range(6)), "everything has run", 90)
        service.stop()
    finally:
        patience(1_800_000, 60_000)

    figure(f"consumer_timeout, channel closed {service.text().count(CLOSED)} times: "
           f"{became_of_casts(6, trace)}")  # fmt: skip
    assert set(runs(trace).values()) == {1}
    assert "is not known" not in service.text()


class RenewedBroker(TlsBroker):
    """One whose certificate, and the authority of it, can be replaced while it runs."""

    def __init__(self, release: str, files: Path) -> None:
        self.files = files
        self.write()
        super().__init__(release)

    def _listeners(self) -> str:
        lines = [line for line in super()._listeners().splitlines() if "file =" not in line]
        names = (("cacert", "ca.crt"), ("cert", "server.crt"), ("key", "server.key"))
        return "\n".join(
            lines + [f"ssl_options.{name}file = {self.files / file}" for name, file in names]
        )

    def write(self) -> None:
        """Write a new authority and a new certificate; nobody has read them yet."""

        def openssl(*words: str) -> None:
            command = [required("openssl", "openssl"), *words]
            subprocess.run(command, check=True, capture_output=True, cwd=self.files)

        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2"]
        openssl("req", "-x509", *new, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "new")
        openssl(
            "req", "-x509", *new, "-subj", "/CN=server", "-CA", "new", "-CAkey", "ca.key",
            "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE",
            "-keyout", "server.key", "-out", "server.crt",
        )  # fmt: skip
        (self.files / "new").rename(self.files / "ca.crt")

    def presented(self) -> str:
        """The certificate that a client sees."""
        return ssl.get_server_certificate(("127.0.0.1", self.port))


@long
def test_a_certificate_and_its_authority_are_renewed_under_calls(
    pair: tuple[str, str], start: Start, trace: Path, tmp_path: Path, figure: Figure
) -> None:
    release, tool = pair
    files = tmp_path / "certificates"
    files.mkdir()
    try:
        broker = retried(partial(RenewedBroker, release, files))
    except MissingTreeError as error:
        pytest.skip(str(error))
    try:
        deployment = Deployment(start, broker, tool, trace)
        deployment.options = {"ssl": "true", "ssl_ca_file": files / "ca.crt"}
        services = [deployment.serve(), deployment.serve()]
        with deployment.senders("call", 8) as calls:
            calls.wait_more(100)
            before = broker.presented()
            broker.write()
            broker.control("eval", "ssl:clear_pem_cache().")
            wait_until(lambda: broker.presented() != before, "the broker has the new one", 60)
            broker.close_connections()
            calls.wait_more(100)
            report = calls.stop()
        for service in services:
            service.stop()
        deployment.clean()
    finally:
        broker.stop()

    words, doubled = became_of_calls(report, trace)
    figure(f"certificate and authority renewed, all connections closed: {words}")
    assert report["failures"] == {}
    assert len(doubled) <= 8


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
