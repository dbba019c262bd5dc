"""Requests that return to a quorum queue, which drops what was returned too often."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from services.conftest import Start, broker_of, running
from services.infra import Broker
from services.rpc import TOPIC, became_of_casts, client_of, runs, start_rpc_service
from services.subject import APPS, IS_STOCK, clean_environment

pytestmark = [
    pytest.mark.timeout(1500),  # the first use of a release installs it
    pytest.mark.skipif(IS_STOCK, reason="stock gives nothing back"),
]


@pytest.fixture
def newest() -> Iterator[Broker]:
    """RabbitMQ 4.3: ``basic.nack`` counts no more."""
    yield from broker_of("sid")


@pytest.fixture
def counting() -> Iterator[Broker]:
    """RabbitMQ 4.0: each return counts, and the twentieth is the last."""
    yield from broker_of("trixie")


def stops(broker: Broker, count: int) -> tuple[list[int], str]:
    """What is left of four requests after *count* stops of a server that had fetched them, and
    what it logged."""
    done = subprocess.run(
        [sys.executable, str(APPS / "rpc_returns.py"), broker.url, str(count)],
        capture_output=True, text=True, timeout=300, check=False, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    left: list[int] = json.loads(done.stdout.splitlines()[-1])["left"]
    return left, done.stderr


def test_stops_of_a_server_drop_no_request_however_many_there_are(newest: Broker) -> None:
    left, _ = stops(newest, 25)

    assert left == [0, 1, 2, 3]


def test_requests_near_the_limit_of_returns_are_logged_and_still_there(counting: Broker) -> None:
    left, log = stops(counting, 12)

    assert left == [0, 1, 2, 3]
    assert "was returned to its queue 10 times, and is dropped at 20" in log


QUORUM = {
    "rabbit_quorum_queue": True,
    "rabbit_transient_quorum_queue": True,
    "rabbit_quorum_delivery_limit": 10,
}


@pytest.fixture
def limited() -> Iterator[Broker]:
    """One of this machine's RabbitMQ."""
    yield from running(Broker)


Cast = Callable[[Iterable[int], float], None]


@pytest.fixture
def cast(limited: Broker) -> Cast:
    """Asks for *numbers* to be worked on, for *seconds* each, by a client that has left then."""

    def send(numbers: Iterable[int], seconds: float) -> None:
        with client_of(limited.url, settings=QUORUM) as client:
            for number in numbers:
                client.cast({}, "work", number=number, seconds=seconds)

    return send


def test_requests_that_lost_connections_return_to_their_queue_run_once(
    start: Start,
    limited: Broker,
    cast: Cast,
    trace: Path,
    figure: Callable[[str], None],
) -> None:
    service = start_rpc_service(start, limited.url, trace, threads=2, **QUORUM)
    cast((0, 1), 25)
    begun = trace.with_name(f"{trace.name}.begun")
    wait_until(lambda: len(begun.read_text().split()) == 2, "both threads are busy", 60)
    cast(range(2, 6), 0)

    def unsettled() -> bool:
        """The next two are fetched, and no thread takes them."""
        queues = limited.control("-q", "list_queues", "name", "messages_unacknowledged")
        return [TOPIC, "2"] in [line.split() for line in queues.splitlines()]

    closed = 0
    while closed < 6:
        # They are not there again once the first have ended.
        wait_until(lambda: bool(runs(trace)) or unsettled(), "the next two are fetched", 60)
        if runs(trace):
            break
        limited.close_connections()
        closed += 1
    wait_until(lambda: set(runs(trace)) == set(range(6)), "everything has run", 90)
    service.stop()

    figure(f"delivery limit 10, {closed} times all connections closed: {became_of_casts(6, trace)}")
    assert set(runs(trace).values()) == {1}
