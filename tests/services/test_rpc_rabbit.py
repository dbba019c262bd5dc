"""RPC over a real RabbitMQ: what was accepted is run once, and nobody waits for the dead."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu
import oslo_messaging
import pytest
from oslo_config import cfg
from oslo_messaging import conffixture

from services.infra import Broker
from services.processes import RunningService, held, until
from services.subject import SUBJECT, clean_environment

APP = Path(__file__).parent / "apps" / "rpc_service.py"
TOPIC = "osloxide-test"
STOCK = SUBJECT == "stock"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace"
    path.touch()
    return path


@pytest.fixture
def serve(
    start: Callable[..., RunningService], broker: Broker, trace: Path, tmp_path: Path
) -> Callable[..., RunningService]:
    """Start one RPC service and wait until it listens."""
    started = []

    def run(threads: int, *settings: str) -> RunningService:
        argv = [sys.executable, str(APP), broker.url, str(trace), str(threads)]
        argv += [word for setting in settings for word in ("--set", setting)]
        log = tmp_path / f"service-{len(started)}.log"
        service = start(argv + (["--stock"] if STOCK else []), log, clean_environment())
        started.append(service)
        service.wait_log("^READY")
        return service

    return run


@pytest.fixture
def client(broker: Broker) -> Iterator[Any]:
    fixture = conffixture.ConfFixture(cfg.CONF)
    cfg.CONF([])
    fixture.setUp()
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=broker.url)
    yield oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic=TOPIC))
    transport.cleanup()
    fixture.cleanUp()
    cfg.CONF.reset()


def runs(trace: Path) -> Counter[int]:
    """How often each request has run to its end."""
    return Counter(int(line) for line in trace.read_text().split())


def test_sigterm_with_a_backlog_loses_and_doubles_no_cast(
    serve: Callable[..., RunningService],
    client: Any,
    trace: Path,
    figure: Callable[[str], None],
) -> None:
    casts, seconds, threads = 600, 0.1, 8
    first, second = serve(threads), serve(threads)
    for number in range(casts):
        client.cast({}, "work", number=number, seconds=seconds)

    first.signal(signal.SIGTERM)
    status = first.wait_exit(20)
    expected = set(range(casts))
    until("every cast has run", lambda: set(runs(trace)) == expected, casts * seconds)
    second.stop()

    done = runs(trace)
    figure(f"{casts} casts, SIGTERM to one of two: {casts - len(done)} lost, "
           f"{sum(n > 1 for n in done.values())} doubled, exit {status}")  # fmt: skip
    assert status == 0
    assert set(done) == expected
    assert max(done.values()) == 1


def test_kill9_loses_at_most_what_was_running(
    serve: Callable[..., RunningService],
    client: Any,
    trace: Path,
    figure: Callable[[str], None],
) -> None:
    casts, seconds, threads = 300, 0.05, 4
    first, second = serve(threads), serve(threads)
    for number in range(casts):
        client.cast({}, "work", number=number, seconds=seconds)
    until("both are at work", lambda: len(runs(trace)) > 2 * threads, 30)

    first.kill()
    until("the rest has run", lambda: len(runs(trace)) >= casts - threads, casts * seconds + 30)
    client.prepare(timeout=60).call({}, "work", number=-1, seconds=0)  # behind everything else
    second.stop()

    done = runs(trace)
    lost = set(range(casts)) - set(done)
    figure(f"{casts} casts, kill -9 of one of two with {threads} threads: {len(lost)} lost")
    assert len(lost) <= threads
    assert max(done.values()) == 1


def test_calls_are_answered_while_the_pool_is_full_of_casts(
    serve: Callable[..., RunningService], client: Any
) -> None:
    service = serve(2)
    for number in range(20):
        client.cast({}, "work", number=number, seconds=0.05)

    assert client.prepare(timeout=60).call({}, "work", number=99, seconds=0) == 99

    service.stop()


def test_a_vanished_client_does_not_hold_up_the_others(
    serve: Callable[..., RunningService],
    broker: Broker,
    client: Any,
    trace: Path,
    figure: Callable[[str], None],
) -> None:
    service = serve(1)
    gone = subprocess.Popen(
        [sys.executable, "-c", VANISHING_CLIENT, broker.url, TOPIC],
        stdout=subprocess.PIPE, text=True, env=clean_environment(),
    )  # fmt: skip
    assert gone.stdout is not None
    reply_queue = gone.stdout.readline().strip()
    assert reply_queue.startswith("reply_")
    begun = trace.with_name(f"{trace.name}.begun")
    until("the call is at work", lambda: "7" in begun.read_text().split(), 30)
    gone.kill()
    gone.wait()
    gone.stdout.close()
    with kombu.Connection(broker.url.replace("rabbit:", "amqp:")) as connection:
        connection.default_channel.queue_delete(reply_queue)
    until("the orphaned call has run", lambda: 7 in runs(trace), 30)

    # Far below the 60 s for which oslo.messaging retries such a reply in the endpoint's thread.
    answer = client.prepare(timeout=20).call({}, "work", number=8, seconds=0)

    figure("the only thread answered the next client at once, not after the retries")
    assert answer == 8
    service.stop()


VANISHING_CLIENT = """
import sys, threading, oslo_messaging
from oslo_config import cfg
cfg.CONF([])
transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=sys.argv[1])
client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic=sys.argv[2]))
threading.Thread(target=client.call, args=({}, "work"), kwargs={"number": 7, "seconds": 3},
                 daemon=True).start()
while transport._driver._reply_q is None:
    threading.Event().wait(0.01)
print(transport._driver._reply_q, flush=True)
threading.Event().wait()
"""


def test_an_idle_service_stops_at_once(
    serve: Callable[..., RunningService], figure: Callable[[str], None]
) -> None:
    service = serve(4)
    # Stock doubles the sleep of its poll up to 5 s, and only then looks whether it was stopped.
    size = service.mark()
    held("the service is idle", lambda: service.mark() == size, 11)

    service.signal(signal.SIGTERM)

    assert service.wait_exit(3) == 0
    figure("an idle RPC service left without finishing a poll")


def test_heartbeats_survive_an_endpoint_that_holds_the_interpreter(
    serve: Callable[..., RunningService],
    broker: Broker,
    client: Any,
    figure: Callable[[str], None],
) -> None:
    heartbeat, frozen = 4, 14
    service = serve(4, f"heartbeat_timeout_threshold={heartbeat}")
    # Connections for replies are made on demand: have one that is idle while the freeze lasts.
    assert client.prepare(timeout=20).call({}, "work", number=1, seconds=0) == 1
    mark = broker.log_size()

    answer = client.prepare(timeout=60).call({}, "freeze", seconds=frozen)
    after = client.prepare(timeout=20).call({}, "work", number=2, seconds=0)

    missed = broker.log(mark).count("missed heartbeats from client")
    figure(f"{frozen} s without the interpreter at a heartbeat of {heartbeat} s: "
           f"{missed} connections closed by the broker")  # fmt: skip
    assert (answer, after) == (frozen, 2)
    assert missed == 0
    assert "Too many heartbeats missed" not in service.text()
    service.stop()
