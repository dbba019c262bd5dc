"""Which way a reply takes when its connection cannot be had, and who waits for that."""

from __future__ import annotations

import collections
import contextlib
import errno
import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("oslo_messaging", reason="`make setup` installs it")

from amqp.exceptions import MessageNacked  # type: ignore[import-untyped]
from oslo_messaging._drivers import common
from oslo_messaging._drivers.pool import Pool
from waiting import wait_until

from osloxide.messaging.rabbit import native_listener
from osloxide.messaging.rabbit import replies as module
from osloxide.messaging.rabbit import reply as one_reply
from osloxide.messaging.rabbit.replies import LateReplies, Replies
from osloxide.messaging.rabbit.reply import Reply
from osloxide.messaging.rabbit.reply_connection import FullError, ReplyConnection

PATIENCE = 45
AWAY = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


class Link:
    """A connection for replies, on which everything is confirmed at once."""

    is_lost = False

    def __init__(self, on_publish: Callable[[], object] = lambda: None) -> None:
        self.published: list[Reply] = []
        self.waited_for: list[int] = []
        self.most = 0
        self.room = threading.Event()
        self.room.set()
        self._on_publish = on_publish

    def publish(self, reply: Reply, *, may_wait: bool = True) -> int:
        if not may_wait and not self.room.is_set():
            raise FullError
        self.room.wait()
        self.published.append(reply)
        number = len(self.published)
        self._on_publish()
        return number

    def wait_confirmed(self, number: int) -> None:
        self.waited_for.append(number)

    def close(self) -> None:
        pass


class Pooled:
    """A connection of the driver's pool, which the broker answers."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.errors: dict[str, Exception] = {}
        """What becomes of replies to some queues."""
        self.attempts: list[str] = []
        self.connection = SimpleNamespace(
            connected=True,
            collect=lambda: None,
            ensure_connection=lambda **_: None,
            channel=object,
        )
        self.channel = object()
        self._connection_lock = contextlib.nullcontext()

    def _ensure_publishing(self, *_: Any, **__: Any) -> None:
        pass

    def direct_send(self, queue: str, envelope: Any) -> None:
        self.attempts.append(queue)
        if queue in self.errors:
            raise self.errors[queue]
        self.sent.append(queue)

    def reset(self) -> None:
        pass

    def _set_current_channel(self, channel: object) -> None:
        self.channel = channel

    def set_transport_socket_timeout(self) -> None:
        pass


class Connections(Pool):
    """The pool of *driver*, of one connection."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(max_size=1)
        self._driver = driver

    def create(self, purpose: str = common.PURPOSE_SEND, retry: int | None = None) -> Any:
        return self._driver.connect() if purpose == common.PURPOSE_LISTEN else self._lend(retry)

    def _lend(self, retry: int | None) -> Pooled:
        if self._driver.error is not None:
            if retry is None:
                self._driver.comes_back.wait()
            raise self._driver.error
        return self._driver.pooled


class Driver:
    """A transport with a broker that *connect* has its own way with."""

    missing_destination_retry_timeout = 60

    def __init__(self, connect: Callable[[], Any], *, error: Exception | None = None) -> None:
        """
        :param connect: makes the connection for replies, or raises.
        :param error: with which the pool's cannot be had; without end where nobody bounds that.
        """
        self._url = SimpleNamespace(hosts=["one"])
        self._connection_pool = Connections(self)
        self.conf = SimpleNamespace()
        self.pooled = Pooled()
        self.connect = connect
        self.error = error
        self.comes_back = threading.Event()


