"""RPC over RabbitMQ when the broker closes the channel and leaves the connection open."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from services.conftest import Start, running
from services.infra import Broker
from services.processes import RunningService
from services.rpc import TOPIC, became_of_casts, client_of, runs, start_rpc_service

pytestmark = pytest.mark.timeout(480)  # several waits of up to 90 s, one after the other

Serve = Callable[..., RunningService]
Cast = Callable[..., None]

CLOSED = "the broker closed the channel of a listener"
EARLY = "acknowledged before it runs"


@pytest.fixture(scope="module")
def impatient_broker() -> Iterator[Broker]:
    """One that closes a channel over a delivery that was not acknowledged for a few seconds."""
    for broker in running(Broker):
        broker.control(
            "eval",
            "application:set_env(rabbit,consumer_timeout,4000),"
            "application:set_env(rabbit,channel_tick_interval,1000).",
        )
        yield broker


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """What requests wait for: no test depends on how long they take."""
    return tmp_path / "gate"


@pytest.fixture
def serve(start: Start, impatient_broker: Broker, trace: Path) -> Serve:
    def run(threads: int, **settings: int | str) -> RunningService:
        return start_rpc_service(start, impatient_broker.url, trace, threads=threads, **settings)

    return run


@pytest.fixture
def cast(impatient_broker: Broker) -> Iterator[Cast]:
    """Sends the request of that number, which runs until there is that file."""
    with client_of(impatient_broker.url) as client:

        def send(number: int, after: Path | None = None) -> None:
            client.cast({}, "work", number=number, seconds=0, after=str(after or ""))

        yield send


def begun(trace: Path) -> set[str]:
    return set(trace.with_name(f"{trace.name}.begun").read_text().split())


def test_a_channel_closed_over_waiting_requests_runs_each_once(
    serve: Serve,
    cast: Cast,
    trace: Path,
    gate: Path,
    figure: Callable[[str], None],
) -> None:
    service = serve(2)
    for number in (0, 1):
        cast(number, gate)
    wait_until(lambda: len(begun(trace)) == 2, "both threads are busy", 90)
    for number in range(2, 6):
        cast(number)
    for line in (CLOSED, EARLY):
        service.wait_log(line, within=90)
    gate.touch()

    wait_until(lambda: set(runs(trace)) == set(range(6)), "everything has run", 90)
    service.stop()

    closed = service.text().count(CLOSED)
    figure(f"consumer_timeout, channel closed {closed} times: {became_of_casts(6, trace)}")
    assert set(runs(trace).values()) == {1}
    assert "is not known" not in service.text()


def test_no_more_are_acknowledged_while_they_wait_than_may_be_fetched(
    serve: Serve, cast: Cast, trace: Path, gate: Path, figure: Callable[[str], None]
) -> None:
    requests = 16
    service = serve(2)
    for number in (0, 1):
        cast(number, gate)
    wait_until(lambda: len(begun(trace)) == 2, "both threads are busy", 90)
    for number in range(2, requests):
        cast(number)

    def early() -> int:
        return service.text().count(EARLY)

    def closed() -> int:
        return service.text().count(CLOSED)

    # By the first closure a server learns of the timeout; each later one is of what it has left.
    wait_until(lambda: early() > 2 or closed() >= 3, "the broker's patience is over again", 150)
    most = early()
    gate.touch()
    wait_until(lambda: set(runs(trace)) == set(range(requests)), "everything has run", 120)
    service.stop()

    figure(f"{most} acknowledged early, channel closed {closed()} times")
    assert most == 2, "as many as may be fetched"
    assert "2 requests are acknowledged and wait for a thread; no more are" in service.text()
    assert set(runs(trace).values()) == {1}


def fetched(broker: Broker) -> list[int]:
    """Messages that were fetched and are not acknowledged, channel by channel."""
    listed = broker.control("-s", "list_channels", "messages_unacknowledged")
    return [int(line) for line in listed.splitlines()]


def consumers(broker: Broker) -> int:
    """Who takes requests."""
    listed = broker.control("-s", "list_queues", "name", "consumers")
    queues = dict(line.split() for line in listed.splitlines())
    return int(queues[TOPIC])


def test_after_a_closed_channel_a_server_fetches_no_more_than_it_can_run(
    serve: Serve, cast: Cast, trace: Path, gate: Path, impatient_broker: Broker
) -> None:
    later = gate.with_name("later")
    first = serve(2)
    for number in (0, 1):
        cast(number, gate)
    wait_until(lambda: len(begun(trace)) == 2, "both threads are busy", 90)
    for number in (2, 3):
        cast(number)
    first.wait_log(CLOSED, within=90)
    gate.touch()
    wait_until(lambda: set(runs(trace)) == set(range(4)), "everything has run", 90)
    # Before there is work: where one waits for long, the first acknowledges it and fetches another.
    second = serve(2)
    for number in range(100, 140):
        cast(number, later)
    wait_until(lambda: len(begun(trace)) == 8, "both are at work", 90)
    most = max(fetched(impatient_broker))
    later.touch()
    wait_until(lambda: len(runs(trace)) == 44, "the rest has run", 90)
    first.stop()
    second.stop()

    assert set(runs(trace).values()) == {1}
    assert len(begun(trace)) == 44
    # Those that run are acknowledged, and so are others that have waited for long.
    assert most <= 2, "as many as there are threads, on a channel that was opened again too"


def test_a_request_that_was_acknowledged_while_it_waited_outlives_a_stop(
    serve: Serve, cast: Cast, trace: Path, gate: Path, impatient_broker: Broker
) -> None:
    service = serve(1)
    cast(0, gate)
    wait_until(lambda: len(begun(trace)) == 1, "the thread is busy", 90)
    cast(1)
    service.wait_log(EARLY, within=90)

    service.signal(signal.SIGTERM)
    wait_until(lambda: consumers(impatient_broker) == 0, "it takes no more requests", 60)
    gate.touch()

    assert service.wait_exit(60) == 0
    assert set(runs(trace)) == {0, 1}
