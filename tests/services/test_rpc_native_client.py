"""RPC clients without kombu, on a real RabbitMQ: what kombu's do, and what faults make of it.

Where connections are counted, the service's are kombu's, whatever the subject.
With OSLOXIDE_LONG=1 the faults happen to the RabbitMQ of other releases as well; every day
test_rpc_deployments.py has clients without kombu on those.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import amqp
import pytest
from waiting import wait_until

from services.conftest import Figure, Start, broker_of, running
from services.infra import CERTIFICATES, PASSWORD, USER, Broker
from services.rpc import (
    Senders,
    became_of_calls,
    check_that_each_caller_lost_one_at_most,
    client_environment,
    options,
    runs,
    start_rpc_service,
)
from services.subject import APPS, IS_STOCK
from services.test_rpc_tls import IDENTITY, TRUST, StrictBroker

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(IS_STOCK, reason="stock has no such client"),
]


@pytest.fixture
def own_broker(release: str) -> Iterator[Broker]:
    """One that may be killed, and keeps no other test's queues."""
    yield from broker_of(release)


@pytest.fixture(scope="module")
def strict_broker() -> Iterator[StrictBroker]:
    yield from running(StrictBroker)


OUTCOMES: dict[str, Any] = {
    "echo": True,
    "large": 400_000,
    "none": None,
    "server": 1,
    "remote exception": "TypeError",
    "no such method": "RemoteError",
    "timeout": "MessagingTimeout",
    "nowhere": "MessagingTimeout",
    "undeliverable": ["openstack", "osloxide-nowhere", 312],
    "cast": None,
    "cast to nowhere": None,
    "fanout": None,
    "notifications": None,
    "notifications, version 1": None,
    "monitored": 1,
    "child": ["a child", "its parent"],
}
"""What becomes of each attempt of apps/rpc_client.py."""


class Client:
    """apps/rpc_client.py, running."""

    def __init__(self, url: str, *words: str, is_native: bool = True) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(APPS / "rpc_client.py"), url, *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=client_environment(is_native=is_native),
        )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, errors = self._process.communicate(timeout=30)
            raise AssertionError(errors)
        self.results: dict[str, Any] = json.loads(line)

    def end(self) -> str:
        """Let it clean up; what it has logged."""
        text, log = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, log
        self.results |= json.loads(text.splitlines()[-1])
        return log


@contextlib.contextmanager
def own_client(url: str, *words: str, is_native: bool = True) -> Iterator[Client]:
    client = Client(url, *words, is_native=is_native)
    try:
        yield client
    finally:
        with contextlib.suppress(ValueError, subprocess.TimeoutExpired):
            client._process.communicate(timeout=30)
        client._process.kill()


def messages(broker: Broker) -> dict[str, int]:
    """How many wait in each of the queues that rpc_client.py sends notifications to."""
    listed = broker.control("list_queues", "name", "messages")
    rows = [line.split() for line in listed.splitlines() if "osloxide-messaging" in line]
    return {name: int(count) for name, count in rows}


def by_kombu(broker: Broker) -> int:
    """Connections that a client has opened with kombu."""
    listed = broker.control("list_connections", "client_properties")
    return sum("py-amqp" in line and "rpc_client.py:" in line for line in listed.splitlines())


def products(broker: Broker) -> list[str]:
    """The names of the programs that are connected with *broker*."""
    listed = broker.control("list_connections", "client_properties")
    return [
        name
        for name in ("osloxide", "py-amqp")
        for _ in range(listed.count(f'{{"product","{name}"}}'))
    ]


def test_every_kind_of_request_ends_as_with_kombu(
    start: Start, broker: Broker, trace: Path, figure: Figure
) -> None:
    service = start_rpc_service(start, broker.url, trace, is_native=False)
    # A child's calls are not compared: by kombu it shares its parent's socket.
    alike = [word for name in OUTCOMES if name != "child" for word in ("--only", name)]
    with (
        own_client(broker.url, *alike, is_native=False) as other,
        own_client(broker.url) as client,
    ):
        connected = products(broker)
        other.end()
        wait_until(lambda: by_kombu(broker) == 0, "no client has a connection by kombu", pause=0.2)
        log = client.end()
    waiting = messages(broker)
    service.stop()

    results = client.results
    assert outcomes(results) == OUTCOMES
    assert outcomes(results) == outcomes(other.results) | {"child": OUTCOMES["child"]}
    assert results["seconds of timeout"] >= 1
    assert results["seconds of monitored"] >= 10
    assert runs(trace)[3] == 2, "each cast ran once"
    assert runs(trace)[4] == 2, "each fanout ran once"
    assert connected.count("osloxide") == 1, "one connection for all of it"
    topics = ["osloxide-messaging.info", "osloxide-messagingv2.info"]
    assert waiting == dict.fromkeys(topics, 6), "three of each client, in the default queues"
    assert "go by kombu" not in log
    figure(
        f"threads of a client: {results['threads']}, by kombu {other.results['threads']}; "
        f"cleanup {results['seconds of cleanup']:.2f} s"
    )


