"""Fanouts over RabbitMQ whose exchange an operator deletes beneath clients and servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import amqp
import pytest
from waiting import wait_until

from services.conftest import Figure, Start, running
from services.infra import PASSWORD, USER, Broker
from services.rpc import TOPIC, Senders, runs, start_rpc_service

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    """One that keeps no other test's queues."""
    yield from running(Broker)


def delete_exchange(broker: Broker) -> None:
    """That of the fanouts."""
    address = f"127.0.0.1:{broker.port}"
    with amqp.Connection(address, userid=USER, password=PASSWORD) as connection:
        connection.channel().exchange_delete(f"{TOPIC}_fanout")


@pytest.mark.parametrize("is_native", [False, True], ids=["kombu", "native"])
def test_servers_get_fanouts_again_after_their_exchange_was_deleted(
    start: Start, own_broker: Broker, tmp_path: Path, figure: Figure, *, is_native: bool
) -> None:
    traces = [tmp_path / "one", tmp_path / "two"]
    services = [
        start_rpc_service(start, own_broker.url, trace, is_native=is_native) for trace in traces
    ]
    senders = Senders(own_broker.url, "fanout", 1, [], is_native=is_native)

    def reach_all() -> bool:
        """Both servers have got one that was sent after this was asked."""
        after = senders.count + 20  # it is told now and then
        wait_until(lambda: senders.count > after + 20, "more are sent", 60)
        return all(max(runs(trace), default=-1) > after for trace in traces)

    try:
        wait_until(reach_all, "both servers are there", 60)
        before = senders.count
        delete_exchange(own_broker)
        wait_until(reach_all, "both servers are there again", 120)
        report = senders.stop()
    finally:
        senders.kill()
    for service in services:
        service.stop()

    sent = set(report["sent"])
    missed = [sorted(sent - set(runs(trace))) for trace in traces]
    figure(
        f"{len(sent)} sent, failed {report['failures']}, missed {[len(one) for one in missed]} "
        f"between {before} and {max(max(one, default=0) for one in missed)}"
    )
    assert all(set(runs(trace).values()) == {1} for trace in traces)
    assert report["failures"].keys() <= {"MessageDeliveryFailure"}
    assert sum(report["failures"].values()) <= 1, "of the channel that the broker closes"
