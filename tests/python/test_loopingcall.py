"""What looping calls promise. Rules: oslo_service.loopingcall (oslo.service 4.8)."""

from __future__ import annotations

import importlib
import threading
import time
from types import ModuleType
from typing import Any

import pytest

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


def test_no_thread_is_left_after_the_end(loopingcall: ModuleType) -> None:
    before = set(threading.enumerate())
    calls = [loopingcall.FixedIntervalLoopingCall(lambda: None) for _ in range(20)]
    events = [call.start(interval=3600) for call in calls]
    threads = set(threading.enumerate()) - before
    assert len(threads) == 20
    assert all(thread.daemon for thread in threads), "none keeps the process alive"

    for call in calls:
        call.stop()
    for event in events:
        event.wait(TIMEOUT)

    for thread in threads:
        until_ended(thread)


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
