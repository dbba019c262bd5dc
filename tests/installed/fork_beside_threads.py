"""CPython's own fork beside threads, without osloxide: does a child hang?

Owns the answer to whose fault a hang is that a service sees on a free-threaded CPython
(docs/free-threading.md). Four threads log in a loop; the main thread forks children that log once
and leave. With the interpreter's lock no thread but the forking one runs at the fork, and every
child ends. Without it a child can wait for the lock of an object that another thread held. Uses
the standard library alone. Status 0: every child ended; 1: one hung, and was killed.

    PYTHON -I tests/installed/fork_beside_threads.py [FORKS]
"""

import logging
import os
import signal
import sys
import threading
import time

CHILD_SECONDS = 20.0
"""A child that has not ended by then hangs: it has one line to log."""
THREADS = 4
LOG = logging.getLogger(__name__)


class Unbuffered(logging.Handler):
    """Writes without a buffered stream, whose lock CPython does not reset at a fork."""

    def __init__(self) -> None:
        super().__init__()
        self.sink = os.open(os.devnull, os.O_WRONLY)

    def emit(self, record: logging.LogRecord) -> None:
        os.write(self.sink, self.format(record).encode())


def disturb(number: int) -> None:
    while True:
        LOG.warning("thread %d", number)


def child_ends() -> bool:
    """Fork a child that logs one line; whether it ended. One that hangs is killed."""
    pid = os.fork()
    if pid == 0:
        LOG.warning("child")
        os._exit(0)
    deadline = time.monotonic() + CHILD_SECONDS
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        time.sleep(0.001)
    return True


def main() -> int:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    has_lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    sys.setswitchinterval(0.0002)
    logging.basicConfig(handlers=[Unbuffered()])
    for number in range(THREADS):
        threading.Thread(target=disturb, args=(number,), daemon=True).start()
    forks = 0
    hangs = False
    while forks < wanted and not hangs:
        forks += 1
        hangs = not child_ends()
    lock = "with" if has_lock else "without"
    version = sys.version.partition(" ")[0]
    print(f"CPython {version} {lock} its lock: {forks} forks, {int(hangs)} hung", flush=True)
    os._exit(int(hangs))  # the threads never end


if __name__ == "__main__":
    main()
