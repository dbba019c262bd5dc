"""Replies that a broker takes late, or never."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import oslo_messaging
import pytest
from waiting import wait_until

from services.conftest import Start, running
from services.infra import Broker
from services.processes import RunningService
from services.rpc import TOPIC, became_of_casts, client_of, runs, start_rpc_service
from services.subject import IS_NATIVE, clean_environment

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def small_broker() -> Iterator[Broker]:
    """One that takes messages of up to 16 MiB, and whose memory alarm is raised here at will."""
    for broker in running(Broker):
        broker.control("eval", f"application:set_env(rabbit,max_message_size,{16 * MIB}).")
        yield broker


@pytest.fixture
def service(start: Start, small_broker: Broker, trace: Path) -> RunningService:
    return start_rpc_service(start, small_broker.url, trace, threads=8)


@pytest.fixture
def client(small_broker: Broker) -> Iterator[Any]:
    with client_of(small_broker.url) as client:
        yield client


def test_a_reply_that_the_broker_refuses_becomes_an_error_of_the_call(
    service: RunningService, client: Any
) -> None:
    with pytest.raises(oslo_messaging.RemoteError, match="refused by the broker"):
        client.prepare(timeout=50).call({}, "large", size=20 * MIB)

    assert client.prepare(timeout=50).call({}, "echo", what="next") == "next"
    service.stop()
    assert service.text().count("is refused by the broker") == 1


def test_replies_beside_those_that_the_broker_refuses_are_sent(
    service: RunningService, client: Any, figure: Callable[[str], None]
) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(14) as callers:
        call = client.prepare(timeout=50).call
        large = [callers.submit(call, {}, "large", size=20 * MIB) for _ in range(6)]
        small = [callers.submit(call, {}, "echo", what=str(n)) for n in range(8)]
        assert [answer.result() for answer in small] == [str(n) for n in range(8)]
        answered = time.monotonic() - began
        refused = [str(answer.exception()) for answer in large]
    service.stop()

    assert all("refused by the broker" in text for text in refused), refused
    figure(f"6 replies of 20 MiB beside 8 small ones: all answered after {answered:.1f} s")


def test_large_replies_that_wait_for_the_broker_hold_up_no_request(
    service: RunningService,
    client: Any,
    small_broker: Broker,
    trace: Path,
    figure: Callable[[str], None],
) -> None:
    gate = trace.with_name("gate")
    with ThreadPoolExecutor(3) as callers:
        calls = [
            callers.submit(
                client.prepare(timeout=120).call, {}, "large", size=8 * MIB, after=str(gate)
            )
            for _ in range(3)
        ]
        begun = trace.with_name(f"{trace.name}.large")
        wait_until(lambda: begun.exists() and len(begun.read_text()) == 3, "the calls run", 30)
        for number in range(40):
            client.cast({}, "work", number=number, seconds=2)
        small_broker.control("set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            gate.touch()
            wait_until(lambda: set(runs(trace)) == set(range(40)), "every cast has run", 60)
            assert not any(call.done() for call in calls)
        finally:
            small_broker.control("set_vm_memory_high_watermark", "absolute", "1GB")
        assert [len(call.result()) for call in calls] == [8 * MIB] * 3
    service.stop()
    figure(f"memory alarm under 3 replies of 8 MiB: {became_of_casts(40, trace)}; 3 answered")
    assert set(runs(trace).values()) == {1}


CLIENT = """
import sys
from osloxide.activation import import_hook
import_hook.install()
from oslo_service import backend
backend.init_backend(backend.BackendType.THREADING)
import oslo_messaging
from oslo_config import cfg
from osloxide.messaging.rabbit import reply_waiter

reply_waiter.LONGEST_SLEEP = 3600.0
conf = cfg.CONF
conf([], project="client")
transport = oslo_messaging.get_rpc_transport(conf, url=sys.argv[1])
conf.set_override("heartbeat_timeout_threshold", 0, "oslo_messaging_rabbit")
target = oslo_messaging.Target(topic=sys.argv[2])
client = oslo_messaging.get_rpc_client(transport, target, timeout=50)
assert client.call({}, "echo", what="x") == "x"
thread = transport._driver._waiter._thread
transport.cleanup()
print(thread.is_alive())
"""


@pytest.mark.skipif(IS_NATIVE, reason="without kombu there is no such thread")
def test_closing_a_transport_wakes_the_thread_that_waits_for_replies(
    service: RunningService, small_broker: Broker
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, small_broker.url, TOPIC],
        env=clean_environment(), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip

    assert done.stdout == "False\n", done.stderr  # or an hour later
    service.stop()
