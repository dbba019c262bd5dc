"""RPC over a cluster of three RabbitMQ nodes, one of which is killed, hangs, or is cut off.

Quorum queues, so that no node takes a queue along. Each fault runs several times, with
OSLOXIDE_LONG=1 alone. With OSLOXIDE_SUBJECT=stock the same runs on unchanged oslo.messaging; each
run prints its counts (docs/rpc.md has them, and what has not been explained).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from services.conftest import Figure, Start
from services.infra import Broker, Cluster
from services.partition import MissingNetworkError, Network
from services.processes import RunningService
from services.rpc import TOPIC, Senders, options, runs, start_rpc_service
from services.subject import IS_STOCK

RUNS = range(10)
HANG = 30.0
"""Seconds: less than the 60 after which the other nodes count a silent one as dead."""
SETTINGS = {"rabbit_quorum_queue": "true", "rabbit_transient_quorum_queue": "true"}
CALLERS = 8

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        os.environ.get("OSLOXIDE_LONG") != "1", reason="ten minutes (OSLOXIDE_LONG=1)"
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(3)
    yield cluster
    cluster.stop()


class Calls:
    """Two servers and callers without a pause, over all nodes."""

    def __init__(self, start: Start, cluster: Cluster, trace: Path, *, is_native: bool) -> None:
        self.trace = trace
        self.servers: list[RunningService] = [
            start_rpc_service(start, cluster.url, trace, threads=4, **SETTINGS) for _ in range(2)
        ]
        self.senders = Senders(cluster.url, "call", CALLERS, options(SETTINGS), is_native=is_native)
        self.senders.wait_more(100)

    def end(self, what: str, figure: Figure) -> None:
        """End the load and check that no call that was answered is missing."""
        self.senders.wait_more(100)
        report = self.senders.stop()
        for server in self.servers:
            server.stop()
        done = runs(self.trace)
        failed = sum(report["failures"].values())
        figure(
            f"{len(report['sent'])} calls, {what}: {failed} failed {report['failures'] or ''}, "
            f"{sum(times > 1 for times in done.values())} doubled, "
            f"slowest {report['slowest']:.1f} s"
        )
        assert set(report["sent"]) <= set(done)
        assert failed <= CALLERS


@pytest.fixture(params=["kombu"] if IS_STOCK else ["kombu", "native"])
def calls(
    request: pytest.FixtureRequest, start: Start, cluster: Cluster, trace: Path
) -> Iterator[Calls]:
    calls = Calls(start, cluster, trace, is_native=request.param == "native")
    yield calls
    calls.senders.kill()


@pytest.mark.parametrize("run", RUNS)
def test_a_node_that_is_killed_stops_no_calls(
    calls: Calls, cluster: Cluster, figure: Figure, run: int
) -> None:
    node = cluster.nodes[run % 3]
    node.kill_server()
    try:
        calls.senders.wait_more(300)
    finally:
        node.start_server()
    calls.end(f"kill -9 of node {run % 3 + 1} of 3", figure)


@pytest.mark.parametrize("run", RUNS)
def test_a_node_that_hangs_stops_no_calls(
    calls: Calls, cluster: Cluster, figure: Figure, run: int
) -> None:
    node = cluster.nodes[run % 3]
    node.signal_server(signal.SIGSTOP)
    try:
        time.sleep(HANG)  # the fault itself, no wait for something
    finally:
        node.signal_server(signal.SIGCONT)
    wait_until(node.accepts_connections, "the node accepts connections again", 60)
    calls.end(f"SIGSTOP of node {run % 3 + 1} of 3", figure)


class Divided:
    """A cluster of three whose nodes can be cut off from each other, and from no client."""

    def __init__(self, handling: str, tick: int) -> None:
        self.tick = tick
        self.network = Network(3)
        lines = f"cluster_partition_handling = {handling}", f"net_ticktime = {tick}"
        try:
            self.cluster = Cluster(3, "", *lines, places=self.network.places)
        except BaseException:
            self.network.remove()
            raise

    def position(self, whose: str) -> int:
        """The number of the node that a program is connected with, or that leads the queue."""
        nodes = self.cluster.nodes
        ask = nodes[0].control
        if whose == "queue":
            listed = ask("-q", "list_queues", "name", "leader").splitlines()
            leader = next(line.split()[1] for line in listed if line.split()[0] == TOPIC)
            return [node.node for node in nodes].index(leader)
        listed = ask("-q", "list_connections", "port", "client_properties").splitlines()
        port = next(line.split()[0] for line in listed if f"rpc_{whose}.py" in line)
        return [str(node.port) for node in nodes].index(port)

    def knows(self, node: Broker, other: Broker) -> bool:
        """Whether *node* has a connection to *other*."""
        return other.node in node.control("eval", "nodes().")

    def stop(self) -> None:
        self.cluster.stop()
        self.network.remove()


@pytest.fixture(
    scope="module",
    params=[("pause_minority", 15), ("pause_minority", 60), ("autoheal", 60), ("ignore", 60)],
    ids=lambda chosen: f"{chosen[0]}, {chosen[1]} s",
)
def divided(request: pytest.FixtureRequest) -> Iterator[Divided]:
    try:
        divided = Divided(*request.param)
    except MissingNetworkError as error:
        pytest.skip(str(error))
    yield divided
    divided.stop()


@pytest.fixture(params=["kombu"] if IS_STOCK else ["kombu", "native"])
def divided_calls(
    request: pytest.FixtureRequest, start: Start, divided: Divided, trace: Path
) -> Iterator[Calls]:
    calls = Calls(start, divided.cluster, trace, is_native=request.param == "native")
    yield calls
    calls.senders.kill()


@pytest.mark.parametrize("whose", ["load", "service", "queue"])
def test_the_node_of_a_program_or_a_queue_that_is_cut_off_stops_no_calls(
    divided_calls: Calls, divided: Divided, figure: Figure, whose: str
) -> None:
    nodes = divided.cluster.nodes
    number = divided.position(whose)
    node, other = nodes[number], nodes[number - 1]
    divided.network.cut(number)
    try:
        wait_until(
            lambda: not divided.knows(other, node), "the others miss the node", 120, pause=0.5
        )
        divided_calls.senders.wait_more(300)
    finally:
        divided.network.join(number)
    wait_until(lambda: divided.knows(other, node), "the others know it again", 120, pause=0.5)
    wait_until(node.accepts_connections, "the node accepts connections again", 120)
    divided_calls.end(f"the node of the {whose} cut off", figure)
