"""RPC over TLS to a real RabbitMQ: as deployments have it, with and without client certificates."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from services.conftest import Figure, Start, running
from services.infra import CERTIFICATES, TlsBroker
from services.processes import RunningService
from services.rpc import Senders, client_of, options, runs, start_rpc_service
from services.subject import APPS, IS_STOCK, clean_environment

TRUST = {"ssl": "true", "ssl_ca_file": str(CERTIFICATES / "ca.crt")}
IDENTITY = {
    "ssl_cert_file": str(CERTIFICATES / "client.crt"),
    "ssl_key_file": str(CERTIFICATES / "client.key"),
}

SETTINGS = {
    "authority": TRUST,
    "authority and client certificate": TRUST | IDENTITY,
    # Without an authority Python verifies only what a version's defaults say: here nothing.
    "no verification": {"ssl": "true", "ssl_version": "SSLv23"},
}


@pytest.fixture(scope="module")
def tls_broker() -> Iterator[TlsBroker]:
    """One that takes clients with and without a certificate."""
    yield from running(TlsBroker)


class StrictBroker(TlsBroker):
    """One that refuses clients without a certificate."""

    needs_client_certificate = True


@pytest.fixture(scope="module")
def strict_broker() -> Iterator[StrictBroker]:
    yield from running(StrictBroker)


@pytest.fixture
def client(tls_broker: TlsBroker) -> Iterator[Any]:
    with client_of(tls_broker.url, settings=TRUST) as client:
        yield client


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
def test_every_call_over_tls_is_answered_and_run_once(
    start: Start, tls_broker: TlsBroker, trace: Path, settings: dict[str, str]
) -> None:
    service = start_rpc_service(start, tls_broker.url, trace, **settings)
    senders = Senders(tls_broker.url, "call", 8, options(settings))
    try:
        senders.wait_more(200)
        report = senders.stop()
    finally:
        senders.kill()
    service.stop()

    assert report["failures"] == {}
    assert set(runs(trace).values()) == {1}
    assert "is OpenSSL's" not in service.text()


def test_a_closed_connection_over_tls_loses_and_doubles_no_call(
    start: Start, tls_broker: TlsBroker, trace: Path
) -> None:
    service = start_rpc_service(start, tls_broker.url, trace, **TRUST)
    senders = Senders(tls_broker.url, "call", 8, options(TRUST))
    try:
        report = senders.through(tls_broker.close_connections, 3, more=60)
    finally:
        senders.kill()
    service.stop()

    assert report["failures"] == {}
    assert set(report["sent"]) <= set(runs(trace))
    assert "Unexpected exception" not in service.text()


def test_heartbeats_over_tls_survive_an_endpoint_that_holds_the_interpreter(
    start: Start, tls_broker: TlsBroker, client: Any, trace: Path, figure: Figure
) -> None:
    heartbeat, frozen = 4, 14
    settings: dict[str, Any] = {**TRUST, "heartbeat_timeout_threshold": heartbeat}
    service = start_rpc_service(start, tls_broker.url, trace, threads=4, **settings)
    assert client.prepare(timeout=20).call({}, "work", number=1, seconds=0) == 1
    mark = tls_broker.log_size()

    answer = client.prepare(timeout=60).call({}, "freeze", seconds=frozen)
    after = client.prepare(timeout=20).call({}, "work", number=2, seconds=0)

    missed = tls_broker.log(mark).count("missed heartbeats from client")
    figure(f"{frozen} s without the interpreter at a heartbeat of {heartbeat} s over TLS: "
           f"{missed} connections closed by the broker")  # fmt: skip
    assert (answer, after, missed) == (frozen, 2, 0)
    service.stop()


def test_large_requests_and_replies_pass_over_tls(
    start: Start, tls_broker: TlsBroker, client: Any, trace: Path
) -> None:
    service = start_rpc_service(start, tls_broker.url, trace, **TRUST)
    large = "x" * (3 * 1024 * 1024)

    assert client.prepare(timeout=60).call({}, "echo", what=large) == large
    assert client.prepare(timeout=60).call({}, "echo", what=[large[:70_000]] * 20)

    service.stop()


def test_a_broker_that_asks_for_a_certificate_takes_the_configured_one(
    start: Start, strict_broker: StrictBroker, trace: Path
) -> None:
    service = start_rpc_service(start, strict_broker.url, trace, **TRUST, **IDENTITY)
    with client_of(strict_broker.url, settings=TRUST | IDENTITY) as client:
        assert client.prepare(timeout=30).call({}, "echo", what="x") == "x"
    service.stop()


def test_each_host_of_a_url_is_verified_by_its_own_name(
    start: Start, tls_broker: TlsBroker, trace: Path
) -> None:
    # Whichever comes first is written into the options by kombu; all but one are down.
    url = tls_broker.url.replace(
        "@", "@127.0.0.2:1,osloxide:osloxide@127.0.0.3:1,osloxide:osloxide@"
    )

    service = start_rpc_service(start, url, trace, **TRUST)

    service.stop()


def refused(start: Start, url: str, trace: Path, settings: dict[str, str]) -> RunningService:
    """A service that does not get as far as to listen."""
    argv = [str(APPS / "rpc_service.py"), url, str(trace), "2", *options(settings)]
    flags = ["--stock"] if IS_STOCK else []
    service = start([sys.executable, *argv, *flags], trace.with_name("log"), clean_environment())
    wait_until(lambda: "Connection failed" in service.text(), "the connection is refused", 60)
    assert "READY" not in service.text()
    return service


@pytest.mark.parametrize(
    ("host", "settings"),
    [
        pytest.param("127.0.0.1", {"ssl_ca_file": "server.crt"}, id="unknown authority"),
        pytest.param("127.0.0.2", {"ssl_ca_file": "ca.crt"}, id="other name"),
    ],
)
def test_a_broker_whose_certificate_is_not_right_is_refused(
    start: Start, tls_broker: TlsBroker, trace: Path, host: str, settings: dict[str, str]
) -> None:
    url = tls_broker.url.replace("127.0.0.1", host)
    chosen = {"ssl": "true"} | {name: str(CERTIFICATES / file) for name, file in settings.items()}

    service = refused(start, url, trace, chosen)

    assert "certificate verify failed" in service.text()
    service.kill()


def test_a_client_without_the_certificate_that_is_asked_for_is_refused(
    start: Start, strict_broker: StrictBroker, trace: Path
) -> None:
    service = refused(start, strict_broker.url, trace, TRUST)

    service.kill()
