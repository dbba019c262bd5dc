"""Threads that wait for the broker: how often they wake, and that an end wakes them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.conftest import Figure
from services.infra import Broker
from services.processes import held
from services.rpc import FLAGS
from services.subject import APPS, clean_environment

WINDOW = 30
STOCK = 7
"""Wake-ups of stock's listener in that time, while it polls every 5 s."""

pytestmark = pytest.mark.timeout(180)


class Idle:
    """apps/rpc_idle.py, running."""

    def __init__(self, broker: Broker) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(APPS / "rpc_idle.py"), broker.url, *FLAGS],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=clean_environment(),
        )  # fmt: skip
        _, *threads = self._line("THREADS")
        named = (thread.split("=") for thread in threads)
        self.threads = [(name, int(number)) for name, number in named]

    def _line(self, word: str) -> list[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.split()
        raise AssertionError(f"it ended before {word}")

    def wake_ups(self, thread: int) -> int:
        status = Path(f"/proc/{self.process.pid}/task/{thread}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("voluntary_ctxt"))
        return int(line.split()[1])

    def end(self) -> float:
        """Seconds that the stop and both transports' ``cleanup()`` took."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return float(self._line("ENDED")[1])


@pytest.fixture
def idle(broker: Broker) -> Iterator[Idle]:
    running = Idle(broker)
    yield running
    running.process.kill()
    running.process.wait()
    for pipe in (running.process.stdin, running.process.stdout):
        assert pipe is not None
        pipe.close()


def test_idle_threads_wake_no_more_often_than_stock_polls(idle: Idle, figure: Figure) -> None:
    # What the call was about is over: the sleeps are long from now on.
    held("it idles", lambda: idle.process.poll() is None, 2)
    before = [idle.wake_ups(thread) for _, thread in idle.threads]
    held("it idles", lambda: idle.process.poll() is None, WINDOW)
    after = [idle.wake_ups(thread) for _, thread in idle.threads]
    woken = [(name, b - a) for (name, _), a, b in zip(idle.threads, before, after, strict=True)]

    figure(f"wake-ups in {WINDOW} s: {woken}")
    assert len(woken) > 1
    assert max(count for _, count in woken) <= STOCK


def test_an_end_wakes_the_threads_that_wait(idle: Idle, figure: Figure) -> None:
    """They sleep for up to 15 s; polls of 5 s each took 4.1 s at the median."""
    held("it idles", lambda: idle.process.poll() is None, 3)
    began = time.monotonic()
    seconds = idle.end()

    figure(f"stop and cleanup() of two transports: {seconds:.3f} s")
    # Between what a busy machine takes and what is left of a sleep.
    assert time.monotonic() - began < 10
    assert idle.process.wait(30) == 0
