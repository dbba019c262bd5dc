"""A program with one or more services whose every step can be seen from outside.

Writes one line for each event to stdout, ``PID EVENT DETAIL``, in one write each; its log goes to
stderr. Started by the ``running`` fixture of conftest.py. Runs on osloxide's backend of either
type, which it selects as an application would; never imports eventlet.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import logging
import operator
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid

from osloxide.activation import import_hook

import_hook.install()

from oslo_config import cfg  # noqa: E402
from oslo_service import backend  # noqa: E402


def line_of(event: str, detail: object = "") -> bytes:
    return f"{os.getpid()} {event} {detail}\n".encode()


def emit(event: str, detail: object = "") -> None:
    os.write(1, line_of(event, detail))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="eventlet")
    parser.add_argument(
        "--launcher", default="launch", choices=("launch", "process", "two", "service")
    )
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--services", type=int, default=1)
    parser.add_argument("--restart-method", default="reload")
    parser.add_argument("--no-fork", action="store_true")
    parser.add_argument("--grace", type=int, default=60)
    parser.add_argument("--worker-timeout", type=float, default=0)
    parser.add_argument("--config", default=None)
    parser.add_argument(
        "--start",
        default="ok",
        help="or crash, exit:N, exit-none, exit-text, hang, swallow, deadlock, own-address",
    )
    parser.add_argument("--stop", default="ok", help="ok, crash, hang, spin, until-usr1")
    parser.add_argument("--wait", default="until-stopped", help="or return, crash, drain:SECONDS")
    parser.add_argument("--reset", default="ok", help="ok, crash, exit, wait (for stop)")
    parser.add_argument("--thread-before-fork", action="store_true")
    parser.add_argument("--handler", action="append", default=[], help="signals with own handlers")
    parser.add_argument("--signal-in-start", action="store_true")
    parser.add_argument(
        "--pause", action="store_true", help="between launch and wait, until SIGUSR1"
    )
    parser.add_argument("--signal-elsewhere", action="store_true", help="to another thread")
    parser.add_argument("--burn-on-usr2", action="store_true", help="hold the interpreter then")
    parser.add_argument("--segv-on-usr2", action="store_true")
    parser.add_argument("--burn-here-on-winch", action="store_true", help="the launching process")
    parser.add_argument("--deadlock-here-on-winch", action="store_true", help="in C, likewise")
    parser.add_argument("--command-in-start", action="store_true", help="run one and list its fds")
    parser.add_argument("--slow-end", action="store_true", help="until stdin is closed")
    parser.add_argument("--stop-from-thread", action="store_true")
    parser.add_argument("--broken", action="store_true", help="callbacks that fail, see break_all")
    return parser.parse_args()


options = parse()
backend.init_backend(backend.BackendType(options.backend))

from oslo_service import service  # noqa: E402

go_on = threading.Event()
if options.stop == "until-usr1":
    signal.signal(signal.SIGUSR1, lambda *_: go_on.set())


class Probe(service.Service):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.stopped = threading.Event()

    def where(self) -> str:
        on_main = threading.current_thread() is threading.main_thread()
        return f"{self.number} {'main' if on_main else 'beside'}"

    def start(self) -> None:
        self.stopped.clear()
        emit("start", self.where())
        behaviour = options.start
        if behaviour == "crash":
            raise ValueError("planted fault in start()")
        if behaviour.startswith("exit:"):
            sys.exit(int(behaviour.partition(":")[2]))
        if behaviour == "exit-none":
            sys.exit()
        if behaviour == "exit-text":
            sys.exit("planted text")
        while behaviour == "swallow":
            with contextlib.suppress(BaseException):
                threading.Event().wait()
        if behaviour == "hang":
            threading.Event().wait()
        if behaviour == "deadlock":
            deadlock()
        if behaviour == "own-address":
            self.own_address = socket.socket(socket.AF_UNIX)
            self.own_address.bind(f"\0osloxide-probe-{os.getppid()}")
        if options.signal_in_start:
            signal.signal(signal.SIGUSR2, lambda *_: emit("usr2"))
        if options.burn_on_usr2:
            signal.signal(signal.SIGUSR2, burn)
        if options.segv_on_usr2:
            signal.signal(signal.SIGUSR2, crash)
        if options.command_in_start:
            # Without close_fds, as any library may do it: what does not close on exec is seen.
            command = ["ls", "-l", "/proc/self/fd"]
            listed = subprocess.run(command, close_fds=False, stdout=subprocess.PIPE).stdout
            emit("inherited-fds", json.dumps(re.findall(r"(\d+) -> (\S+)", listed.decode())))
        drawn = random.random(), ssl.RAND_bytes(16), uuid.uuid1(), uuid.uuid4(), os.urandom(8)
        emit("random", json.dumps([str(value) for value in drawn]))
        variables = ("NOTIFY_SOCKET", "WATCHDOG_USEC")
        emit("notify-socket", " ".join(str(os.environ.get(name)) for name in variables))
        emit("started", self.number)

    def wait(self) -> None:
        emit("wait", self.where())
        behaviour = options.wait
        if behaviour == "crash":
            raise ValueError("planted fault in wait()")
        if options.signal_elsewhere:
            threading.Thread(target=self.signal_this_thread, daemon=True).start()
        if behaviour != "return":
            self.stopped.wait()
        if behaviour.startswith("drain:"):
            time.sleep(float(behaviour.partition(":")[2]))
        super().wait()
        emit("waited", self.number)

    def signal_this_thread(self) -> None:
        # Straight to this thread, as the kernel may choose to do with any signal.
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    def stop(self) -> None:
        emit("stop", self.where())
        behaviour = options.stop
        if behaviour == "crash":
            raise ValueError("planted fault in stop()")
        if behaviour == "hang":
            threading.Event().wait()
        if behaviour == "until-usr1":
            go_on.wait()
        if behaviour == "spin":
            sum(range(10**12))  # one bytecode that never releases the interpreter
        super().stop()
        self.stopped.set()
        emit("stopped", self.number)

    def reset(self) -> None:
        emit("reset", f"{self.where()} {conf.colour}")
        if options.reset == "wait":
            self.stopped.wait()
        if options.reset == "crash":
            raise ValueError("planted fault in reset()")
        if options.reset == "exit":
            sys.exit(7)


def break_all() -> None:
    """Have everything fail that a launcher calls beside the services."""

    def refuse(record: logging.LogRecord) -> bool:
        if record.name.startswith("osloxide.") and record.levelno > logging.DEBUG:
            raise ValueError("planted fault in a filter of the log")
        return True

    def fail(*_: object) -> None:
        raise ValueError("planted fault in a handler of a signal")

    logging.getLogger().handlers[0].addFilter(refuse)
    for name in ("SIGTERM", "SIGHUP"):
        service.SignalHandler().add_handler(name, fail)
    # A listener whose descriptor the application has closed on its own.
    listener = socket.socket()
    shutdown.register_listener(listener)
    os.close(listener.fileno())
    kept.append(listener)
    shutdown.when_listeners_close(fail)


kept: list[object] = []


# The two that follow say so within the call that never returns: a handler of a signal that comes
# after the line, and would have run between two bytecodes, finds none.


def burn(*_: object) -> None:
    say = map(os.write, [1], [line_of("burning")])
    sum(itertools.chain(say, range(10**12)))  # never releases the interpreter


def deadlock(*_: object) -> None:
    lock, acquire = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    say = os.write, 1, line_of("waiting-in-c")
    # The second time for ever, in C, with the interpreter released.
    sum(itertools.starmap(operator.call, [(acquire, lock), say, (acquire, lock)]))


def crash(*_: object) -> None:
    ctypes.string_at(0)


class SlowEnd:
    """Deleted when the interpreter has put signals back already."""

    def __del__(self, emit=emit, read=sys.stdin.buffer.raw.read) -> None:
        emit("interpreter-ends")
        read()


def handler(name: str, number: int):
    return lambda *_: emit("handler", f"{name} {number}")


def count_threads() -> None:
    # What CPython counts since 3.12 before it warns of a fork with threads.
    emit("fork-with-threads", len(os.listdir("/proc/self/task")))


if options.burn_here_on_winch:
    signal.signal(signal.SIGWINCH, burn)
if options.deadlock_here_on_winch:
    signal.signal(signal.SIGWINCH, deadlock)
os.register_at_fork(before=count_threads)
logging.basicConfig(level=logging.DEBUG, format="%(process)d %(levelname)s %(name)s %(message)s")
conf = cfg.ConfigOpts()
conf.register_opts([cfg.StrOpt("colour", default="none", mutable=True)])
conf(args=[], default_config_files=[options.config] if options.config else [])
conf.register_mutate_hook(lambda _conf, fresh: emit("mutated", json.dumps(sorted(map(str, fresh)))))

if options.launcher == "process":
    launcher = service.ProcessLauncher(conf, restart_method=options.restart_method)
elif options.launcher == "service":
    launcher = service.ServiceLauncher(conf, restart_method=options.restart_method)
else:
    launcher = None
from oslo_service import opts  # noqa: E402

from osloxide.launch import configuration  # noqa: E402
from osloxide.signals import shutdown  # noqa: E402

opts.register_service_opts(conf)
conf.set_override("graceful_shutdown_timeout", options.grace)
if options.worker_timeout:
    configuration.register_options(conf)
    conf.set_override("worker_timeout", options.worker_timeout, group=configuration.GROUP)

for name in options.handler:
    for number in (1, 2):
        service.SignalHandler().add_handler(name, handler(name, number))
if options.broken:
    break_all()
if options.thread_before_fork:
    threading.Thread(target=threading.Event().wait, name="bystander", daemon=True).start()

second = None
if options.launcher == "two":
    launcher, second = (
        service.ProcessLauncher(conf, restart_method=options.restart_method) for _ in range(2)
    )
    launcher.launch_service(Probe(0), workers=options.workers)
    second.launch_service(Probe(1), workers=options.workers)
elif launcher is None:
    launcher = service.launch(
        conf,
        Probe(0),
        workers=options.workers,
        restart_method=options.restart_method,
        no_fork=options.no_fork,
    )
else:
    for number in range(options.services):
        launcher.launch_service(Probe(number), workers=options.workers or 1)
emit("launched", type(launcher).__name__)
if options.slow_end:
    # Not in a module, whose contents go earlier.
    sys.modules["slow end"] = SlowEnd()
if options.pause:
    # Looked at again and again: Event.set() in a handler deadlocks where it interrupts wait() of
    # its own thread, and a wait for a lock misses a signal that comes in the instant before it.
    heard: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    emit("paused")
    while not heard:
        time.sleep(0.01)
if options.stop_from_thread:
    stopper = threading.Thread(target=lambda: (sys.stdin.read(), launcher.stop(), emit("stopper")))
    stopper.start()
status = launcher.wait()
emit("returned", status)
if second is not None:
    emit("returned", second.wait())
sys.exit(status)
