"""CPython's own ``with`` statement and a signal handler that raises: does a lock stay locked?

Owns the answer to whose fault a lock is that nobody gives back where a handler has raised
(docs/eventlet.md). A timer's handler raises again and again in a loop of ``with lock: pass``.
Before 3.14 no handler runs once such a statement has its lock and before its body is guarded; 3.14
may run one there (CPython issue 148874). Uses the standard library alone. Status 0: the lock was
free each time; 1: it was not.

    PYTHON -I tests/installed/handler_after_with.py [TIMES]
"""

import signal
import sys
import threading

INTERVAL = 0.0002
"""Seconds in which the loop goes round a thousand times."""


class Raised(Exception):
    """What the handler raises."""


def interrupt(_signo: int, _frame: object) -> None:
    raise Raised


def stays_locked(lock: threading.Lock) -> bool:
    """Whether *lock* is locked after a handler has ended the loop; it is free again afterwards."""
    try:
        signal.setitimer(signal.ITIMER_REAL, INTERVAL)
        while True:
            with lock:
                pass
    except Raised:
        pass
    locked = lock.locked()
    if locked:
        lock.release()
    return locked


def main() -> int:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    signal.signal(signal.SIGALRM, interrupt)
    lock = threading.Lock()
    left = sum(stays_locked(lock) for _ in range(times))
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"CPython {version}: locked after {left} of {times} handlers that raised")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
