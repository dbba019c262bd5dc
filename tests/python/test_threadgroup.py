"""What thread groups promise. Rules: oslo_service.threadgroup (oslo.service 4.8)."""

from __future__ import annotations

import gc
import importlib
import threading
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from _children import run_python
from conftest import wait_until

from osloxide.threadgroup import GroupThread
from osloxide.threads import identity

TIMEOUT = 30.0


@pytest.fixture
def threadgroup(flavour: str) -> ModuleType:
    return importlib.import_module(f"osloxide.backends.{flavour}.threadgroup")


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Threads wait for it; opened at the end of the test in any case."""
    event = threading.Event()
    yield event
    event.set()


def native(entry: Any) -> threading.Thread:
    return getattr(entry, "thread", entry)


def test_a_thread_leaves_the_group_when_it_ends(threadgroup: ModuleType) -> None:
    group = threadgroup.ThreadGroup()

    thread = group.add_thread(lambda: None)
    thread.wait()

    assert group.threads == []


class Equal:
    """All are equal, and none has a hash."""

    def __eq__(self, _other: object) -> bool:
        return True


def test_groups_and_timers_that_are_equal_and_have_no_hash_are_told_apart(
    threadgroup: ModuleType,
) -> None:
    """Such a group was refused, and the end of one timer took another out of the group."""
    group = type("Group", (Equal, threadgroup.ThreadGroup), {})()
    timer = type("Timer", (Equal, group.FIXED_TIMER), {})
    first, second = timer(lambda: None), timer(lambda: None)
    group.timers += [first, second]

    group.timer_done(second)

    (left,) = group.timers
    assert left is first
    group.stop()


def test_a_weak_set_tells_equal_members_apart_and_forgets_those_that_are_collected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    members, first, second = identity.WeakIdentitySet(), Equal(), Equal()
    members.add(first)
    members.add(first)
    assert (second in members, len(members), bool(identity.WeakIdentitySet())) == (False, 1, False)

    walk = iter(members)
    members.add(second)
    assert [each is first for each in walk] == [True]
    members.discard(Equal())
    for name in ("_Reference", "WeakIdentityDict", "weakref"):  # as the interpreter does at its end
        monkeypatch.setattr(identity, name, None)
    del first, walk
    gc.collect()

    (left,) = members
    assert left is second
    assert len(members._members._entries) == 1


def test_wait_returns_when_every_thread_has_ended(
    threadgroup: ModuleType, gate: threading.Event
) -> None:
    group = threadgroup.ThreadGroup()
    ended: list[int] = []

    def work(number: int) -> None:
        gate.wait()
        ended.append(number)

    for number in range(5):
        group.add_thread(work, number)
    gate.set()

    group.wait()
    assert sorted(ended) == [0, 1, 2, 3, 4]


def test_wait_on_the_main_thread_ends_when_the_group_is_stopped(
    threadgroup: ModuleType, gate: threading.Event
) -> None:
    """Although the thread itself runs on: a native thread cannot be killed."""
    group = threadgroup.ThreadGroup()
    thread = native(group.add_thread(gate.wait))
    threading.Thread(target=group.stop).start()

    group.wait()

    assert group.threads == []
    assert thread.is_alive()
    assert thread.daemon, "it does not keep the process alive"


def test_stop_tells_threads_through_their_abort_event(
    threadgroup: ModuleType, gate: threading.Event
) -> None:
    group = threadgroup.ThreadGroup()
    told = threading.Event()

    def work() -> None:
        threading.current_thread().abort.wait(TIMEOUT)  # type: ignore[attr-defined]
        told.set()

    group.add_thread(work)
    group.stop()

    assert told.wait(TIMEOUT)


def test_a_graceful_stop_waits_for_threads_and_timers(
    threadgroup: ModuleType, gate: threading.Event
) -> None:
    group = threadgroup.ThreadGroup()
    ended: list[str] = []
    begun = threading.Barrier(3)

    def work(name: str) -> None:
        if gate.is_set():
            return
        begun.wait(TIMEOUT)
        gate.wait()
        ended.append(name)

    group.add_thread(work, "thread")
    group.add_timer_args(3600, work, ["timer"])
    begun.wait(TIMEOUT)
    opener = threading.Timer(0.01, gate.set)
    opener.start()

    group.stop(graceful=True)

    assert sorted(ended) == ["thread", "timer"]
    assert group.threads == []
    assert group.timers == []


def test_a_graceful_stop_inside_the_group_does_not_wait_for_itself(
    threadgroup: ModuleType,
) -> None:
    group = threadgroup.ThreadGroup()
    done = threading.Event()

    def work() -> None:
        group.stop(graceful=True)
        done.set()

    group.add_thread(work)
    assert done.wait(TIMEOUT)
    done.clear()
    group.add_timer(3600, work)
    assert done.wait(TIMEOUT)


def test_the_result_of_a_thread_comes_from_wait(threadgroup: ModuleType) -> None:
    group = threadgroup.ThreadGroup()

    assert group.add_thread(lambda: 42).wait() == 42


def test_a_handle_that_is_found_before_its_thread_starts_is_awaited(
    threadgroup: ModuleType, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of the group has it as soon as there is room for it."""
    group = threadgroup.ThreadGroup()
    start = threading.Thread.start
    got: list[Any] = []

    def wait() -> None:
        entry = group.threads[0]
        handle = entry if hasattr(entry, "wait") else threadgroup.Thread(entry, group)
        asked.set()
        got.append(handle.wait())

    asked = threading.Event()
    waiter = threading.Thread(target=wait)

    def start_late(thread: threading.Thread) -> None:
        if thread is not waiter:
            start(waiter)
            assert asked.wait(TIMEOUT)
            waiter.join(0.05)  # what does not wait has ended by then
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_late)
    group.add_thread(lambda: gate.wait() and 42)
    monkeypatch.undo()
    gate.set()
    waiter.join(TIMEOUT)

    assert got == [42]


