"""RPC over a real RabbitMQ: what was accepted is run once, and nobody waits for the dead."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kombu
import pytest
from waiting import wait_until

from services.conftest import Figure, Start
from services.infra import Broker
from services.processes import RunningService, held
from services.rpc import TOPIC, client_of, runs, start_rpc_service
from services.subject import clean_environment

Serve = Callable[..., RunningService]


@pytest.fixture
def serve(start: Start, broker: Broker, trace: Path) -> Serve:
    def run(threads: int, **settings: int | str) -> RunningService:
        return start_rpc_service(start, broker.url, trace, threads=threads, **settings)

    return run


@pytest.fixture
def client(broker: Broker) -> Iterator[Any]:
    with client_of(broker.url) as client:
        yield client


def test_sigterm_with_a_backlog_loses_and_doubles_no_cast(
    serve: Serve,
    client: Any,
    trace: Path,
    figure: Figure,
) -> None:
    casts, seconds, threads = 600, 0.1, 8
    first, second = serve(threads), serve(threads)
    for number in range(casts):
        client.cast({}, "work", number=number, seconds=seconds)

    first.signal(signal.SIGTERM)
    status = first.wait_exit(20)
    expected = set(range(casts))
    wait_until(lambda: set(runs(trace)) == expected, "every cast has run", casts * seconds)
    second.stop()

    done = runs(trace)
    figure(f"{casts} casts, SIGTERM to one of two: {casts - len(done)} lost, "
           f"{sum(n > 1 for n in done.values())} doubled, exit {status}")  # fmt: skip
    assert status == 0
    assert set(done) == expected
    assert max(done.values()) == 1


def test_kill9_loses_at_most_what_was_running(
    serve: Serve,
    client: Any,
    trace: Path,
    figure: Figure,
) -> None:
    casts, seconds, threads = 300, 0.05, 4
    first, second = serve(threads), serve(threads)
    for number in range(casts):
        client.cast({}, "work", number=number, seconds=seconds)
    wait_until(lambda: len(runs(trace)) > 2 * threads, "both are at work", 30)

    first.kill()
    wait_until(lambda: len(runs(trace)) >= casts - threads, "the rest ran", casts * seconds + 30)
    client.prepare(timeout=60).call({}, "work", number=-1, seconds=0)  # behind everything else
    second.stop()

    done = runs(trace)
    lost = set(range(casts)) - set(done)
    figure(f"{casts} casts, kill -9 of one of two with {threads} threads: {len(lost)} lost")
    assert len(lost) <= threads
    assert max(done.values()) == 1


def test_calls_are_answered_while_the_pool_is_full_of_casts(serve: Serve, client: Any) -> None:
    service = serve(2)
    for number in range(20):
        client.cast({}, "work", number=number, seconds=0.05)

    assert client.prepare(timeout=60).call({}, "work", number=99, seconds=0) == 99

    service.stop()


@pytest.mark.parametrize(
    "settings",
    [{}, {"heartbeat_timeout_threshold": 0}, {"kombu_compression": "gzip"}],
    ids=["usual", "without heartbeats", "compressed"],
)
def test_requests_of_every_size_come_back_as_they_were_sent(
    serve: Serve, client: Any, settings: dict[str, int | str]
) -> None:
    service = serve(4, **settings)
    for name, value in settings.items():
        client.transport.conf.set_override(name, value, "oslo_messaging_rabbit")
    caller = client.prepare(timeout=60)
    # Shorter and longer than a frame (128 KiB), and than what is read without kombu (1 MiB).
    sizes = [0, 1, 4_000, 131_000, 131_072, 400_000, 1_100_000, 3_000_000]

    with ThreadPoolExecutor(len(sizes)) as callers:
        sent = [f"{size}:" + "\N{GREEK SMALL LETTER ALPHA}\0" * (size // 2) for size in sizes]
        answers = list(callers.map(lambda what: caller.call({}, "echo", what=what), sent))

    assert answers == sent
    service.stop()


def test_a_vanished_client_does_not_hold_up_the_others(
    serve: Serve,
    broker: Broker,
    client: Any,
    trace: Path,
    figure: Figure,
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
    wait_until(lambda: "7" in begun.read_text().split(), "the call is at work", 30)
    gone.kill()
    gone.wait()
    gone.stdout.close()
    with kombu.Connection(broker.url.replace("rabbit:", "amqp:")) as connection:
        connection.default_channel.queue_delete(reply_queue)
    wait_until(lambda: 7 in runs(trace), "the orphaned call has run", 30)

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


def test_an_idle_service_stops_at_once(serve: Serve, figure: Figure) -> None:
    service = serve(4)
    # Stock doubles the sleep of its poll up to 5 s, and only then looks whether it was stopped.
    size = service.mark()
    held("the service is idle", lambda: service.mark() == size, 11)

    service.signal(signal.SIGTERM)

    assert service.wait_exit(3) == 0
    figure("an idle RPC service left without finishing a poll")


def test_heartbeats_survive_an_endpoint_that_holds_the_interpreter(
    serve: Serve,
    broker: Broker,
    client: Any,
    figure: Figure,
) -> None:
    heartbeat, frozen = 4, 14
    service = serve(4, heartbeat_timeout_threshold=heartbeat)
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
