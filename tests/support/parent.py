"""The smallest launcher there is, around the native supervisor: for tests only.

Everything that happens is written to standard output as one JSON list a line, by the parent and by
its workers, in single writes. ``--help`` lists how to make it misbehave.
"""

import argparse
import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time

from osloxide import _native

HELD = {signal.SIGTERM, signal.SIGHUP}
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("workers", type=int)
    parser.add_argument("grace", type=float)
    parser.add_argument("behaviour", nargs="?", default="plain")
    parser.add_argument("hup", nargs="?", default="mutate")
    parser.add_argument("--worker-timeout", type=float, default=0)
    parser.add_argument("--without-pidfd", action="store_true")
    parser.add_argument("--stray-child", action="store_true")
    parser.add_argument("--refuse-forks", type=int, default=0)
    parser.add_argument("--second", action="store_true", help="another supervisor, one worker")
    return parser.parse_args()


def say(*what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


class Worker:
    def __init__(self, behaviour: str, slot: int, generation: int) -> None:
        self.behaviour, self.slot, self.generation = behaviour, slot, generation

    def on_term(self, _signo: int, _frame: object) -> None:
        say("term", os.getpid())
        if self.behaviour != "stubborn":
            _native.wake()

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self.on_term)
        signal.signal(signal.SIGHUP, lambda *_: say("hup", os.getpid()))
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        if self.behaviour == "crash" or (self.behaviour == "crash-later" and self.generation > 0):
            os._exit(7)
        if self.behaviour == "daemon":
            # A command that the worker left running must not keep the parent's pipes open.
            child = subprocess.Popen(["sleep", "1000"], close_fds=False, **QUIET)
            say("stray", child.pid)
        if self.behaviour == "orphan" and self.slot == 0 and os.fork() == 0:
            if os.fork() == 0:
                os._exit(5)  # Ends as a child of process 1.
            os._exit(0)
        if self.behaviour == "slow":
            _native.park(0.2)
        fds = len(os.listdir("/proc/self/fd"))
        say("ready", os.getpid(), self.slot, self.generation, fds)  # Before anyone can act on it.
        _native.worker_ready()
        say("announced", os.getpid())
        if self.behaviour == "spin":
            while True:
                all(range(10**9))  # One C call, seconds long, that keeps the interpreter.
        _native.park()
        say("left", os.getpid(), _native.parent_died())


class Parent:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.refusals = args.refuse_forks
        self.board = _native.Scoreboard("parent.py")
        self.supervisor = _native.Supervisor(self.board)

    def on_usr1(self, _signo: int, _frame: object) -> None:
        status = subprocess.run(["sh", "-c", "exit 3"], check=False).returncode
        say("usr1", os.getpid(), status)

    def fork(self, supervisor: _native.Supervisor, slot: int, generation: int) -> None:
        if self.refusals:
            self.refusals -= 1
            supervisor.fork_failed(slot, errno.EAGAIN)
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        pid = os.fork()
        if pid == 0:
            status = 3
            try:
                _native.enter_worker(supervisor, self.board, slot, generation)
                Worker(self.args.behaviour, slot, generation).run()
                status = 0
            finally:
                os._exit(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        with self.few_descriptors() if self.args.without_pidfd else contextlib.nullcontext():
            supervisor.forked(slot, pid)

    @contextlib.contextmanager
    def few_descriptors(self):
        """Leave no descriptor for a pidfd."""
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        yield
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def run(self) -> int:
        supervisor = self.supervisor
        for name, kind in (("SIGTERM", "stop"), ("SIGHUP", self.args.hup), ("SIGINT", "abort")):
            handler = lambda *_, kind=kind: supervisor.request(kind)  # noqa: E731
            signal.signal(getattr(signal, name), handler)
        signal.signal(signal.SIGUSR1, self.on_usr1)
        _native.install_wakeup()
        supervisor.set_graceful_timeout(self.args.grace)
        supervisor.set_worker_timeout(self.args.worker_timeout)
        supervisor.add_group("tests", self.args.workers)
        say("parent", os.getpid())
        if self.args.stray_child:
            pid = os.fork()
            if pid == 0:
                os.close(1)
                os.close(2)
                time.sleep(1000)
            say("stray", pid)
        if self.args.second:
            self.second = _native.Supervisor(_native.Scoreboard("second"))
            self.second.add_group("second", 1)
            while (command := self.second.due()) is not None:
                # A worker that was quick has announced itself by now.
                if command[0] == "fork":
                    self.fork(self.second, command[2], command[3])
        while (command := supervisor.next()) is not None:
            say(*command, time.monotonic())
            if command[0] == "fork":
                self.fork(supervisor, command[2], command[3])
            elif command[0] == "orphan":
                say("reaped", command[1], supervisor.reap_orphan(command[1]))
            elif command[0] in {"reload", "mutate"}:
                supervisor.configured()
        has_handler = signal.getsignal(signal.SIGCHLD) is not signal.SIG_DFL
        say("ended", supervisor.exit_status(), len(os.listdir("/proc/self/fd")), has_handler)
        return supervisor.exit_status()


if __name__ == "__main__":
    sys.exit(Parent(options()).run())
