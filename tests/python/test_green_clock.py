"""The thread that watches timers and descriptors outlives what it calls."""

from __future__ import annotations

import pytest
from _children import run_python

PRELUDE = """
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import logging, os
logging.basicConfig(format="%(message)s")
import eventlet
from eventlet.hubs import get_hub, hub, timer, trampoline
"""

BROKEN_LISTENER = """
class Broken(hub.FdListener):
    def on_ready(self, fileno):
        raise ValueError("this one is broken")
reader, writer = os.pipe()
get_hub()._register(Broken("read", reader, print, print, None))
os.write(writer, b"x")
"""

BROKEN_TIMER = """
class Broken(timer.Timer):
    def expire(self):
        raise ValueError("this one is broken")
get_hub().add_timer(Broken(0.001, print))
"""

WAIT = """
other, end = os.pipe()
eventlet.spawn_after(0.05, os.write, end, b"y")
trampoline(other, read=True, timeout=30)
print("waits end")
"""


@pytest.mark.parametrize("broken", [BROKEN_LISTENER, BROKEN_TIMER], ids=["listener", "timer"])
def test_a_call_that_fails_is_logged_and_later_waits_end(broken: str) -> None:
    result = run_python(PRELUDE + broken + WAIT)
    assert result.stdout == "waits end\n", result.stderr
    assert "What a timer or a descriptor called has failed" in result.stderr
    assert "ValueError: this one is broken" in result.stderr


BELL = """
import select
from osloxide.green._core.clock import clock
from osloxide.green._core.turns import lock
reader, writer = os.pipe()
waiting = eventlet.spawn(trampoline, reader, read=True)
while True:  # until the thread of the clock sleeps
    eventlet.sleep(0.01)
    with lock:
        if clock._wakes_at > 0:
            clock._run_before(0.0)
            clock.collect()
            print(select.select([clock._bell], [], [], 0)[0] == [clock._bell])
            break
os.write(writer, b"x")
waiting.wait()
"""


def test_a_thread_that_collects_what_is_due_leaves_the_bell_to_the_thread_of_the_clock() -> None:
    """Which waits for it in the kernel, and would sleep on."""
    result = run_python(PRELUDE + BELL)
    assert result.stdout == "True\n", result.stderr


LISTED = """
import threading
from osloxide.threads import own
waiting = eventlet.spawn(eventlet.sleep, 3600)
expected = {"green-clock", "GreenThread-1"}
while not expected <= {thread.name for thread in threading.enumerate()}:
    eventlet.sleep(0.01)
print([thread.name for thread in own.of_application()])
waiting.kill()
"""


def test_the_thread_of_the_clock_is_none_of_the_application() -> None:
    result = run_python(PRELUDE + LISTED)
    assert result.stdout == "['GreenThread-1']\n", result.stderr
