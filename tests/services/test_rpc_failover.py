"""Consumers whose URL names three hosts, of which one alone is up: they find it, whichever it is.

All three are one broker behind wires, so that nothing is told but how a connection comes back. With
OSLOXIDE_LONG=1, under load, those are told apart that wait for replies, for requests and for
notifications: each reads in a way of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.conftest import Figure, Start
from services.infra import PASSWORD, USER, Broker
from services.rpc import FLAGS, Senders, runs, start_rpc_service
from services.subject import APPS, IS_LONG, IS_STOCK, clean_environment
from services.wire import Wire

pytestmark = pytest.mark.timeout(600)


class Hosts:
    """Three addresses of one broker."""

    def __init__(self, broker: Broker) -> None:
        self.wires = [Wire(broker.port) for _ in range(3)]

    @property
    def url(self) -> str:
        hosts = (f"{USER}:{PASSWORD}@127.0.0.1:{wire.port}" for wire in self.wires)
        return f"rabbit://{','.join(hosts)}//"

    def leave(self, survivor: Wire, *, is_hung: bool) -> None:
        """Have *survivor* alone up."""
        survivor.mend()
        for wire in self.wires:
            if wire is not survivor:
                wire.mend()
                wire.break_down(is_hung=is_hung)

    def close(self) -> None:
        for wire in self.wires:
            wire.close()


@pytest.fixture
def hosts(broker: Broker) -> Iterator[Hosts]:
    hosts = Hosts(broker)
    yield hosts
    hosts.close()


@pytest.mark.parametrize("further", [1, 2])
def test_the_next_hosts_are_tried_one_by_one_however_short_the_time(
    hosts: Hosts, further: int
) -> None:
    with subprocess.Popen(
        [sys.executable, str(APPS / "rpc_consume.py"), hosts.url, *FLAGS],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=clean_environment(),
    ) as consumer:  # fmt: skip
        assert consumer.stdout is not None
        ports = json.loads(consumer.stdout.readline())
        (survivor,) = (wire for wire in hosts.wires if wire.port == ports[further])
        hosts.leave(survivor, is_hung=False)
        text, log = consumer.communicate("\n", timeout=120)

    assert consumer.returncode == 0, log
    assert json.loads(text)["port"] == survivor.port, log


@pytest.mark.skipif(not IS_LONG, reason="a minute for each (OSLOXIDE_LONG=1)")
@pytest.mark.parametrize("fault", ["down", "hung"])
@pytest.mark.parametrize("consumer", ["replies", "requests", "notifications"])
def test_a_consumer_finds_the_one_host_that_is_up(
    start: Start,
    broker: Broker,
    hosts: Hosts,
    trace: Path,
    figure: Figure,
    consumer: str,
    fault: str,
) -> None:
    # The other side reaches the broker itself.
    servers = hosts.url if consumer == "requests" else broker.url
    clients = broker.url if consumer == "requests" else hosts.url
    service = start_rpc_service(start, servers, trace)
    kind = "notification" if consumer == "notifications" else "call"
    senders = Senders(clients, kind, 4, [])
    try:
        for survivor in hosts.wires:
            senders.wait_more(20)
            hosts.leave(survivor, is_hung=fault == "hung")
        senders.wait_more(20)
        for wire in hosts.wires:
            wire.mend()
        report = senders.stop()
    finally:
        senders.kill()
    service.stop()

    figure(
        f"{len(report['sent'])} answered or received, failed {report['failures']}, "
        f"slowest {report['slowest']:.1f} s"
    )
    if not IS_STOCK:
        assert report["failures"] == {}
    if kind == "call":
        assert set(report["sent"]) <= set(runs(trace))