def outcomes(results: dict[str, Any]) -> dict[str, Any]:
    """What came of each attempt, without what it took."""
    return {
        name: value
        for name, value in results.items()
        if not name.startswith("seconds of ") and name != "threads"
    }


def test_compressed_replies_of_other_peers_are_read(
    start: Start, broker: Broker, trace: Path
) -> None:
    service = start_rpc_service(start, broker.url, trace, kombu_compression="gzip")
    with own_client(broker.url, "--only", "echo") as client:
        log = client.end()
    service.stop()

    assert client.results["echo"] is True
    assert "go by kombu" not in log


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("kombu_compression=gzip", "kombu_compression = gzip"),
        ("ssl_enforce_fips_mode=true", None),
    ],
)
def test_a_setting_that_is_not_supported_goes_by_kombu_and_is_named(
    start: Start, broker: Broker, trace: Path, setting: str, named: str | None
) -> None:
    service = start_rpc_service(start, broker.url, trace, is_native=False)
    with own_client(broker.url, "--set", setting, "--only", "echo") as client:
        connected = products(broker)
        log = client.end()
    service.stop()

    assert client.results["echo"] is True
    if named is None:  # it means nothing without TLS
        assert "go by kombu" not in log
    else:
        assert f"messages go by kombu: the native client has no {named}" in log
        assert "osloxide" not in connected


def test_a_refused_login_ends_as_with_kombu_and_is_logged(broker: Broker) -> None:
    url = broker.url.replace("osloxide:osloxide@", "osloxide:wrong@")
    with own_client(url, "--only", "echo") as client:
        log = client.end()

    assert client.results["echo"] == "AccessRefused"
    assert "the native client is refused" in log
    assert "ACCESS_REFUSED" in log


def test_deployed_settings_of_queues_are_declared_as_kombu_declares_them(
    start: Start, own_broker: Broker, trace: Path, tmp_path: Path
) -> None:
    settings = {
        "use_queue_manager": "true",
        "hostname": "here",
        "processname": "rpc_client",
        "rabbit_quorum_queue": "true",
        "rabbit_transient_quorum_queue": "true",
        "rabbit_transient_queues_ttl": "900",
        "rabbit_qos_prefetch_count": "1",
        "rabbit_stream_fanout": "true",
    }
    lines = [f"{name} = {value}" for name, value in settings.items()]
    locks = ["[oslo_concurrency]", f"lock_path = {tmp_path}"]
    (tmp_path / "config").write_text("\n".join(["[oslo_messaging_rabbit]", *lines, *locks, ""]))
    config = options({"config": str(tmp_path / "config")})
    service = start_rpc_service(start, own_broker.url, trace, config=str(tmp_path / "config"))
    with own_client(own_broker.url, *config, "--only", "echo") as client:
        listed = own_broker.control("list_queues", "name", "durable", "arguments")
        client.end()
    service.stop()

    assert client.results["echo"] is True
    replies = [line for line in listed.splitlines() if "reply_here:rpc_client" in line]
    assert len(replies) == 1, listed
    assert "true" in replies[0]
    assert '{"x-queue-type","quorum"}' in replies[0]
    assert '{"x-expires",900000}' in replies[0]


def test_64_callers_share_a_connection_and_lose_and_double_nothing(
    start: Start, broker: Broker, trace: Path
) -> None:
    service = start_rpc_service(start, broker.url, trace, threads=16, is_native=False)
    senders = Senders(broker.url, "call", 64, [], is_native=True)
    try:
        senders.wait_more(1000)
        connected = products(broker)
        report = senders.stop()
    finally:
        senders.kill()
    service.stop()

    assert connected.count("osloxide") == 1
    assert report["failures"] == {}
    assert set(report["sent"]) <= set(runs(trace))
    assert set(runs(trace).values()) == {1}


def test_closed_connections_lose_and_double_no_completed_call(
    start: Start, own_broker: Broker, trace: Path, figure: Figure
) -> None:
    service = start_rpc_service(start, own_broker.url, trace)
    senders = Senders(own_broker.url, "call", 16, [], is_native=True)
    try:
        report = senders.through(own_broker.close_connections, 3, more=200)
    finally:
        senders.kill()
    service.stop()

    words, doubled = became_of_calls(report, trace)
    figure(f"connections closed three times, 16 callers: {words}")
    assert report["failures"] == {}
    # A request whose confirm is lost with its connection is sent again, as by kombu; one for each
    # caller and cut.
    assert len(doubled) <= 3 * 16


def test_calls_go_on_after_a_crash_of_the_broker(
    start: Start, own_broker: Broker, trace: Path, figure: Figure
) -> None:
    callers = 40
    services = [start_rpc_service(start, own_broker.url, trace) for _ in range(2)]
    senders = Senders(own_broker.url, "call", callers, [], is_native=True)
    try:
        senders.wait_more(200)
        own_broker.kill_server()
        own_broker.start_server()
        senders.wait_more(200)
        report = senders.stop()
    finally:
        senders.kill()
    for service in services:
        service.stop()

    words, doubled = became_of_calls(report, trace)
    figure(f"crash of the broker, {callers} callers: {words}")
    check_that_each_caller_lost_one_at_most(report, callers)
    assert len(doubled) <= callers