def fails(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
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


def test_a_reply_that_is_taken_while_all_others_wait_for_connections_of_the_pool(
    late: LateReplies,
) -> None:
    link = Link()
    listener = Listener(Driver(fails(AWAY)), late, link)
    listener.replies._join()
    pool = listener.driver._connection_pool
    in_use = pool.get()  # by a caller, who waits for the broker
    late.add(listener.reply("one by one"))
    stranded = listener.reply("stranded")
    stranded.is_stranded = True

    late.add(stranded)

    wait_until(lambda: link.published == [stranded], "the second is sent", PATIENCE)
    pool.put(in_use)
    wait_until(lambda: listener.driver.pooled.sent == ["one by one"], "the first is sent", PATIENCE)


def test_a_late_reply_waits_for_no_room_on_its_connection(late: LateReplies) -> None:
    full = Link()
    full.room.clear()  # as under a memory alarm
    driver = Driver(fails(AWAY))
    first = Listener(driver, late, full)
    first.replies._join()
    stranded = first.reply("stranded")
    stranded.is_stranded = True
    late.add(stranded)
    try:
        late.add(first.reply("one by one"))
        wait_until(lambda: driver.pooled.sent == ["one by one"], "the other is sent", PATIENCE)
        assert not full.published
    finally:
        full.room.set()
    wait_until(lambda: full.published == [stranded], "and it as well", PATIENCE)


def test_a_transport_whose_broker_is_silent_holds_up_no_late_reply_of_another(
    late: LateReplies,
) -> None:
    silent, there = Listener(Driver(fails(AWAY)), late), Listener(Driver(fails(AWAY)), late)
    gate, begun = threading.Event(), threading.Event()

    def send(queue: str, envelope: Any) -> None:
        begun.set()
        gate.wait()

    silent.driver.pooled.direct_send = send  # type: ignore[method-assign]
    late.add(silent.reply("silent"))
    try:
        assert begun.wait(PATIENCE)
        late.add(there.reply("there"))
        wait_until(lambda: there.driver.pooled.sent == ["there"], "the other's is sent", PATIENCE)
    finally:
        gate.set()


@pytest.mark.parametrize(
    "error", [MessageNacked(), ConnectionResetError("lost")], ids=["nack", "reset"]
)
def test_a_reply_that_the_broker_does_not_take_holds_up_no_other_and_has_an_end(
    late: LateReplies, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_reply, "CONNECT_EVERY", 3600.0)
    listener = Listener(Driver(fails(AWAY)), late)
    listener.driver.pooled.errors["poison"] = error
    listener.driver.missing_destination_retry_timeout = 0
    poison, healthy = listener.reply("poison"), listener.reply("healthy")

    assert poison.is_settled(), "it is dropped after its time, though the listener serves"
    assert poison.was_attempted, "no end of a listener waits for another attempt"
    assert healthy.is_settled()

    assert listener.driver.pooled.sent == ["healthy"]
    # A connection that is in order is kept: the broker has answered on it.
    assert len(listener.driver.pooled.attempts) == (2 if isinstance(error, MessageNacked) else 3)


def test_a_reply_is_kept_while_the_broker_takes_nothing(late: LateReplies) -> None:
    listener = Listener(Driver(fails(AWAY)), late)
    listener.driver.pooled.errors["q"] = TimeoutError()
    listener.driver.missing_destination_retry_timeout = 0

    reply = listener.reply("q")
    assert not reply.is_settled()
    assert not reply.was_attempted


def test_a_late_reply_for_which_there_was_no_thread_is_sent_with_the_next(
    late: LateReplies, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener(Driver(fails(AWAY)), late)
    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", fails(RuntimeError("no thread")))
        late.add(listener.reply("first"))
        late.add(listener.reply("second"))

    late.add(listener.reply("third"))

    sent = listener.driver.pooled.sent
    wait_until(lambda: sent == ["first", "second", "third"], "all are sent", PATIENCE)


class Wire:
    """What a connection for replies needs of a connection of kombu's; nothing is confirmed."""

    def __init__(self) -> None:
        self.one, self.other = socket.socketpair()
        native = SimpleNamespace(
            unsent=0, post=lambda frames: None, close=lambda: None, receive=lambda: None
        )
        transport = SimpleNamespace(_osloxide_connection=native, sock=self.one, _read_buffer=b"")
        link = SimpleNamespace(
            transport=transport, frame_max=131072, bytes_recv=0, collect=lambda: None
        )
        self.channel = SimpleNamespace(
            connection=link,
            channel_id=1,
            events=collections.defaultdict(set),
            confirm_select=lambda: None,
        )
        self.connection = SimpleNamespace(
            connection=SimpleNamespace(channel=lambda: self.channel),
            kombu_compression=None,
            direct_mandatory_flag=True,
        )

    def close(self) -> None:
        self.one.close()
        self.other.close()


def test_replies_go_alone_once_their_connections_were_lost_again_and_again(
    late: LateReplies,
) -> None:
    listener = Listener(Driver(fails(AWAY)), late)
    reply, shared = listener.reply("q"), []
    for _ in range(4):
        with contextlib.closing(Wire()) as wire:
            connection = ReplyConnection(wire, 8, lambda _: None)
            connection.publish(reply)
            connection.break_off(ConnectionResetError("lost"))
            shared.append(reply.is_stranded)

    assert shared == [True, True, False, False]


def test_what_the_broker_refuses_is_not_sent_beside_others_again(late: LateReplies) -> None:
    too_large = type("PreconditionFailed", (Exception,), {"code": 406})("message size")
    listener = Listener(Driver(fails(AWAY)), late)
    given_back: list[Reply] = []
    with contextlib.closing(Wire()) as wire:
        connection = ReplyConnection(wire, 8, given_back.append)
        for queue in ("poison", "healthy"):
            connection.publish(listener.reply(queue))

        connection.break_off(too_large)

    assert [(reply.queue, reply.is_stranded) for reply in given_back] == [
        ("poison", False),
        ("healthy", False),
    ]


def test_the_last_of_a_listeners_replies_is_known_whichever_thread_is_faster(
    late: LateReplies,
) -> None:
    def overtake() -> None:
        if len(link.published) == 1:  # the first is written, and its thread is not back yet
            thread = in_thread(lambda: listener.replies.send(listener.reply("two")))
            thread.join(PATIENCE)
            assert not thread.is_alive()

    link = Link(overtake)
    listener = Listener(Driver(fails(AWAY)), late, link)
    other = Listener(listener.driver, late, link)
    for each in (listener, other):  # the last one would close the connection
        each.replies._join()

    listener.replies.send(listener.reply("one"))
    listener.replies.close()

    assert [reply.queue for reply in link.published] == ["one", "two"]
    assert link.waited_for == [2]


def test_a_native_listener_that_closes_waits_for_replies_that_go_by_kombu(
    late: LateReplies, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_listener, "late_replies", late)
    monkeypatch.setattr(native_listener, "CLOSING", 0.3)
    driver = Driver(fails(AWAY), error=AWAY)
    listener = Listener(driver, late)
    listener.replies = replies = native_listener.NativeReplies(  # type: ignore[assignment]
        listener,  # type: ignore[arg-type]
        lambda _: None,
    )
    incoming = listener.reply("q").incoming
    incoming.reply_q, incoming.is_waited_for = "q", True
    replies.send(incoming, "{}")

    replies.close()

    assert "1 replies are lost" in caplog.text
