"""Threads of greenthreads are used again, and nothing of one greenthread is found by the next."""

from __future__ import annotations

import contextvars
import os
import sys
import threading

import procfs
import pytest
from waiting import wait_until

from osloxide.green import event, greenthread
from osloxide.green._core import carriers

WITHIN = 45.0


def idle() -> int:
    return len(carriers._idle)


def run_and_settle(function):  # type: ignore[no-untyped-def]
    """Run *function* in a greenthread; its thread waits for work when this returns."""
    before = idle()
    result = greenthread.spawn(function).wait()
    wait_until(lambda: idle() >= max(before, 1), "the thread waits for work", WITHIN)
    return result


def test_the_next_greenthread_gets_the_thread_of_the_last() -> None:
    first = run_and_settle(threading.get_native_id)
    assert run_and_settle(threading.get_native_id) == first


def test_a_greenthread_finds_no_local_data_of_another() -> None:
    local = threading.local()
    released = threading.Event()

    class Data:
        def __del__(self) -> None:
            released.set()

    def leave_data() -> int:
        local.data = Data()
        return threading.get_native_id()

    def look() -> tuple[int, bool]:
        return threading.get_native_id(), hasattr(local, "data")

    first = run_and_settle(leave_data)
    assert released.is_set()
    assert run_and_settle(look) == (first, False)


def test_a_greenthread_begins_with_an_empty_context() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    def change() -> int:
        variable.set(1)
        return threading.get_native_id()

    first = run_and_settle(change)
    assert run_and_settle(lambda: (threading.get_native_id(), variable.get())) == (first, 0)


def test_a_greenthread_finds_no_trace_function_of_another() -> None:
    if sys.gettrace() is not None or threading.gettrace() is not None:
        pytest.skip("this run is traced by itself")

    def trace(*_arguments: object) -> None:
        return None

    def leave_trace() -> int:
        sys.settrace(trace)
        sys.setprofile(trace)
        return threading.get_native_id()

    first = run_and_settle(leave_trace)
    found = run_and_settle(lambda: (threading.get_native_id(), sys.gettrace(), sys.getprofile()))
    assert found == (first, None, None)


def test_each_greenthread_is_a_thread_of_its_own_to_python() -> None:
    first = run_and_settle(threading.current_thread)
    second = run_and_settle(threading.current_thread)
    assert first is not second
    assert first.name != second.name
    assert not first.is_alive()
    assert {first, second}.isdisjoint(threading.enumerate())


def test_threads_without_work_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carriers, "LINGER", 0.05)
    threads = [greenthread.spawn(threading.get_native_id) for _ in range(10)]
    used = {thread.wait() for thread in threads}
    mine = f"/proc/{os.getpid()}/task"
    wait_until(
        lambda: not used & {int(name) for name in os.listdir(mine)}, "the threads end", WITHIN
    )


def test_no_more_threads_are_kept_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carriers, "KEPT", 3)
    before = procfs.threads(os.getpid())
    go = event.Event()
    waiting = [greenthread.spawn(go.wait) for _ in range(40)]
    greenthread.sleep(0)
    go.send(None)
    for thread in waiting:
        thread.wait()
    # Beside those that are kept: the clock, and threads that earlier tests have left.
    wait_until(
        lambda: procfs.threads(os.getpid()) <= before + carriers.KEPT + 1,
        "the other threads end", WITHIN,
    )  # fmt: skip


def test_a_forked_child_does_not_count_on_threads_that_it_does_not_have() -> None:
    run_and_settle(threading.get_native_id)
    child = os.fork()
    if child == 0:
        os._exit(0 if greenthread.spawn(lambda: 7).wait() == 7 else 1)
    assert os.waitpid(child, 0)[1] == 0
