"""Which calls are given up after an outage of the broker: those whose requests can be lost."""

from __future__ import annotations

import contextlib
import importlib.util
import queue
import time
from types import SimpleNamespace
from typing import Any

import pytest

from osloxide.messaging.rabbit import outage


class NotFoundError(Exception):
    code = 404


class Channel:
    """A channel of a broker that has the queues of *known*."""

    def __init__(self, known: set[str]) -> None:
        self._known = known

    def queue_declare(self, name: str, passive: bool) -> None:
        assert passive, "it would be made by asking"
        if name not in self._known:
            raise NotFoundError

    def close(self) -> None:
        pass


def reconnect(*, durable: bool, known: set[str], monitored: bool = False) -> queue.Queue[Any]:
    """Declare a reply queue again, with one call in flight; returns that call's replies."""
    replies: queue.Queue[Any] = queue.Queue()
    waiter = SimpleNamespace(
        waiters=SimpleNamespace(_queues={"call": replies}),
        _osloxide_monitored={"call"} if monitored else set(),
    )
    declared: list[Any] = []
    consumer = SimpleNamespace(queue_name="reply_1", declare=declared.append)
    connection = SimpleNamespace(channel_errors=(NotFoundError,), channel=lambda: Channel(known))
    conn = SimpleNamespace(connection=connection, durable=durable)
    outage._watch(consumer, waiter)
    consumer.declare(conn)
    assert declared == [conn]
    return replies


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "GRACE", 0.05)


def was_given_up(replies: queue.Queue[Any], within: float) -> bool:
    try:
        return isinstance(replies.get(timeout=within), outage._Lost)
    except queue.Empty:
        return False


def test_a_call_is_given_up_when_its_broker_has_lost_its_queues() -> None:
    assert was_given_up(reconnect(durable=False, known=set()), 20)


def test_a_lost_connection_alone_fails_no_call() -> None:
    assert not was_given_up(reconnect(durable=False, known={"reply_1"}), 0.5)


def test_a_call_over_durable_queues_is_never_given_up() -> None:
    assert not was_given_up(reconnect(durable=True, known=set()), 0.5)


def test_a_monitored_call_is_left_to_its_heartbeats() -> None:
    assert not was_given_up(reconnect(durable=False, known=set(), monitored=True), 0.5)


@pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None, reason="`make setup` installs it"
)
def test_a_call_waits_for_a_missing_queue_no_longer_than_its_own_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import oslo_messaging

    class Connection:
        attempts = 0

        def topic_send(self, *_arguments: Any) -> None:
            self.attempts += 1
            raise oslo_messaging.MessageUndeliverable(None, None, None, None)

        def _ensure_publishing(self) -> None: ...

        def _set_current_channel(self, _channel: Any) -> None: ...

    outage.amend_connection(SimpleNamespace(Connection=Connection))  # type: ignore[arg-type]
    monkeypatch.setattr(outage, "SETTLING", 3600.0)
    monkeypatch.setattr(outage._Link, "reconnected_at", time.monotonic())
    connection = Connection()

    connection.topic_send("exchange", "topic", "message", 0.25)

    assert connection.attempts > 1


@pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None, reason="`make setup` installs it"
)
@pytest.mark.parametrize(("restoring", "sent"), [(3600.0, 7), (0.0, 2)])
def test_a_request_outlasts_an_exchange_that_takes_long_to_be_deleted(
    monkeypatch: pytest.MonkeyPatch, restoring: float, sent: int
) -> None:
    import oslo_messaging

    class Connection:
        attempts = 0
        connection = SimpleNamespace(channel=lambda: None)
        _connection_lock = contextlib.nullcontext()
        _url = "rabbit://exchange-that-takes-long"

        def topic_send(self, *_arguments: Any) -> None:
            self.attempts += 1
            if 1 < self.attempts < 7:
                raise oslo_messaging.MessageDeliveryFailure("404") from NotFoundError()

        def _ensure_publishing(self) -> None: ...

        def _set_current_channel(self, _channel: Any) -> None: ...

    outage.amend_connection(SimpleNamespace(Connection=Connection))  # type: ignore[arg-type]
    monkeypatch.setattr(outage, "RESTORING", restoring)
    monkeypatch.setattr(outage, "RETRY_EVERY", 0.001)
    connection = Connection()
    connection.topic_send("exchange", "topic", "message")
    assert connection.attempts == 1

    gives_up = pytest.raises(oslo_messaging.MessageDeliveryFailure)
    with contextlib.nullcontext() if sent == 7 else gives_up:
        connection.topic_send("exchange", "topic", "message")
    assert connection.attempts >= sent


def test_a_release_whose_waiters_are_not_told_the_queue_waits_as_before() -> None:
    class ReplyWaiter:
        def __init__(self, reply_q: str, conn: Any) -> None: ...

        def wait(self, msg_id: str, timeout: Any, call_monitor_timeout: Any) -> Any:
            return msg_id, timeout, call_monitor_timeout

        def _process_reply(self, data: Any) -> Any: ...

    errors = SimpleNamespace(MessagingTimeout=TimeoutError)
    driver: Any = SimpleNamespace(ReplyWaiter=ReplyWaiter, oslo_messaging=errors)
    outage.amend_waiters(driver)
    waiter = ReplyWaiter("reply_1", SimpleNamespace(connection=SimpleNamespace(_consumers=[])))

    assert waiter.wait("call", 9, None) == ("call", 9, None)
    assert waiter.wait("call", 9, 3) == ("call", 9, 3)
