"""eventlet.green.profile: one greenthread is profiled, from start() to stop()."""

from __future__ import annotations

import pstats
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from osloxide import green

with warnings.catch_warnings():
    # CPython 3.15 says that the standard library's module, of which this one is made, will go.
    warnings.simplefilter("ignore", DeprecationWarning)
    from osloxide.green.green import profile


def compute() -> int:
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    return 17


def seen(profiler: Any) -> dict[str, tuple[int, float]]:
    """Calls of each function of the standard report, and the seconds in it and below."""
    stats: Any = pstats.Stats(profiler)
    return {name: (calls, total) for (_, _, name), (_, calls, _, total, _) in stats.stats.items()}


def between_start_and_stop(profiler: Any) -> int:
    profiler.start()
    profiler.start()
    result = compute()
    profiler.stop()
    return result


WAYS: list[Callable[[Any], int]] = [
    between_start_and_stop,
    lambda profiler: profiler.runcall(compute),
    lambda profiler: profiler.runctx("globals()['result'] = compute()", names := {
        "compute": compute
    }, names) and names["result"],
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=["start", "runcall", "runctx"])
def test_a_greenthread_is_profiled_and_no_other(way: Callable[[Any], int]) -> None:
    over = threading.Event()

    def beside() -> None:
        while not over.is_set():
            green.sleep(0)

    def job() -> dict[str, tuple[int, float]]:
        profiler = profile.Profile()
        assert way(profiler) == 17
        return seen(profiler)

    other = green.spawn(beside)
    try:
        functions = green.spawn(job).wait()
    finally:
        over.set()
        other.wait()
    calls, seconds = functions["compute"]
    assert calls == 1
    assert seconds > 0
    assert "beside" not in functions


def test_a_profile_can_be_made_again() -> None:
    profiler = profile.Profile()
    for _ in range(2):
        between_start_and_stop(profiler)
        assert seen(profiler)["compute"][0] == 1
