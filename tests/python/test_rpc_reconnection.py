"""How a connection that consumes comes back: which hosts it tries, and when it gives up."""

from __future__ import annotations

import threading
import time
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import DEADLINE

from osloxide.messaging.rabbit import reconnection


class TimedOutError(Exception):
    pass


class UnreachableError(Exception):
    pass


class RefusedError(Exception):
    pass


class Link:
    """In the place of kombu's connection: *errors* says what becomes of an attempt at each host."""

    port = 5672
    recoverable_connection_errors = (OSError,)

    def __init__(self, errors: dict[str, Exception | None]) -> None:
        self.errors = errors
        self.alt = list(errors)
        self._cycle = cycle(self.alt)
        self.hostname = next(self._cycle)
        self.tried: list[str] = []
        self._connection: object | None = object()
        self.connected = False

    def maybe_switch_next(self) -> None:
        self.hostname = next(self._cycle)

    def completes_cycle(self, retries: int) -> bool:
        return not (retries + 1) % len(self.alt)

    def collect(self) -> None:
        self._connection = None

    def ensure_connection(self, max_retries: int) -> None:
        assert max_retries == 0
        self.tried.append(self.hostname)
        error = self.errors[self.hostname]
        if error is not None:
            raise error
        self.connected = True

    def channel(self) -> object:
        return object()


def make(link: Link, **options: float) -> Any:
    """A connection of oslo.messaging over *link*, which was just lost."""

    class Connection:
        connection = link
        connection_id = "an-id"
        interval_start = options.get("interval_start", 0)
        interval_stepping = options.get("interval_stepping", 0)
        interval_max = options.get("interval_max", 30)
        kombu_reconnect_delay = options.get("delay", 0.0)
        kombu_reconnect_splay = 0.0
        _connection_lock = threading.Lock()

        def __init__(self) -> None:
            self._consumers = {"a consumer": 1}
            self._new_tags: set[int] = set()
            self.consumed = 0
            self.channels: list[object] = []

        def consume(self, timeout: float | None = None) -> None:
            assert self._new_tags == {1}, "it has to begin to consume again"
            self.consumed += 1

        def stop_consuming(self) -> None:
            pass

        def _set_current_channel(self, channel: object) -> None:
            self.channels.append(channel)

        def set_transport_socket_timeout(self) -> None:
            pass

    reconnection.amend_connection(
        SimpleNamespace(  # type: ignore[arg-type]
            Connection=Connection,
            rpc_common=SimpleNamespace(Timeout=TimedOutError),
            kombu=SimpleNamespace(exceptions=SimpleNamespace(OperationalError=UnreachableError)),
        )
    )
    return Connection()


@pytest.mark.parametrize(
    ("hosts", "survivor"), [(hosts, host) for hosts in ("a", "ab", "abc", "abcd") for host in hosts]
)
def test_every_host_is_tried_within_one_round_however_short_the_time(
    hosts: str, survivor: str
) -> None:
    link = Link({host: None if host == survivor else UnreachableError(host) for host in hosts})
    connection = make(link)

    while not connection.consumed:
        try:
            connection.consume(timeout=0.0)
        except TimedOutError:
            assert len(link.tried) < len(hosts), link.tried
    assert link.tried[-1] == survivor
    assert len(set(link.tried)) == len(link.tried)


def test_a_loss_that_kombu_has_noticed_takes_no_host_twice_over() -> None:
    link = Link({"a": None, "b": None})
    link._connection = None  # kombu has closed it, and taken the host that is next
    make(link).consume(timeout=1.0)

    assert link.tried == ["a"]


def test_the_pause_grows_with_each_round_up_to_a_bound() -> None:
    link = Link({"a": UnreachableError("a"), "b": UnreachableError("b")})
    connection = make(link, interval_start=1, interval_stepping=3)
    outage = reconnection._Outage(connection)

    pauses = [outage.fail(connection) for _ in range(8)]

    assert pauses == [0, 1, 0, 4, 0, reconnection.LONGEST_PAUSE, 0, reconnection.LONGEST_PAUSE]


def test_a_refusal_is_raised_and_takes_the_next_host() -> None:
    link = Link({"a": RefusedError(), "b": RefusedError()})
    connection = make(link)

    for _ in range(2):
        with pytest.raises(RefusedError):
            connection.consume(timeout=1.0)
    assert sorted(link.tried) == ["a", "b"]


def test_a_stop_ends_the_wait_for_the_next_attempt() -> None:
    link = Link({"a": UnreachableError("a")})
    connection = make(link, delay=3600.0)
    begun = threading.Event()

    class Stopped(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            begun.set()
            return super().wait(timeout)

    connection._osloxide_stopped = Stopped()
    consuming = threading.Thread(target=connection.consume, daemon=True)
    consuming.start()
    assert begun.wait(DEADLINE), "the wait for the next attempt has not begun"
    assert connection._osloxide_outage.left > 0
    assert consuming.is_alive()
    connection.stop_consuming()
    consuming.join(DEADLINE)

    assert not consuming.is_alive()
    assert not link.tried
    assert not connection.consumed


def test_a_consumer_that_is_connected_again_forgets_the_outage() -> None:
    link = Link({"a": UnreachableError("a")})
    connection = make(link)
    with pytest.raises(TimedOutError):
        connection.consume(timeout=0.0)
    link.errors["a"] = None
    deadline = time.monotonic() + 20
    while not connection.consumed and time.monotonic() < deadline:
        connection.consume(timeout=1.0)

    assert "_osloxide_outage" not in vars(connection)
