"""Which way a reply takes when its connection cannot be had, and who waits for that."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("oslo_messaging", reason="`make setup` installs it")

from waiting import wait_until

from osloxide.messaging.rabbit import replies as module
from osloxide.messaging.rabbit.replies import LateReplies, Replies
from osloxide.messaging.rabbit.reply import Reply

PATIENCE = 45
AWAY = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


class Link:
    """A connection for replies, on which everything is confirmed at once."""

    def __init__(self, on_publish: Callable[[], object] = lambda: None) -> None:
        self.published: list[Reply] = []
        self.waited_for: list[int] = []
        self.most = 0
        self._on_publish = on_publish

    def publish(self, reply: Reply) -> int:
        self._on_publish()
        self.published.append(reply)
        return len(self.published)

    def wait_confirmed(self, number: int) -> None:
        self.waited_for.append(number)

    def close(self) -> None:
        pass


class Pooled:
    """A connection of the driver's pool, which the broker answers."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.connection = SimpleNamespace(connected=True)
        self.channel = object()
        self._connection_lock = contextlib.nullcontext()

    def _ensure_publishing(self, *_: Any, **__: Any) -> None:
        pass

    def direct_send(self, queue: str, envelope: Any) -> None:
        self.sent.append(queue)


class Driver:
    """A transport with a broker that *connect* has its own way with."""

    missing_destination_retry_timeout = 60

    def __init__(self, connect: Callable[[], Any], *, error: Exception | None = None) -> None:
        """
        :param connect: makes the connection for replies, or raises.
        :param error: with which the pool's cannot be had; without end where nobody bounds that.
        """
        self._url = SimpleNamespace(hosts=["one"])
        self._connection_pool = SimpleNamespace(create=lambda *_, **__: connect())
        self.pooled = Pooled()
        self._error = error
        self.comes_back = threading.Event()

    @contextlib.contextmanager
    def _get_connection(self, purpose: str, retry: int | None = None) -> Iterator[Any]:
        if self._error is not None:
            if retry is None:
                self.comes_back.wait()
            raise self._error
        yield SimpleNamespace(connection=self.pooled, direct_send=self.pooled.direct_send)


def fails(error: Exception) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


class Listener:
    """One listener of *driver*, and the replies to what it has received."""

    def __init__(self, driver: Driver, late: LateReplies, link: Link | None = None) -> None:
        self.driver = driver
        self.replies = Replies(driver, 8, late, lambda: None)
        if link is not None:
            self.replies._shared._connection = link  # type: ignore[assignment]

    def reply(self, queue: str) -> Reply:
        valid = SimpleNamespace(reply_q_valid=lambda *_: True, add=lambda *_: None)
        incoming = SimpleNamespace(listener=self, msg_id="1", _obsolete_reply_queues=valid)
        return Reply(incoming, queue, {})


@pytest.fixture
def late() -> LateReplies:
    return LateReplies()


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_a_connection_that_cannot_be_closed_either_harms_no_thread(late: LateReplies) -> None:
    channel = SimpleNamespace(channel=fails(AWAY))
    lent = SimpleNamespace(connection=channel, close=fails(OSError("lost")))
    listener = Listener(Driver(lambda: lent, error=AWAY), late)

    listener.replies.send(reply := listener.reply("q"))

    assert reply.is_stranded
    assert late._waiting == [reply]


def test_a_listener_that_closes_does_not_wait_for_the_replies_of_others(
    late: LateReplies, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSING", 0.5)
    other = Listener(Driver(fails(AWAY), error=AWAY), late)
    other.replies.send(other.reply("away"))
    healthy = Listener(Driver(fails(AWAY)), late, Link())
    healthy.replies.send(healthy.reply("there"))

    healthy.replies.close()

    assert "are lost" not in caplog.text


def test_a_broker_that_is_away_holds_up_no_late_reply_of_another_transport(
    late: LateReplies, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSING", 0.5)
    away = Driver(fails(AWAY), error=AWAY)
    closed, serving = Listener(away, late), Listener(Driver(fails(AWAY)), late)
    try:
        closed.replies.send(closed.reply("away"))
        closed.replies.close()
        assert "1 replies are lost" in caplog.text  # that of a listener which closes is told

        late.add(serving.reply("there"))
        wait_until(lambda: serving.driver.pooled.sent == ["there"], "the other's is sent", PATIENCE)
    finally:
        away.comes_back.set()


def test_a_reply_of_a_closed_listener_is_given_up_in_the_end(late: LateReplies) -> None:
    driver = Driver(fails(AWAY), error=AWAY)
    listener = Listener(driver, late)
    reply = listener.reply("q")
    assert not reply.is_settled()
    assert reply._deadline is None  # while it serves there is no end

    listener.replies.close()
    driver.missing_destination_retry_timeout = 0

    assert reply.is_settled()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        type("NotAllowed", (Exception,), {"code": 530})("connection limit"),
        RuntimeError("no confirmations"),
    ],
    ids=["descriptors", "limit", "confirmations"],
)
def test_replies_take_the_pools_connections_where_one_of_their_own_is_refused(
    late: LateReplies, error: Exception
) -> None:
    listener = Listener(Driver(fails(error)), late)

    listener.replies.send(listener.reply("q"))

    assert listener.driver.pooled.sent == ["q"]
    assert not late._waiting


def test_a_limit_of_connections_is_no_refusal_of_the_reply(late: LateReplies) -> None:
    limit = type("NotAllowed", (Exception,), {"code": 530})("connection limit")
    listener = Listener(Driver(fails(limit), error=limit), late)

    listener.replies.send(reply := listener.reply("q"))

    assert late._waiting == [reply]
    assert not reply.is_settled()  # it is attempted again
    assert reply._deadline is not None  # and not for ever


def test_a_listener_that_closes_waits_for_a_reply_that_is_sent_again_at_the_moment(
    late: LateReplies,
) -> None:
    closed = threading.Event()

    def close_meanwhile() -> None:
        in_thread(lambda: (listener.replies.close(), closed.set()))
        closed.wait(0.5)  # it must not be closed yet

    link = Link(close_meanwhile)
    driver = Driver(fails(AWAY))
    listener, other = Listener(driver, late, link), Listener(driver, late)
    for each in (listener, other):  # the last one would close the connection
        each.replies._join()
    reply = listener.reply("q")
    reply.is_stranded = True

    late.add(reply)

    assert closed.wait(PATIENCE)
    assert link.waited_for == [1]


def test_a_thread_with_a_reply_does_not_wait_for_one_that_connects(late: LateReplies) -> None:
    connecting, gate = threading.Event(), threading.Event()

    def connect() -> Any:
        connecting.set()
        gate.wait()
        raise AWAY

    listener = Listener(Driver(connect, error=AWAY), late)
    first = in_thread(lambda: listener.replies.send(listener.reply("one")))
    try:
        assert connecting.wait(PATIENCE)
        second = in_thread(lambda: listener.replies.send(listener.reply("two")))
        second.join(PATIENCE)
        assert not second.is_alive()
        assert [reply.queue for reply in late._waiting] == ["two"]
    finally:
        gate.set()
        first.join(PATIENCE)


def test_a_reply_after_the_end_of_its_listener_is_sent_at_once(late: LateReplies) -> None:
    listener = Listener(Driver(fails(AWAY)), late)
    listener.replies.close()

    listener.replies.send(listener.reply("q"))

    assert listener.driver.pooled.sent == ["q"]
