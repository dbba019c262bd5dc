"""AMQP connections: heartbeats without the interpreter, and no more of them than are used."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from waiting import until

from osloxide import _native
from osloxide.messaging.rabbit import connection_pool, heartbeats

HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
PATIENCE = 45.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    with ours, theirs:
        yield ours, theirs


def hold_the_interpreter(seconds: float) -> None:
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def test_heartbeats_go_on_while_the_interpreter_is_held(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    connection = _native.Heartbeats().add(ours.fileno(), 0.05)

    hold_the_interpreter(0.5)
    sent = connection.heartbeats
    connection.close()

    assert sent >= 3
    assert theirs.recv(1024).startswith(HEARTBEAT * 3)


def test_a_connection_that_its_owner_uses_needs_no_heartbeats(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    connection = _native.Heartbeats().add(ours.fileno(), 3600)

    for _ in range(100):
        connection.write(memoryview(bytearray(b"frame")), None)
    connection.close()
    ours.shutdown(socket.SHUT_WR)

    assert b"".join(iter(lambda: theirs.recv(1024), b"")) == b"frame" * 100
    assert connection.heartbeats == 0


def test_a_write_that_takes_too_long_is_a_timeout(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    connection = _native.Heartbeats().add(pair[0].fileno(), 3600)

    with pytest.raises(TimeoutError):
        connection.write(bytes(1 << 22), 0.05)


def test_a_lost_connection_is_an_error_of_the_socket(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    connection = _native.Heartbeats().add(ours.fileno(), 3600)
    theirs.close()

    with pytest.raises(BrokenPipeError):
        connection.write(b"frame")
    connection.close()
    with pytest.raises(OSError, match="not connected"):
        connection.write(b"frame")


@pytest.mark.parametrize(("fd", "interval"), [(-1, 1.0), (0, 0.0), (0, float("nan")), (0, -1.0)])
def test_impossible_connections_are_refused(fd: int, interval: float) -> None:
    with pytest.raises(ValueError, match=r"descriptor|interval"):
        _native.Heartbeats().add(fd, interval)


def test_a_tls_connection_is_left_alone() -> None:
    ours, theirs = socket.socketpair()
    with (
        theirs,
        ssl.create_default_context().wrap_socket(
            ours, server_hostname="x", do_handshake_on_connect=False
        ) as wrapped,
    ):
        transport = SimpleNamespace(sock=wrapped, _write=len, close=len)

        heartbeats.lend(transport, 1.0)

        assert transport._write is len
        assert not heartbeats.writes_are_ordered(SimpleNamespace(_transport=transport))


class Connection:
    open = 0

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        type(self).open += 1

    def close(self) -> None:
        type(self).open -= 1


@pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None, reason="`make setup` installs it"
)
@pytest.mark.parametrize(("ttl", "kept"), [(1200, 60), (7, 7)])
def test_only_the_default_of_the_time_to_live_is_changed(ttl: int, kept: int) -> None:
    assert pool(ttl)._item_ttl == kept


@pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None, reason="`make setup` installs it"
)
def test_connections_of_a_burst_leave_and_so_does_who_sweeps_them() -> None:
    burst = pool(1)
    taken = [burst.get() for _ in range(8)]
    assert Connection.open == 8

    for connection in taken:
        burst.put(connection)

    assert until(lambda: Connection.open == 2)
    assert until(lambda: not any(t.name == "osloxide-connections" for t in threading.enumerate()))
    assert burst.get() is not None


@pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None, reason="`make setup` installs it"
)
def test_a_connection_that_cannot_be_closed_does_not_end_the_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    burst = pool(1)
    failed: list[Connection] = []
    close = Connection.close

    def fail_once(self: Connection) -> None:
        close(self)
        if not failed:
            failed.append(self)
            raise OSError("planted")

    monkeypatch.setattr(Connection, "close", fail_once)
    for connection in [burst.get() for _ in range(8)]:
        burst.put(connection)

    assert until(lambda: Connection.open == 2)
    assert failed


@pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None, reason="`make setup` installs it"
)
def test_a_forked_child_sweeps_by_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    burst = pool(3600)
    taken = [burst.get() for _ in range(8)]
    burst._osloxide_sweeps = os.getpid() + 1  # as in a child of the process that sweeps
    started: list[str] = []
    monkeypatch.setattr(connection_pool.own, "start", lambda name, _target: started.append(name))

    for connection in taken:
        burst.put(connection)

    assert started == ["osloxide-connections"]


def test_a_heartbeat_thread_of_another_process_does_not_count() -> None:
    def start(self: Any) -> None:
        self._heartbeat_thread = threading.Thread(target=ended.wait)
        self._heartbeat_thread.start()

    ended = threading.Event()
    link = SimpleNamespace(
        _connection=SimpleNamespace(_transport=SimpleNamespace(_osloxide_connection=1))
    )
    fake = SimpleNamespace(Connection=type("Connection", (), {"_heartbeat_start": start}))
    heartbeats.amend_connection(fake)  # type: ignore[arg-type]
    first, second, third = (fake.Connection() for _ in range(3))
    for each in (first, second, third):
        each.connection = link

    first._heartbeat_start()
    second._heartbeat_start()
    assert second._heartbeat_thread is None
    ended.set()
    first._heartbeat_thread.join()  # to a forked child its threads look like that
    third._heartbeat_start()

    assert third._heartbeat_thread is not None
    third._heartbeat_thread.join()


def pool(ttl: int) -> Any:
    """A pool of the module as oslo.messaging has it, amended here alone."""
    spec = importlib.util.find_spec("oslo_messaging._drivers.pool")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    connection_pool.amend(module)
    Connection.open = 0
    return module.ConnectionPool(None, 10, 2, ttl, None, Connection)


def test_a_forked_child_has_a_heartbeats_of_its_own() -> None:
    own = heartbeats._ProcessHeartbeats()
    inherited = own.own()
    pid = os.fork()
    if pid == 0:
        os._exit(int(own.own() is inherited))

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert own.own() is inherited


@pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None, reason="`make setup` installs it"
)
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_forked_child_retries_its_replies_by_a_thread_of_its_own() -> None:
    from osloxide.messaging.rabbit.replies import LateReplies

    late = LateReplies()
    of_driver = SimpleNamespace(listener=SimpleNamespace(driver="one"))
    late._hurried["one"] = threading.Event()  # its thread runs
    late._waiting.append(SimpleNamespace(was_attempted=False))  # type: ignore[arg-type]
    with late._changed:  # as another thread may hold it while the process forks
        pid = os.fork()
        if pid == 0:
            sent = threading.Event()
            reply = SimpleNamespace(is_settled=lambda: sent.set() or True, incoming=of_driver)
            late.add(reply)  # type: ignore[arg-type]
            os._exit(0 if sent.wait(PATIENCE) else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(late._waiting) == 1
