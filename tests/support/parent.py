"""The smallest launcher there is, around the native supervisor: for tests only.

Usage: ``parent.py WORKERS GRACE [BEHAVIOUR] [HUP]``. Everything that happens is written to standard
output as one JSON list a line, by the parent and by its workers, in single writes.
"""

import json
import os
import signal
import subprocess
import sys
import time

from osloxide import _native

WORKERS, GRACE = int(sys.argv[1]), float(sys.argv[2])
BEHAVIOUR = sys.argv[3] if len(sys.argv) > 3 else "plain"
HUP = sys.argv[4] if len(sys.argv) > 4 else "mutate"


def say(*what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def leave(_signo: int, _frame: object) -> None:
    say("term", os.getpid())
    if BEHAVIOUR != "stubborn":
        _native.wake()


def work(slot: int, generation: int) -> None:
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, lambda *_: say("hup", os.getpid()))
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGHUP})
    if BEHAVIOUR == "crash" or (BEHAVIOUR == "crash-later" and generation > 0):
        os._exit(7)
    if BEHAVIOUR == "daemon":
        # A command that the worker left running must not keep the parent's pipes open.
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        child = subprocess.Popen(["sleep", "1000"], close_fds=False, **quiet)
        say("daemon", child.pid)
    if BEHAVIOUR == "slow":
        _native.park(0.2)
    fds = len(os.listdir("/proc/self/fd"))
    say("ready", os.getpid(), slot, generation, fds)  # Before the parent can act on it.
    _native.worker_ready()
    say("announced", os.getpid())
    if BEHAVIOUR == "spin":
        while True:
            all(range(10**9))  # One C call, seconds long, that never lets go of the interpreter.
    _native.park()
    say("left", os.getpid(), _native.parent_died())


def fork(supervisor: _native.Supervisor, board: _native.Scoreboard, slot: int, gen: int) -> None:
    held = {signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        pid = os.fork()
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
        supervisor.fork_failed(slot, error.errno or 0)
        return
    if pid == 0:
        status = 3
        try:
            _native.enter_worker(supervisor, board, slot, gen)
            work(slot, gen)
            status = 0
        finally:
            os._exit(status)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, held)
    supervisor.forked(slot, pid)


def main() -> int:
    board = _native.Scoreboard("parent.py")
    supervisor = _native.Supervisor(board)
    for signo, kind in (("TERM", "stop"), ("HUP", HUP), ("INT", "abort")):
        handler = lambda *_, kind=kind: supervisor.request(kind)  # noqa: E731
        signal.signal(getattr(signal, f"SIG{signo}"), handler)
    signal.signal(signal.SIGUSR1, lambda *_: say("usr1", os.getpid()))
    _native.install_wakeup()
    supervisor.set_graceful_timeout(GRACE)
    supervisor.add_group("tests", WORKERS)
    say("parent", os.getpid())
    while (command := supervisor.next()) is not None:
        say(*command, time.monotonic())
        if command[0] == "fork":
            fork(supervisor, board, command[2], command[3])
        elif command[0] in {"reload", "mutate"}:
            supervisor.configured()
    say("ended", supervisor.exit_status(), len(os.listdir("/proc/self/fd")))
    return supervisor.exit_status()


if __name__ == "__main__":
    sys.exit(main())
