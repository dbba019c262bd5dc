"""CPython's own fork while threads of C enter the interpreter: does the child end?

Owns the answer to whose fault a forked child is that has nothing left to do and never ends
(docs/pythons.md). Threads that the interpreter has never seen call a function in Python, and the
process forks beside them. From 3.15 on ``PyGILState_Ensure`` holds a guard of PEP 788 until such a
thread is in; in a child that has not the thread none gives it back, and the end of the interpreter
waits for it. Uses the standard library alone. Status 0: each child ended; 1: one did not.

    PYTHON -I tests/installed/child_of_entering_threads.py [TIMES]
"""

import ctypes
import os
import sys
import time

THREADS = 4
ENTERS = 150
"""Microseconds in which they come to wait for the interpreter; forks are tried in each of them."""
PATIENCE = 5.0
"""Seconds after which a child that has nothing to do is said never to end."""


def ends(child: int) -> bool:
    """Whether *child* ends by itself; it has ended afterwards."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def main() -> int:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
    libc = ctypes.PyDLL(None)  # which does not let go of the interpreter
    enter = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(lambda _: None)
    thread = ctypes.c_ulong()
    left = 0
    for number in range(times):
        for _ in range(THREADS):
            libc.pthread_create(ctypes.byref(thread), None, enter, None)
            libc.pthread_detach(thread)
        libc.usleep(number % ENTERS)
        child = os.fork()
        if child == 0:
            return 0
        left += not ends(child)
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"CPython {version}: {left} of {times} children did not end")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
