"""What looping calls promise. Rules: oslo_service.loopingcall (oslo.service 4.8)."""

from __future__ import annotations

import importlib
import itertools
import logging
import threading
import time
from types import ModuleType
from typing import Any

import pytest
from _children import run_python
from conftest import wait_until

TIMEOUT = 30.0


@pytest.fixture
def loopingcall(flavour: str) -> ModuleType:
    return importlib.import_module(f"osloxide.backends.{flavour}.loopingcall")


def until_ended(thread: threading.Thread) -> None:
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_the_value_of_looping_call_done_is_the_outcome(loopingcall: ModuleType) -> None:
    def once() -> None:
        raise loopingcall.LoopingCallDone("value")

    call = loopingcall.FixedIntervalLoopingCall(once)

    assert call.start(interval=60).wait(TIMEOUT) == "value"
    assert call.wait() == "value"


def test_sleeps_are_logged_at_the_level_of_the_flavour(
    loopingcall: ModuleType, flavour: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    seen: list[None] = []

    def twice() -> None:
        seen.append(None)
        if len(seen) == 2:
            raise loopingcall.LoopingCallDone

    loopingcall.FixedIntervalLoopingCall(twice).start(interval=0.01).wait(TIMEOUT)

    levels = {it.levelno for it in caplog.records if "sleeping for" in it.getMessage()}
    assert levels == {{"eventlet": 5, "threading": logging.DEBUG}[flavour]}


def test_arguments_reach_the_function(loopingcall: ModuleType) -> None:
    seen: list[Any] = []

    def once(*args: Any, **kw: Any) -> None:
        seen.append((args, kw))
        raise loopingcall.LoopingCallDone

    call = loopingcall.DynamicLoopingCall(once, 1, two=2)

    call.start().wait(TIMEOUT)
    assert seen == [((1,), {"two": 2})]
    assert (call.args, call.kw) == ((1,), {"two": 2})


def test_stop_ends_a_sleep_at_once(loopingcall: ModuleType) -> None:
    called = threading.Event()
    call = loopingcall.FixedIntervalLoopingCall(called.set)
    done = call.start(interval=3600)
    assert called.wait(TIMEOUT)

    call.stop()

    assert done.wait(TIMEOUT) is True


def test_stop_ends_an_initial_delay_without_a_call(loopingcall: ModuleType) -> None:
    called = threading.Event()
    call = loopingcall.FixedIntervalLoopingCall(called.set)
    done = call.start(interval=1, initial_delay=3600)

    call.stop()

    assert done.wait(TIMEOUT) is True
    assert not called.is_set()


def test_a_call_may_be_started_again_as_soon_as_wait_returned(loopingcall: ModuleType) -> None:
    def once() -> None:
        raise loopingcall.LoopingCallDone

    call = loopingcall.FixedIntervalLoopingCall(once)

    for _ in range(50):
        call.start(interval=60).wait(TIMEOUT)


def test_starting_twice_is_refused_while_it_runs(loopingcall: ModuleType) -> None:
    call = loopingcall.FixedIntervalLoopingCall(lambda: None)
    done = call.start(interval=3600)

    with pytest.raises(RuntimeError, match="can only run one function"):
        call.start(interval=3600)

    call.stop()
    done.wait(TIMEOUT)


def named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_a_thousand_idle_loops_share_one_thread_and_all_end_at_once(
    loopingcall: ModuleType,
) -> None:
    wait_until(lambda: not named("timers"), "the thread of earlier tests has ended")
    before = set(threading.enumerate())
    called = threading.Semaphore(0)
    calls = [loopingcall.FixedIntervalLoopingCall(called.release) for _ in range(1000)]
    events = [call.start(interval=3600) for call in calls]
    for _ in calls:
        assert called.acquire(timeout=TIMEOUT)

    wait_until(lambda: len(set(threading.enumerate()) - before) == 1, "one thread is left")
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon, "it does not keep the process alive"
    for call in calls:
        call.stop()

    assert [event.wait(TIMEOUT) for event in events] == [True] * 1000
    until_ended(thread)


def test_loops_that_rest_are_called_again_in_time_whatever_another_one_does(
    loopingcall: ModuleType,
) -> None:
    blocked, go_on = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        go_on.wait(TIMEOUT)

    blocker = loopingcall.FixedIntervalLoopingCall(block)
    blocker.start(interval=1)
    assert blocked.wait(TIMEOUT)
    instants: list[float] = []

    def note() -> None:
        instants.append(time.monotonic())
        if len(instants) == 3:
            raise loopingcall.LoopingCallDone

    loopingcall.FixedIntervalLoopingCall(note).start(interval=0.6).wait(TIMEOUT)
    blocker.stop()
    go_on.set()
    blocker.wait()

    gaps = [later - earlier for earlier, later in itertools.pairwise(instants)]
    # The arithmetic of oslo.service rounds to hundredths.
    assert all(gap >= 0.58 for gap in gaps), gaps


def test_a_stop_at_any_moment_ends_a_loop_that_rests_and_wakes(loopingcall: ModuleType) -> None:
    loops = [loopingcall.DynamicLoopingCall(lambda: 0.5) for _ in range(200)]
    events = [loop.start() for loop in loops]

    # One after the other, while they wake up all around.
    for loop in loops:
        time.sleep(0.005)
        loop.stop()

    assert [event.wait(TIMEOUT) for event in events] == [True] * 200


def test_a_forked_child_begins_without_loops_and_can_start_its_own(
    loopingcall: ModuleType,
) -> None:
    program = f"""
import os, threading
TIMEOUT = {TIMEOUT}
from osloxide.backends.{loopingcall.__name__.split(".")[-2]} import loopingcall
parents = loopingcall.FixedIntervalLoopingCall(lambda: None)
outcome = parents.start(interval=3600)
while parents._timer is None:
    pass
pid = os.fork()
if pid == 0:
    calls = []
    def count():
        calls.append(1)
        if len(calls) == 2:
            raise loopingcall.LoopingCallDone(len(calls))
    assert outcome.ready() and parents.wait() and outcome.wait()
    assert outcome.wait(timeout=TIMEOUT) is True
    parents.stop()
    parents.f = count
    assert parents.start(interval=0).wait(TIMEOUT) == 2
    calls.clear()
    os._exit(loopingcall.FixedIntervalLoopingCall(count).start(interval=0.6).wait())
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
parents.stop()
print(status, outcome.wait())
"""
    assert run_python(program).stdout.split() == ["2", "True"]


def test_a_loop_waits_for_a_thread_when_the_system_has_none(
    loopingcall: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    called = threading.Semaphore(0)
    call = loopingcall.FixedIntervalLoopingCall(called.release)
    outcome = call.start(interval=0.6)
    assert called.acquire(timeout=TIMEOUT)
    wait_until(lambda: call._timer is not None, "it rests")
    start, refusals = threading.Thread.start, [1]

    def refuse(thread: threading.Thread) -> None:
        if refusals:
            refusals.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)

    assert called.acquire(timeout=TIMEOUT), "it was given up"
    assert "can't start new thread; tried again" in caplog.text
    call.stop()
    assert outcome.wait(TIMEOUT) is True


def test_a_loop_for_which_the_system_has_no_thread_may_be_started_again(
    loopingcall: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once() -> None:
        raise loopingcall.LoopingCallDone("value")

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    call = loopingcall.FixedIntervalLoopingCall(once)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            call.start(interval=60)
    with pytest.raises(RuntimeError, match="can't start"):
        call.done.wait(TIMEOUT)

    assert call.start(interval=60).wait(TIMEOUT) == "value"


def test_a_subclass_that_sleeps_its_own_way_is_let_sleep(loopingcall: ModuleType) -> None:
    slept: list[float] = []

    class Mine(loopingcall.FixedIntervalLoopingCall):
        def _sleep(self, timeout: float) -> None:
            slept.append(timeout)
            self.stop()

    assert Mine(lambda: None).start(interval=3600).wait(TIMEOUT) is True
    assert slept == [pytest.approx(3600, abs=1)]


def test_an_exception_ends_the_loop_is_logged_and_raised_by_wait(
    loopingcall: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise KeyError("planted")

    call = loopingcall.FixedIntervalLoopingCall(fail)

    with pytest.raises(KeyError, match="planted"):
        call.start(interval=60).wait(TIMEOUT)
    assert "Fixed interval looping call" in caplog.text
    assert "planted" in caplog.text


def test_exit_in_the_function_reaches_the_one_who_waits(loopingcall: ModuleType) -> None:
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        loopingcall.FixedIntervalLoopingCall(leave).start(interval=60).wait(TIMEOUT)


@pytest.mark.parametrize("function", [None, 5])
def test_what_cannot_be_called_ends_the_loop_with_the_error_of_the_call(
    loopingcall: ModuleType, function: object
) -> None:
    started = loopingcall.FixedIntervalLoopingCall(function).start(interval=60)

    with pytest.raises(TypeError, match="is not callable"):
        started.wait(TIMEOUT)


def test_exceptions_are_survived_when_asked_for(loopingcall: ModuleType) -> None:
    runs: list[int] = []

    def fail_twice() -> None:
        runs.append(1)
        if len(runs) < 3:
            raise KeyError
        raise loopingcall.LoopingCallDone(len(runs))

    call = loopingcall.FixedIntervalLoopingCall(fail_twice)

    assert call.start(interval=0.001, stop_on_exception=False).wait(TIMEOUT) == 3


def test_a_timeout_does_not_look_at_the_wall_clock(
    loopingcall: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []

    def thrice() -> None:
        runs.append(1)
        monkeypatch.setattr(time, "time", lambda: 4e9)
        if len(runs) == 3:
            raise loopingcall.LoopingCallDone(len(runs))

    call = loopingcall.FixedIntervalWithTimeoutLoopingCall(thrice)

    assert call.start(interval=0.001, timeout=3600).wait(TIMEOUT) == 3


def test_a_timeout_ends_the_loop(loopingcall: ModuleType) -> None:
    call = loopingcall.FixedIntervalWithTimeoutLoopingCall(lambda: None)

    with pytest.raises(loopingcall.LoopingCallTimeOut):
        call.start(interval=0.001, timeout=0.01).wait(TIMEOUT)


def test_the_interval_counts_from_start_to_start(
    loopingcall: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    took = iter([0.25, 3.0, 1.0])

    def thrice() -> None:
        if len(slept) == 3:
            raise loopingcall.LoopingCallDone

    monkeypatch.setattr(loopingcall.LoopingCallBase, "_sleep", lambda _self, t: slept.append(t))
    monkeypatch.setattr(loopingcall.LoopingCallBase, "_elapsed", lambda _self, _watch: next(took))

    loopingcall.FixedIntervalLoopingCall(thrice).start(interval=1).wait(TIMEOUT)

    assert slept == [0.75, 0, 0]


def test_a_dynamic_call_sleeps_what_the_function_says_up_to_the_limit(
    loopingcall: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    answers: list[Any] = [2, 9, None]

    def answer() -> Any:
        if not answers:
            raise loopingcall.LoopingCallDone
        return answers.pop(0)

    monkeypatch.setattr(loopingcall.LoopingCallBase, "_sleep", lambda _self, t: slept.append(t))

    loopingcall.DynamicLoopingCall(answer).start(periodic_interval_max=5).wait(TIMEOUT)

    assert slept == [2, 5, 5]


def test_back_off_doubles_after_failures_and_starts_over_after_success(
    loopingcall: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    answers = [False, False, True, False]

    def answer() -> bool:
        if not answers:
            raise loopingcall.LoopingCallDone
        return answers.pop(0)

    monkeypatch.setattr(loopingcall.LoopingCallBase, "_sleep", lambda _self, t: slept.append(t))
    monkeypatch.setattr("random.SystemRandom.gauss", lambda *_: 1.0)

    loopingcall.BackOffLoopingCall(answer).start(jitter=1.0).wait(TIMEOUT)

    assert slept == [2, 4, 1, 2]


def test_each_call_of_a_retried_function_has_its_own_count(loopingcall: ModuleType) -> None:
    failures = 0

    @loopingcall.RetryDecorator(
        max_retry_count=2, inc_sleep_time=0, max_sleep_time=0, exceptions=(KeyError,)
    )
    def flaky() -> str:
        nonlocal failures
        failures += 1
        if failures % 3:
            raise KeyError
        return "done"

    for _ in range(5):
        assert flaky() == "done"


def test_waiting_with_a_timeout_answers_as_the_flavour_does(
    loopingcall: ModuleType, flavour: str
) -> None:
    call = loopingcall.FixedIntervalLoopingCall(lambda: None)
    done = call.start(interval=3600)
    try:
        if flavour == "eventlet":
            assert done.wait(timeout=0.001) is None
        else:
            with pytest.raises(RuntimeError, match="Timed out"):
                done.wait(timeout=0.001)
    finally:
        call.stop()


def test_waiting_before_the_start_says_what_to_do(loopingcall: ModuleType) -> None:
    with pytest.raises(AttributeError, match=r"call start\(\) first"):
        loopingcall.FixedIntervalLoopingCall(lambda: None).wait()


def test_messages_go_to_the_logger_that_default_log_levels_name(
    loopingcall: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    call = loopingcall.FixedIntervalLoopingCall(lambda: None)
    done = call.start(interval=0.001)

    call.stop()
    done.wait(TIMEOUT)

    assert {record.name for record in caplog.records} <= {"oslo_service.loopingcall"}


def test_neutrons_private_import_is_the_public_class() -> None:
    """neutron's DHCP agent imports the backend's module at run time."""
    program = """
from osloxide.activation import import_hook
import_hook.install()
from oslo_service.backend._threading import loopingcall as private
from oslo_service import loopingcall
assert private.FixedIntervalLoopingCall is loopingcall.FixedIntervalLoopingCall
calls = []
def twice():
    calls.append(1)
    if len(calls) == 2:
        raise private.LoopingCallDone("done")
print(private.FixedIntervalLoopingCall(f=twice).start(interval=0.6).wait())
"""
    assert run_python(program).stdout.split() == ["done"]
