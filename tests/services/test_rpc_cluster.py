"""RPC over a cluster of three RabbitMQ nodes, one of which is killed or hangs.

Quorum queues, so that no node takes a queue along. Each fault runs ten times, with
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
from services.infra import Cluster
from services.processes import RunningService, accepts_connections
from services.rpc import Senders, options, runs, start_rpc_service
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
    wait_until(lambda: accepts_connections(node.port), "the node accepts connections again", 60)
    calls.end(f"SIGSTOP of node {run % 3 + 1} of 3", figure)