def test_calls_wait_for_a_broker_that_is_away_for_longer_than_their_timeout(
    start: Start, own_broker: Broker, trace: Path, figure: Figure
) -> None:
    callers, timeout = 8, 3
    service = start_rpc_service(start, own_broker.url, trace)
    senders = Senders(own_broker.url, "call", callers, [], is_native=True, timeout=timeout)
    try:
        senders.wait_more(100)
        own_broker.kill_server()
        # Attempts begin 0, 1, 4 and 9 s after the first: several timeouts.
        attempts = "Connection failed"
        wait_until(lambda: senders.log().count(attempts) >= 4, "four attempts to connect", 60)
        own_broker.start_server()
        senders.wait_more(100)
        report = senders.stop()
    finally:
        senders.kill()
    service.stop()

    words, doubled = became_of_calls(report, trace)
    figure(f"broker away for three timeouts of {timeout} s, {callers} callers: {words}")
    # All that had not been taken was sent when it was back.
    check_that_each_caller_lost_one_at_most(report, callers)
    assert len(doubled) <= callers


@pytest.mark.parametrize("is_native", [True, False])
def test_calls_go_on_after_their_exchange_was_deleted(
    start: Start, own_broker: Broker, trace: Path, figure: Figure, *, is_native: bool
) -> None:
    service = start_rpc_service(start, own_broker.url, trace)
    senders = Senders(own_broker.url, "call", 4, [], is_native=is_native)

    def delete_exchange() -> None:
        address = f"127.0.0.1:{own_broker.port}"
        with amqp.Connection(address, userid=USER, password=PASSWORD) as connection:
            connection.channel().exchange_delete("openstack")

    try:
        for _ in range(3):
            senders.wait_more(100)
            delete_exchange()
        senders.wait_more(100)
        log = senders.log()
        report = senders.stop()
    finally:
        senders.kill()
    service.stop()

    words, doubled = became_of_calls(report, trace)
    figure(f"exchange deleted three times, 4 callers: {words}")
    assert 'had lost its binding to queue "osloxide-test"' in log
    # What is unconfirmed on the channel that the broker closes is sent again; one for each caller.
    assert report["failures"] == {}, log
    assert len(doubled) <= 3 * 4


def test_requests_wait_for_a_broker_that_takes_nothing(
    start: Start, own_broker: Broker, trace: Path
) -> None:
    service = start_rpc_service(start, own_broker.url, trace)
    senders: list[Senders] = []

    def is_blocked() -> bool:
        listed = own_broker.control("list_connections", "state", "client_properties")
        return any(
            line.startswith("blocked") and '"osloxide"' in line for line in listed.splitlines()
        )

    try:
        for kind in ("call", "cast"):
            senders.append(Senders(own_broker.url, kind, 4, [], is_native=True))
            senders[-1].wait_more(50)
        own_broker.control("set_vm_memory_high_watermark", "absolute", "1MB")
        wait_until(is_blocked, "a client's connection is blocked", 60)
        own_broker.control("set_vm_memory_high_watermark", "absolute", "1GB")
        for each in senders:
            each.wait_more(50)
        reports = [each.stop() for each in senders]
    finally:
        for each in senders:
            each.kill()
    sent = Counter(number for report in reports for number in report["sent"])
    wait_until(lambda: runs(trace) >= sent, "what was sent has run", 60)
    service.stop()

    assert [report["failures"] for report in reports] == [{}, {}]
    assert runs(trace) == sent, "each ran once"


@pytest.mark.parametrize("url", ["127.0.0.1", "localhost"])
def test_tls_with_a_client_certificate(
    start: Start, strict_broker: StrictBroker, trace: Path, url: str
) -> None:
    settings = TRUST | IDENTITY
    service = start_rpc_service(start, strict_broker.url, trace, is_native=False, **settings)
    address = strict_broker.url.replace("127.0.0.1", url)
    with own_client(address, *options(settings), "--only", "echo", "--only", "large") as client:
        connected = products(strict_broker)
        log = client.end()
    service.stop()

    assert client.results["echo"] is True
    assert client.results["large"] == 400_000
    assert connected.count("osloxide") == 1
    assert "go by kombu" not in log


def test_a_certificate_that_is_not_trusted_is_not_taken(
    start: Start, strict_broker: StrictBroker, tmp_path: Path
) -> None:
    settings = IDENTITY | {"ssl": "true", "ssl_ca_file": str(CERTIFICATES / "client.crt")}
    argv = [sys.executable, str(APPS / "rpc_client.py"), strict_broker.url, *options(settings)]
    client = start(argv, tmp_path / "client.log", client_environment(is_native=True))

    # kombu has the last word, and tries again for ever.
    client.wait_log("the native client is refused: .*TLS handshake: invalid peer certificate")
    client.wait_log("CERTIFICATE_VERIFY_FAILED")
    client.kill()