def test_a_handle_whose_thread_cannot_be_started_is_not_awaited(
    threadgroup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = threadgroup.ThreadGroup()
    found: list[Any] = []

    def refuse(_thread: threading.Thread) -> None:
        entry = group.threads[0]
        found.append(entry if hasattr(entry, "wait") else threadgroup.Thread(entry, group))
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        group.add_thread(lambda: 42)
    monkeypatch.undo()

    assert found[0].wait() is None


def test_an_exception_of_a_thread_is_logged_and_surfaces_as_the_flavour_does(
    threadgroup: ModuleType, flavour: str, caplog: pytest.LogCaptureFixture
) -> None:
    group = threadgroup.ThreadGroup()

    def fail() -> None:
        raise KeyError("planted")

    thread = group.add_thread(fail)
    if flavour == "eventlet":
        with pytest.raises(KeyError, match="planted"):
            thread.wait()
    else:
        assert thread.wait() is None
    group.wait()
    assert "planted" in caplog.text


def test_exit_in_a_thread_surfaces_as_the_flavour_does(
    threadgroup: ModuleType, flavour: str, caplog: pytest.LogCaptureFixture
) -> None:
    group = threadgroup.ThreadGroup()

    def leave() -> None:
        raise SystemExit(5)

    group.add_thread(leave)

    if flavour == "eventlet":
        with pytest.raises(SystemExit, match="5"):
            group.wait()
    else:
        group.wait()
        assert "SystemExit(5)" in caplog.text
    group.wait()


@pytest.mark.parametrize("when", ["before", "after"])
def test_links_are_called_with_the_outcome_whether_the_thread_has_ended_or_not(
    threadgroup: ModuleType, gate: threading.Event, when: str
) -> None:
    group = threadgroup.ThreadGroup()
    seen: list[Any] = []
    called = threading.Event()

    def link(outcome: Any, *args: Any, **kw: Any) -> None:
        try:
            outcome.wait()
        except KeyError as exc:
            seen.append((exc.args, args, kw))
        called.set()

    def fail() -> None:
        gate.wait()
        raise KeyError("planted")

    thread = group.add_thread(fail)
    if when == "after":
        gate.set()
        native(thread).join(TIMEOUT)
    thread.link(link, 1, two=2)
    gate.set()

    assert called.wait(TIMEOUT)
    assert seen == [(("planted",), (1,), {"two": 2})]


def test_a_full_group_refuses_or_waits_as_the_flavour_does(
    threadgroup: ModuleType, flavour: str, gate: threading.Event
) -> None:
    group = threadgroup.ThreadGroup(1)
    group.add_thread(gate.wait)

    if flavour == "threading":
        with pytest.raises(RuntimeError, match="Maximum number of threads reached"):
            group.add_thread(gate.wait)
        return
    added = threading.Event()
    adder = threading.Thread(target=lambda: (group.add_thread(lambda: None), added.set()))
    adder.start()
    assert not added.is_set()
    gate.set()
    assert added.wait(TIMEOUT)


@pytest.mark.parametrize("keyword", ["max_threads", "thread_pool_size"])
def test_both_names_of_the_size_are_accepted(threadgroup: ModuleType, keyword: str) -> None:
    group = threadgroup.ThreadGroup(**{keyword: 7})

    assert group.thread_pool_size == 7
    with pytest.warns(DeprecationWarning, match="max_threads"):
        assert group.max_threads == 7


def test_defaults_are_those_of_the_flavour(threadgroup: ModuleType, flavour: str) -> None:
    sizes = {"eventlet": 10, "threading": 1000}

    assert threadgroup.ThreadGroup().thread_pool_size == sizes[flavour]


def test_threads_that_a_subclass_enters_by_itself_are_awaited(
    threadgroup: ModuleType, gate: threading.Event
) -> None:
    class Group(threadgroup.ThreadGroup):  # type: ignore[misc, name-defined]
        def add_thread(self, callback: Any, *args: Any, **kw: Any) -> Any:
            thread = threading.Thread(target=callback, args=args, kwargs=kw)
            with self._lock:
                self.threads.append(thread)
            thread.start()
            return thread

    group = Group()
    thread = group.add_thread(gate.wait)
    gate.set()

    group.wait()

    assert not thread.is_alive()
    assert group.threads == []


def test_timers_are_listed_until_they_are_done(threadgroup: ModuleType) -> None:
    group = threadgroup.ThreadGroup()
    timer = group.add_timer(3600, lambda: None)
    dynamic = group.add_dynamic_timer(lambda: 3600)

    assert group.timers == [timer, dynamic]
    group.timer_done(timer)
    group.timer_done(timer)
    assert group.timers == [dynamic]
    timer.stop()
    group.stop()
    assert group.timers == []
    assert not dynamic._running


@pytest.mark.parametrize("kind", ["fixed", "dynamic"])
def test_a_timer_whose_first_call_stops_the_group_is_not_called_again(
    threadgroup: ModuleType, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = threadgroup.ThreadGroup()
    timer_type = group.FIXED_TIMER if kind == "fixed" else group.DYNAMIC_TIMER
    start = timer_type.start
    stopped = threading.Event()

    def start_and_lose_the_processor(timer: Any, **when: Any) -> None:
        start(timer, **when)
        stopped.wait(0.5)  # the first call gets as far as it can before the group goes on

    monkeypatch.setattr(timer_type, "start", start_and_lose_the_processor)
    calls: list[int] = []

    def call() -> int:
        calls.append(len(calls))
        group.stop()
        stopped.set()
        return 0

    add = {"fixed": lambda: group.add_timer_args(0, call)}
    add["dynamic"] = lambda: group.add_dynamic_timer_args(call)
    add[kind]().wait()

    assert calls == [0]
    assert group.timers == []


def test_stop_timers_does_not_hold_up_others_while_it_waits(
    threadgroup: ModuleType, gate: threading.Event
) -> None:
    group = threadgroup.ThreadGroup()
    begun = threading.Event()

    def work() -> None:
        begun.set()
        gate.wait()

    group.add_timer(3600, work)
    assert begun.wait(TIMEOUT)
    stopper = threading.Thread(target=group.stop_timers, kwargs={"wait": True})
    stopper.start()
    wait_until(lambda: group.timers == [], "the timers are taken out")

    assert group.add_thread(lambda: 1).wait() == 1
    assert stopper.is_alive()
    gate.set()
    stopper.join(TIMEOUT)
    assert not stopper.is_alive()


def test_arguments_in_the_old_form_reach_the_callback_and_are_deprecated(
    threadgroup: ModuleType,
) -> None:
    group = threadgroup.ThreadGroup()
    seen: list[Any] = []
    called = threading.Event()

    def work(*args: Any, **kw: Any) -> int:
        seen.append((args, kw))
        called.set()
        return 3600

    with pytest.warns(DeprecationWarning, match="add_timer_args"):
        group.add_timer(3600, work, None, 1, two=2)
    assert called.wait(TIMEOUT)
    called.clear()
    with pytest.warns(DeprecationWarning, match="add_dynamic_timer_args"):
        group.add_dynamic_timer(work, None, None, 1, two=2)
    assert called.wait(TIMEOUT)
    assert seen == [((1,), {"two": 2})] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group.add_timer(3600, lambda: None)
    group.stop()


def test_cancel_with_a_timeout_stops_what_does_not_end(
    threadgroup: ModuleType, gate: threading.Event
) -> None:
    group = threadgroup.ThreadGroup()
    group.add_thread(gate.wait)

    group.cancel(timeout=0.01)

    assert group.threads == []


def test_a_forked_child_waits_for_no_thread_of_its_parent_and_has_room_for_its_own(
    threadgroup: ModuleType,
) -> None:
    program = f"""
import os, threading
from osloxide.backends.{threadgroup.__name__.split(".")[-2]} import threadgroup
gate = threading.Event()
group = threadgroup.ThreadGroup(1)
handle = group.add_thread(gate.wait)
with group._lock:
    pid = os.fork()
    if pid == 0:
        group.cancel(timeout=threading.TIMEOUT_MAX)
        group.stop(graceful=True)
        group.wait()
        assert handle.wait() is None and group.threads == []
        ran = []
        group.add_thread(ran.append, 1).wait()
        group.wait()
        os._exit(7 if ran else 8)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
gate.set()
print(status, handle.wait(), group.wait())
"""
    done = run_python(program)
    assert done.stdout.split()[0] == "7", done.stderr


@pytest.mark.parametrize("is_refused", [False, True])
def test_a_thread_that_is_cancelled_or_awaited_before_it_starts_raises_in_nobody(
    threadgroup: ModuleType, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    """The list of the group has it before; it may never start."""
    group = threadgroup.ThreadGroup()
    start = threading.Thread.start
    ended: list[Any] = []
    wait = group._wait_threads if is_refused else lambda: group.cancel(timeout=TIMEOUT)
    other = threading.Thread(target=lambda: ended.append(wait()))
    is_waiting = threading.Event()

    class Released(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            is_waiting.set()
            return super().wait(timeout)

    def start_late(thread: threading.Thread) -> None:
        if thread is not other:
            assert isinstance(thread, GroupThread)
            thread.released = Released()
            start(other)
            assert is_waiting.wait(TIMEOUT), "it did not wait"
            if is_refused:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_late)
    if is_refused:
        with pytest.raises(RuntimeError, match="can't start"):
            group.add_thread(ended.append, "called")
    else:
        group.add_thread(ended.append, "called")
    monkeypatch.undo()
    other.join(TIMEOUT)

    assert ended == [None], "it did not end, or the function was called"


def test_a_subclass_written_as_heats_is_works_and_its_timers_cost_no_threads() -> None:
    """heat.engine.service.ThreadGroupManager's way: its own add_thread() on the group's fields."""
    from osloxide.backends.threading import threadgroup

    class Group(threadgroup.ThreadGroup):
        def add_thread(self, callback: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with self._lock:
                if len(self.threads) >= self.max_threads:
                    raise RuntimeError("full")
            return super().add_thread(callback, *args, **kwargs)

    before = set(threading.enumerate())
    group, gate = Group(max_threads=2), threading.Event()
    ticks = threading.Semaphore(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of max_threads, which heat reads
        threads = [group.add_thread(gate.wait) for _ in range(2)]
        with pytest.raises(RuntimeError, match="full"):
            group.add_thread(gate.wait)
    for _ in range(200):
        group.add_timer(3600, ticks.release)
    for _ in range(200):
        assert ticks.acquire(timeout=TIMEOUT)

    # Its own two, and the one that all timers share.
    wait_until(lambda: len(set(threading.enumerate()) - before) <= 3, "idle timers cost nothing")
    gate.set()
    for thread in threads:
        thread.wait()
    assert len(group.timers) == 200
    group.stop(graceful=True)
    assert group.timers == []
    group.wait()


POOL = """
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import eventlet
eventlet.monkey_patch()
from oslo_service import service

class Server(service.Service):
    def start(self):
        self.listener = eventlet.listen(("127.0.0.1", 0))
        self.tg.add_thread(self.serve)

    def serve(self):
        eventlet.wsgi.server(self.listener, self.answer, custom_pool=self.tg.pool)

    def answer(self, environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])
        return [b"%d\\n" % self.tg.pool.size]

server = Server(threads=7)
server.start()
from urllib.request import urlopen
print(urlopen("http://127.0.0.1:%d/" % server.listener.getsockname()[1], timeout=30).read())
"""


def test_a_service_serves_in_the_pool_of_its_group_as_on_eventlet() -> None:
    """As trove does, and services whose WSGI module is older than oslo.service's."""
    result = run_python(POOL)
    assert result.stdout == "b'7\\n'\n", result.stderr
