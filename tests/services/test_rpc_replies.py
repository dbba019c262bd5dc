"""Replies that share a connection: what happens to them when that connection suffers.

The service reaches the broker through a wire that the tests hold up and cut; the callers do not.
Stock has no such connection: these are tests of osloxide alone.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.conftest import Figure, Start
from services.infra import Broker
from services.processes import RunningService, held, until
from services.rpc import Send, Senders, runs, start_rpc_service
from services.subject import IS_STOCK
from services.wire import Pair, Wire

Serve = Callable[..., RunningService]

THREADS = 8
"""Of the service; as many of its replies may be unconfirmed."""
CALLERS = 16

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(IS_STOCK, reason="stock takes a connection for each reply"),
]


@pytest.fixture
def wire(broker: Broker) -> Iterator[Wire]:
    wire = Wire(broker.port)
    yield wire
    wire.close()


@pytest.fixture
def serve(start: Start, broker: Broker, wire: Wire, trace: Path) -> Serve:
    url = broker.url.replace(str(broker.port), str(wire.port))

    def run(**settings: int) -> RunningService:
        return start_rpc_service(start, url, trace, threads=THREADS, **settings)

    return run


def lane(wire: Wire, calls: Senders) -> Pair:
    """The connection for replies, which is in use."""
    calls.wait_more(50)
    _listener, lane = wire.pairs
    return lane


def settled(
    calls: Senders, service: RunningService, trace: Path, figure: Figure, what: str
) -> None:
    """Everything goes on, every call was answered, and nothing ran twice."""
    calls.wait_more(100)
    report = calls.stop()
    service.stop()
    done: Counter[int] = runs(trace)
    figure(f"{what}: {len(report['sent'])} calls answered, failed {report['failures']}, slowest "
           f"{report['slowest']:.1f} s, {sum(n > 1 for n in done.values())} run twice")  # fmt: skip
    assert not report["failures"]
    assert set(report["sent"]) == set(done)
    assert max(done.values()) == 1


def wait_stalled(calls: Senders) -> None:
    """Callers whose replies do not arrive make no new calls."""
    seen = [-1]

    def is_still() -> bool:
        seen.append(calls.count)
        return len(seen) > 10 and len(set(seen[-10:])) == 1

    until("no call is answered any more", is_still, 30, every=0.05)


def test_replies_that_did_not_arrive_are_sent_again_when_their_connection_is_lost(
    serve: Serve,
    wire: Wire,
    send: Send,
    trace: Path,
    figure: Figure,
) -> None:
    service = serve()
    calls = send("call", CALLERS)
    for _ in range(3):
        calls.wait_more(50)
        # What was lost is sent on connections of its own: those suffer the next time as well.
        _listener, *others = wire.pairs
        for pair in others:
            pair.there.clear()
        wait_stalled(calls)
        for pair in others:
            pair.cut()

    settled(calls, service, trace, figure, "connection lost three times with replies under way")
    assert "connection for replies lost" in service.text()


def test_replies_that_arrived_unconfirmed_do_no_harm_when_they_are_sent_again(
    serve: Serve,
    wire: Wire,
    send: Send,
    trace: Path,
    figure: Figure,
) -> None:
    service = serve()
    calls = send("call", CALLERS)
    pair = lane(wire, calls)
    pair.back.clear()
    wait_stalled(calls)  # as many as there are threads are unconfirmed; nobody sends more
    pair.cut()

    settled(calls, service, trace, figure, "connection lost with replies that had arrived")
    assert f"{THREADS} replies are sent again" in service.text()


def test_a_broker_that_takes_nothing_for_a_while_gets_every_reply_afterwards(
    serve: Serve,
    wire: Wire,
    send: Send,
    trace: Path,
    figure: Figure,
) -> None:
    service = serve()
    calls = send("call", CALLERS)
    pair = lane(wire, calls)
    pair.there.clear()
    wait_stalled(calls)
    # Not one request more than there are threads is picked up: the others could go elsewhere.
    begun = trace.with_name(f"{trace.name}.begun")
    size = begun.stat().st_size
    held("nothing more is begun", lambda: begun.stat().st_size == size, 1)
    pair.there.set()

    settled(calls, service, trace, figure, "replies held up")
    assert "connection for replies lost" not in service.text()


def test_a_connection_that_has_gone_silent_is_given_up_after_two_heartbeats(
    serve: Serve,
    wire: Wire,
    send: Send,
    trace: Path,
    figure: Figure,
) -> None:
    service = serve(heartbeat_timeout_threshold=2)
    calls = send("call", CALLERS)
    pair = lane(wire, calls)
    pair.there.clear()
    pair.back.clear()

    service.wait_log("connection for replies lost", within=60)
    settled(calls, service, trace, figure, "silence on the connection for replies")


@pytest.mark.parametrize("ending", ["confirmed", "lost after", "lost before"])
def test_a_stop_waits_for_what_the_broker_has_not_confirmed(
    serve: Serve,
    wire: Wire,
    send: Send,
    trace: Path,
    figure: Figure,
    ending: str,
) -> None:
    service = serve()
    calls = send("call", CALLERS)
    pair = lane(wire, calls)
    # The callers have the replies already, or have not.
    (pair.there if ending == "lost before" else pair.back).clear()
    wait_stalled(calls)
    service.signal(signal.SIGTERM)
    held("it has not left", lambda: service.process.poll() is None, 2)
    if ending == "confirmed":
        pair.back.set()
    else:
        pair.cut()

    assert service.wait_exit(30) == 0
    answered = calls.count
    second = serve()
    settled(calls, second, trace, figure, f"stop with {answered} answered, the rest {ending}")
