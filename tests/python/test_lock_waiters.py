"""A thread that wants the interpreter is told from one that sleeps elsewhere.

Rules: proc(5), futex(2); docs/eventlet.md on the handover ``strict``.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from osloxide import _native
from osloxide.green._core.turns import HANDOVER_VARIABLE

PROGRAM = """
import sys, threading, time
from osloxide import _native
from osloxide.green._core import clock, turns

for _ in range(10):  # the machine may keep those from running that it is learnt from
    if _native.learn_lock_waiters():
        break
sys.setswitchinterval(1000)  # no one is asked for the interpreter: the other wants it till we wait
ids, over = [], False
held = threading.Lock()
held.acquire()

def sleep_elsewhere():
    ids.append(threading.get_native_id())
    held.acquire()

def want():
    ids.append(threading.get_native_id())
    while not over:
        time.sleep(0.001)

def look_twice(native_id):
    holder = turns.turns.holder = turns.TurnTaker()
    holder._native_id = native_id
    turns.turns.ready.append(turns.TurnTaker())
    with turns.lock:
        clock.clock._look(0.0)
        clock.clock._look(0.0)
    return turns.turns.holder is holder

threads = []
for body in (sleep_elsewhere, want):
    threads.append(threading.Thread(target=body))
    threads[-1].start()
    while len(ids) < len(threads):
        time.sleep(0.001)
asleep, wants = ids

end = time.monotonic() + 60
while not _native.waits_for_interpreter(wants) and time.monotonic() < end:
    pass
said = [_native.waits_for_interpreter(wants), _native.waits_for_interpreter(asleep)]
seen = [_native.thread_state(each) for each in ids]
said += [_native.thread_waits(wants, seen[1]), _native.thread_waits(asleep, seen[0])]
said += [look_twice(wants), look_twice(asleep)]
over = True
held.release()
for thread in threads:
    thread.join()
print(*said)
"""

HAS_LOCK = getattr(sys, "_is_gil_enabled", lambda: True)()


@pytest.mark.skipif(not HAS_LOCK, reason="this interpreter has no lock that a thread could want")
@pytest.mark.parametrize("handover", ["yield", "strict"])
def test_the_baton_stays_with_a_thread_that_wants_the_interpreter(handover: str) -> None:
    """It computes, however long the machine keeps it from that; a sleeping one hands it on."""
    if not any(_native.learn_lock_waiters() for _ in range(10)):
        pytest.skip("the C library keeps no address for those who wait, or the kernel hides it")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {HANDOVER_VARIABLE: handover},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "False", "False", "True", "True", "False"]
