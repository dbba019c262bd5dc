"""What wants to interrupt a thread that has ended leaves alone the one that has its ident now.

The system gives the ident of a thread that has ended to a new one. Rules: pthread_self(3).
"""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from waiting import wait_until

from osloxide import _native, green
from osloxide.backends.eventlet import threadgroup
from osloxide.green._core import interruption, outsiders, turns
from osloxide.green._core.interruption import GreenletExit, Interruption, interrupt
from osloxide.threads.pool_thread import register_thread

TIMEOUT = 30.0
ATTEMPTS = 100
"""How often it is tried to arm an exception that must not be armed: in most places it would be."""


class Other:
    """A thread without a frame of ``threading``, where an interruption would be raised at once."""

    def __init__(self) -> None:
        self.raised: BaseException | None = None
        self.ident = 0
        self._may_go_on = True
        self._has_ended = threading.Event()
        _thread.start_new_thread(self._run, ())
        wait_until(lambda: bool(self.ident), "it runs", TIMEOUT)

    def _run(self) -> None:
        thread: Any = register_thread("other")
        self.ident = _thread.get_ident()
        try:
            while self._may_go_on:
                time.sleep(0.001)
        except BaseException as raised:  # noqa: BLE001 - the test looks at it
            self.raised = raised
        thread.leave()
        self._has_ended.set()

    def end(self) -> None:
        self._may_go_on = False
        assert self._has_ended.wait(TIMEOUT)


@pytest.fixture
def other() -> Iterator[Other]:
    made = Other()
    yield made
    made.end()


@pytest.fixture
def ended() -> Any:
    """Who took turns on a thread that has ended."""
    seen: list[Any] = []

    def work() -> None:
        green.sleep(0)
        seen.append(green.getcurrent())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(TIMEOUT)
    native_id = seen[0]._native_id
    wait_until(lambda: not _native.thread_state(native_id), "it has ended", TIMEOUT)
    return seen[0]


def test_an_interruption_of_a_thread_that_has_ended_reaches_no_new_one(
    ended: Any, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended._ident = other.ident
    due: list[Callable[[], object]] = []
    monkeypatch.setattr(_native, "interrupt_thread", lambda *_: pytest.fail("it was tried"))
    with turns.lock, monkeypatch.context() as patch:
        patch.setattr(turns.clock, "call_later", lambda _, function: due.append(function))
        interrupt(ended, GreenletExit())
        assert due
        due.pop()()

    assert due == []
    assert ended.dead


def test_nothing_is_armed_for_a_thread_that_has_ended(ended: Any, other: Other) -> None:
    for _ in range(ATTEMPTS):
        assert not _native.interrupt_thread(
            other.ident, ended._native_id, "", GreenletExit, "osloxide", []
        )
    other.end()
    assert other.raised is None


def test_a_thread_of_a_stopped_group_is_not_interrupted_where_it_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outsiders, "UNHEARD_AFTER", 0.05)
    interrupted: list[Any] = []
    monkeypatch.setattr(interruption, "_interrupt_later", lambda *args: interrupted.append(args))
    group = threadgroup.ThreadGroup()
    begun, told, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        green.sleep(0)
        begun.set()
        told.wait(TIMEOUT)
        try:
            green.sleep(3600)
        except GreenletExit:
            ended.set()

    group.add_thread(work)
    assert begun.wait(TIMEOUT)
    group.stop()
    group.wait()

    assert interrupted == []
    told.set()
    assert ended.wait(TIMEOUT)


def test_what_a_thread_is_to_raise_is_not_lost_as_its_group_is_stopped() -> None:
    """It enters as another thread, which knows it already, interrupts it."""
    seen: list[Any] = []

    def work() -> None:
        me = green.getcurrent()
        mine = Interruption(KeyError("planted"))
        me._pending = turns.collections.deque([mine])
        outsiders.stopping._asked.add(threading.current_thread())
        outsiders.enter(me)
        seen.append(list(me._pending) == [mine])
        me._pending = None

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(TIMEOUT)
    assert seen == [True]
