"""The watch over a suite's process: what does not count as a test that hangs, and what does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from procfs import wants_cpu
from upstream.running import Quiet
from waiting import wait_until


def quiet_after(looks: int, *, used: float, wants: bool) -> Quiet:
    """A process that is looked at every second, and gets *used* of CPU in each."""
    quiet = Quiet()
    for second in range(looks + 1):
        quiet.look(100.0 + second, second * used, wants)
    return quiet


def test_a_test_that_waits_for_something_hangs_once_its_deadline_is_over() -> None:
    assert not quiet_after(45, used=0.0, wants=False).is_longer_than(45)
    assert quiet_after(46, used=0.0, wants=False).is_longer_than(45)


def test_a_test_that_computes_for_ever_hangs_once_its_deadline_is_over() -> None:
    assert quiet_after(46, used=1.0, wants=True).is_longer_than(45)


def test_two_threads_that_compute_do_not_halve_the_deadline() -> None:
    assert not quiet_after(45, used=2.0, wants=True).is_longer_than(45)


def test_time_in_which_others_have_the_processors_does_not_count() -> None:
    assert not quiet_after(400, used=0.1, wants=True).is_longer_than(45)


def test_a_test_that_gets_next_to_no_cpu_is_given_up_all_the_same() -> None:
    assert quiet_after(45 * 12 + 1, used=0.0, wants=True).is_longer_than(45)


def test_an_event_begins_a_new_deadline() -> None:
    quiet = quiet_after(40, used=0.0, wants=False)
    quiet.begin()
    quiet.look(160.0, 0.0, False)
    assert not quiet.is_longer_than(45)


@pytest.mark.parametrize(
    ("code", "wants"), [("while True: pass", True), ("import time; time.sleep(600)", False)]
)
def test_a_process_that_computes_wants_a_processor_and_one_that_sleeps_does_not(
    code: str, wants: bool
) -> None:
    with subprocess.Popen([sys.executable, "-c", f"import os; os.write(1, b'x')\n{code}"],
                          stdout=subprocess.PIPE) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert os.read(process.stdout.fileno(), 1) == b"x"
            wait_until(lambda: wants_cpu(process.pid) == wants, f"it wants a processor: {wants}")
        finally:
            process.kill()
