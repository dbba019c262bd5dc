"""Replies that share a connection: what happens to them when that connection suffers.

The service reaches the broker through a wire that the tests hold up and cut; the callers do not.
Stock has no such connection: these are tests of osloxide alone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from services.conftest import Figure, Start
from services.infra import Broker
from services.processes import RunningService, held
from services.rpc import Send, Senders, runs, start_rpc_service
from services.subject import IS_NATIVE, IS_STOCK
from services.wire import Pair, Wire

THREADS = 8
"""Of the service; as many of its replies may be unconfirmed."""
CALLERS = 16
LOST = "is unreachable" if IS_NATIVE else "connection for replies lost"
"""What the service's log says of a connection that is gone."""

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(IS_STOCK, reason="stock takes a connection for each reply"),
]


class Wired:
    """Callers, the wire, and services that follow one another at its end."""

    def __init__(
        self, serve: Callable[..., RunningService], wire: Wire, send: Send, trace: Path
    ) -> None:
        self._serve = serve
        self._trace = trace
        self.wire = wire
        self.service: RunningService
        self.send = send
        self.calls: Senders

    def serve(self, **settings: int) -> None:
        """Start a service; the one before has ended."""
        self.service = self._serve(**settings)

    def begin(self, **settings: int) -> None:
        """Start a service, and callers that are being answered."""
        self.serve(**settings)
        self.calls = self.send("call", CALLERS)
        self.calls.wait_more(50)

    def replies(self) -> Pair:
        """The connection for replies."""
        _listener, replies = self.wire.pairs
        return replies

    def wait_stalled(self) -> None:
        """Wait for all callers: those whose replies do not arrive make no new calls."""
        seen = [-1]

        def is_still() -> bool:
            seen.append(self.calls.count)
            return len(seen) > 10 and len(set(seen[-10:])) == 1

        wait_until(is_still, "no call is answered any more", 30, pause=0.05)

    def begun(self) -> int:
        """Grows with each request that is begun."""
        return self._trace.with_name(f"{self._trace.name}.begun").stat().st_size

    def settle(self) -> str:
        """Show that everything goes on, every call was answered, and nothing ran twice."""
        self.calls.wait_more(100)
        report = self.calls.stop()
        self.service.stop()
        done = runs(self._trace)
        assert not report["failures"]
        assert set(report["sent"]) == set(done)
        assert max(done.values()) == 1
        return f"{len(report['sent'])} calls answered once, slowest {report['slowest']:.1f} s"


@pytest.fixture
def wired(start: Start, broker: Broker, send: Send, trace: Path) -> Iterator[Wired]:
    wire = Wire(broker.port)
    url = broker.url.replace(str(broker.port), str(wire.port))

    def serve(**settings: int) -> RunningService:
        return start_rpc_service(start, url, trace, threads=THREADS, **settings)

    yield Wired(serve, wire, send, trace)
    wire.close()


def test_replies_that_did_not_arrive_are_sent_again_when_their_connection_is_lost(
    wired: Wired, figure: Figure
) -> None:
    wired.begin()
    for _ in range(3):
        # What was lost is sent on connections of its own: those suffer the next time as well.
        _listener, *others = wired.wire.pairs
        for pair in others:
            pair.there.clear()
        wired.wait_stalled()
        for pair in others:
            pair.cut()
        wired.calls.wait_more(50)

    figure(f"connection lost three times with replies under way: {wired.settle()}")
    assert LOST in wired.service.text()


def test_replies_that_arrived_unconfirmed_do_no_harm_when_they_are_sent_again(
    wired: Wired, figure: Figure
) -> None:
    wired.begin()
    replies = wired.replies()
    replies.back.clear()
    wired.wait_stalled()  # as many as there are threads are unconfirmed; nobody sends more
    replies.cut()

    figure(f"connection lost with replies that had arrived: {wired.settle()}")
    if not IS_NATIVE:
        assert f"{THREADS} replies are sent again" in wired.service.text()


def test_a_broker_that_takes_nothing_for_a_while_gets_every_reply_afterwards(
    wired: Wired, figure: Figure
) -> None:
    wired.begin()
    replies = wired.replies()
    replies.there.clear()
    wired.wait_stalled()
    # Not one request more than there are threads is picked up: the others could go elsewhere.
    begun = wired.begun()
    held("nothing more is begun", lambda: wired.begun() == begun, 1)
    replies.there.set()

    figure(f"replies held up: {wired.settle()}")
    assert LOST not in wired.service.text()


def test_a_connection_that_has_gone_silent_is_given_up_after_two_heartbeats(
    wired: Wired, figure: Figure
) -> None:
    wired.begin(heartbeat_timeout_threshold=2)
    replies = wired.replies()
    replies.there.clear()
    replies.back.clear()

    wired.service.wait_log(LOST, within=60)
    figure(f"silence on the connection for replies: {wired.settle()}")


@pytest.mark.parametrize("ending", ["confirmed", "lost after", "lost before"])
def test_a_stop_waits_for_what_the_broker_has_not_confirmed(
    wired: Wired, figure: Figure, ending: str
) -> None:
    wired.begin()
    replies = wired.replies()
    # The callers have the replies already, or have not.
    (replies.there if ending == "lost before" else replies.back).clear()
    wired.wait_stalled()
    wired.service.signal(signal.SIGTERM)
    held("it has not left", lambda: wired.service.process.poll() is None, 2)
    if ending == "confirmed":
        replies.back.set()
    else:
        replies.cut()

    assert wired.service.wait_exit(30) == 0
    wired.serve()
    figure(f"stop with replies unconfirmed, then {ending}: {wired.settle()}")
