"""Runs launchers, and has a signal arrive at a chosen line of their Python code.

Owns the fork of one process for each job that comes on stdin, a JSON object a line; the trace
function that counts lines there and sends the signal; and the judgement of how that process ends.
A job that never fails has an empty list of ``problems`` in the JSON object that answers it. Never
asks the launcher anything: it knows what the process says, logs and ends with.

The places are lines, calls and returns of osloxide, and of what it uses of the standard library
that has locks. CPython runs a handler between any two instructions but a few; a line is where one
statement is over and the next has not begun.

Rules: docs/signals.md; sys.settrace (Python library reference), signal(7).
"""

from __future__ import annotations

import _weakrefset
import contextlib
import faulthandler
import fcntl
import json
import logging
import mmap
import os
import re
import signal
import sys
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import osloxide

osloxide.install()

from oslo_config import cfg  # noqa: E402
from oslo_service import _options, backend  # noqa: E402

FLAVOUR = sys.argv[1]
backend.init_backend(backend.BackendType[FLAVOUR])

from oslo_service import service, wsgi  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[2]))

from procfs import is_alive, session_members  # noqa: E402
from waiting import until, wait_until  # noqa: E402

from osloxide.launch import ending  # noqa: E402

GRACE = 100
"""Seconds of every deadline. Nothing here may need it, and on a slow machine nothing is cut off."""
STATUS_OF_HANDLER = 7
"""What a handler of the application passes to ``sys.exit()``."""
LONGEST = float(sys.argv[2])
"""Seconds after which a process counts as hung, and those that it has left behind."""

OSLOXIDE = str(Path(osloxide.__file__).parent)
WITH_LOCKS = {module.__file__ for module in (_weakrefset, contextlib, logging, threading, weakref)}
WAIT = ("_attempt", "_supervise")
"""What a launcher calls once it is waited for: a single process, and a parent of workers."""
SUSPECT = re.compile(r"Traceback|still running|is still there|sent SIG|killed by signal")
"""What a log has only where something failed, or a deadline had to end it."""

REPLACES_EXIT = "RuntimeError: release unlocked lock"
"""What arrives instead of a handler's exception where that came in a ``Condition.wait()`` of the
standard library which had just released its lock: an unhandled exception, of status 2."""


class Shared:
    """Numbers that a process and its children share with the one that judges them."""

    NAMES = ("delivered", "was_default", "was_told", "told", "waits", "began")

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, 8 * len(self.NAMES))).cast("q")

    def __getattr__(self, name: str) -> int:
        return self._memory[self.NAMES.index(name)]

    def put(self, name: str, value: int) -> None:
        self._memory[self.NAMES.index(name)] = value

    def clear(self) -> None:
        for name in self.NAMES:
            self.put(name, 0)


shared = Shared()


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


class Interruption:
    """Sends this process a signal when it comes to a place for the first time.

    :param job: its *at* is the place; empty, no signal is sent and all places are written to
        descriptor 3. They count from the start, or *since* a moment: a signal from ``outside``,
        the launcher was ``made`` or ``launched``, or it is told to ``stop``. They are those of the
        launching process, or with *in_worker* of the worker that it forks first, that of slot 0.
    """

    # Not by the module's name for it: at the end of the interpreter those are gone.
    _is_over = staticmethod(sys.is_finalizing)

    def __init__(self, job: dict[str, Any]) -> None:
        self._signo = signal.Signals["SIG" + job["signal"]]
        self._at = job["at"]
        self._in_worker = job.get("in_worker", False)
        self._launching = os.getpid()
        self._forks = 0
        os.register_at_fork(before=self._count)
        self._seen: set[str] = set()
        shared.put("began", "since" not in job)

    def call(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if self._is_over():
            return None
        code = frame.f_code
        if not (code.co_filename.startswith(OSLOXIDE) or code.co_filename in WITH_LOCKS):
            return None
        if code.co_name in WAIT and os.getpid() == self._launching:
            shared.put("waits", 1)
        return self.place(frame, event, None)

    def place(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if self._is_over():
            return None
        if shared.began and not shared.delivered and self._is_chosen(os.getpid()):
            code = frame.f_code
            file = code.co_filename.removeprefix(OSLOXIDE).lstrip("/")
            self._come_to(f"{file}:{frame.f_lineno} {code.co_name} {event}")
        return self.place

    def _count(self) -> None:
        """Before a fork, whose child has this count for its own: workers run at the same time."""
        if os.getpid() == self._launching:
            self._forks += 1

    def _is_chosen(self, pid: int) -> bool:
        if self._in_worker:
            return pid != self._launching and self._forks == 1
        return pid == self._launching

    def _come_to(self, place: str) -> None:
        if not self._at and place not in self._seen:
            self._seen.add(place)
            os.write(3, f"{place}\n".encode())
        elif place == self._at:
            say(f"signal at {place}")
            shared.put("was_default", signal.getsignal(self._signo) == signal.SIG_DFL)
            shared.put("was_told", shared.told)
            shared.put("delivered", os.getpid())
            os.kill(os.getpid(), self._signo)


class Service(service.Service):
    def __init__(self) -> None:
        super().__init__()
        self.stopped = threading.Event()

    def start(self) -> None:
        self.stopped.clear()
        self.tg.add_thread(self.stopped.wait)
        say(f"started {os.getpid()}")

    def stop(self, graceful: bool = False) -> None:
        self.stopped.set()
        super().stop(graceful)
        say(f"stopped {os.getpid()}")

    def reset(self) -> None:
        say(f"reset {os.getpid()}")


class WebService(Service):
    """One that serves HTTP: its server is made before the fork and started after it."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        super().__init__()
        self.server = wsgi.Server(conf, "interrupted", None, host="127.0.0.1", port=0)

    def start(self) -> None:
        self.server.start()
        super().start()

    def stop(self, graceful: bool = False) -> None:
        self.server.stop()
        super().stop(graceful)

    def wait(self) -> None:
        self.server.wait()
        super().wait()

    def reset(self) -> None:
        self.server.reset()
        super().reset()


def serve(job: dict[str, Any]) -> None:
    """What the process of a job does."""
    logging.basicConfig(level=logging.INFO, format="%(process)d %(name)s %(message)s")
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[])
    conf.register_opts(_options.service_opts)
    conf.set_override("graceful_shutdown_timeout", GRACE)
    ending.AT_EXIT = GRACE
    workers, method, handler = job["workers"], job.get("method", "reload"), job.get("handler")
    launcher: Any = None

    def served() -> Service:
        return WebService(conf) if job.get("serves_http") else Service()

    if handler == "exit":
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit(STATUS_OF_HANDLER))
    elif handler == "stop":
        signal.signal(signal.SIGUSR1, lambda *_: launcher.stop())
    if job.get("has_idle_thread"):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    sys.settrace(Interruption(job).call)
    try:
        if workers == 0:
            launcher = service.ProcessLauncher(conf, restart_method=method, no_fork=True)
            launcher.launch_service(served())
            sys.exit(0)
        if job.get("since") == "made":
            one = served()
            launcher = service.ProcessLauncher(conf, restart_method=method)
            shared.put("began", 1)
            launcher.launch_service(one, workers=workers)
        else:
            launcher = service.launch(conf, served(), workers=workers, restart_method=method)
        if job.get("since") == "launched":
            shared.put("began", 1)
        if job.get("stops_itself"):
            threading.Thread(target=stop_when_served, args=(launcher, workers), daemon=True).start()
        status = launcher.wait()
        if job.get("stops_itself"):
            say("goes on")
            # A stop that was heard has a deadline.
            wait_until(lambda: ending._end is not None, "the end", GRACE)
        sys.exit(status)
    finally:
        say(f"left {os.getpid()}")


def stop_when_served(launcher: Any, workers: int) -> None:
    wait_until(
        lambda: shared.waits and os.pread(1, 1 << 16, 0).count(b"started") >= workers,
        "services that are waited for",
        GRACE,
        pause=0.001,
    )
    shared.put("began", 1)
    launcher.stop()


class Case:
    """One process, from its fork to the end of its session.

    :param out: what it says.
    :param log: what it logs.
    """

    def __init__(self, pid: int, job: dict[str, Any], out: int, log: int, places: int) -> None:
        self._pid, self._job, self._out, self._log = pid, job, out, log
        self._places = places
        self._workers = max(job["workers"], 1)
        self._outside = [signal.Signals["SIG" + name] for name in job.get("outside", ())]
        self._signo = signal.Signals["SIG" + job["signal"]]
        self._reloads = 0
        self._was_told = False
        self._status = 0
        self._problems: list[str] = []

    def run(self) -> dict[str, Any]:
        if not until(self._has_ended, LONGEST, pause=0.002):
            self._problems.append("hangs")
            self._kill(signal.SIGUSR2)
            time.sleep(0.5)  # for what faulthandler writes; nothing tells that it is done
            self._kill(signal.SIGKILL)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if not until(lambda: not session_members(self._pid), LONGEST, pause=0.002):
            self._problems.append(f"left behind: {session_members(self._pid)}")
            self._kill(signal.SIGKILL)
        self._judge(self._status)
        return {
            "status": self._status,
            "places": _text(self._places).splitlines(),
            "delivered": bool(shared.delivered),
            "problems": self._problems,
            "log": _text(self._log) if self._problems else "",
            "said": self._said() if self._problems else [],
        }

    def _has_ended(self) -> bool:
        """Look whether the process has ended, and if not, tell it what it is to be told now."""
        pid, ended = os.waitpid(self._pid, os.WNOHANG)
        if pid == 0:
            self._tell()
            return False
        self._status = os.waitstatus_to_exitcode(ended)
        return True

    def _kill(self, signo: int) -> None:
        for pid in session_members(self._pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signo)

    def _said(self) -> list[str]:
        return _text(self._out).splitlines()

    def _pids(self, what: str) -> list[int]:
        return [int(line.split()[1]) for line in self._said() if line.startswith(what)]

    def _tell(self) -> None:
        """Send what is to be sent from outside once the process is at rest; at last SIGTERM."""
        if self._was_told or not shared.waits or not self._is_at_rest():
            return
        if self._outside:
            shared.put("began", 1)
            signo = self._outside.pop(0)
            self._reloads += 1
        else:
            signo = signal.SIGTERM
            self._was_told = True
            shared.put("told", 1)
        os.kill(self._pid, signo)

    def _is_at_rest(self) -> bool:
        started, stopped = self._pids("started"), self._pids("stopped")
        if self._job.get("stops_itself"):
            return not shared.delivered and "goes on" in self._said()
        if shared.delivered and not self._job.get("in_worker") and self._signo != signal.SIGHUP:
            return False  # it is to end by this one
        if self._job.get("in_worker") and shared.delivered and self._signo != signal.SIGHUP:
            stopped.append(shared.delivered) if shared.delivered not in stopped else None
            if is_alive(shared.delivered):
                return False
            if shared.delivered not in started:
                started.append(shared.delivered)
        is_reloaded = self._signo == signal.SIGHUP and shared.delivered
        wanted = max(self._reloads, int(is_reloaded and not self._job.get("in_worker")))
        if self._pids("reset").count(self._pid) < wanted:
            return False
        replaces = self._job.get("method") != "mutate" and not self._job.get("in_worker")
        if replaces and len(started) < self._workers * (1 + self._reloads):
            return False
        return len(started) - len(stopped) == self._workers

    def _judge(self, status: int) -> None:
        legal = {0}
        is_first = not self._was_told
        if shared.delivered and not self._job.get("in_worker"):
            if shared.was_default or (self._signo == signal.SIGINT and is_first):
                legal = {-self._signo, *((1,) if self._signo == signal.SIGINT else ())}
            elif self._signo in (signal.SIGINT, signal.SIGALRM):
                legal = {0, 1, -self._signo}
            elif self._job.get("handler") == "exit":
                legal = {0, STATUS_OF_HANDLER}
        if self._job.get("stops_itself"):
            # The default is back once the launcher gives its handlers back, and not before. Where
            # no signal was sent there, SIGTERM came when all of it was over.
            gives_back = shared.was_default or not shared.delivered
            legal = {-signal.SIGTERM} if gives_back else {0}
        if status not in legal:
            self._problems.append(f"status {status}, not in {legal}")
        started, stopped = (Counter(self._pids(what)) for what in ("started", "stopped"))
        is_interrupted = self._job.get("handler") == "exit"  # in start(): stopped all the same
        if status == 0 and (started - stopped or (stopped - started and not is_interrupted)):
            self._problems.append(f"started {dict(started)}, stopped {dict(stopped)}")
        if any(pid != self._pid for pid in self._pids("left")):
            self._problems.append("a worker has left into the code that launched it")
        log = _text(self._log)
        if is_interrupted and self._job.get("in_worker") and shared.delivered:
            self._judge_worker(log)
        if self._job.get("stops_itself") or is_interrupted:
            return
        if status == 0 and (found := SUSPECT.search(log)):
            self._problems.append(f"the log says {found.group()!r}")

    def _judge_worker(self, log: str) -> None:
        """Judge what the parent has seen of the worker in which a handler has exited."""
        # Once it ends, what exit functions and callbacks of its end raise is logged and no more,
        # and what comes in the last lines before its exit changes its status no more.
        legal = {STATUS_OF_HANDLER, *((0,) if shared.was_told else ())}
        if REPLACES_EXIT in log:
            legal.add(2)
        found = re.search(rf"Child {shared.delivered} exited with status (\d+)", log)
        if found is None:
            self._problems.append("the log does not say how the worker has ended")
        elif int(found[1]) not in legal:
            self._problems.append(f"status {found[1]} of the worker, not in {legal}")


def _text(fd: int) -> str:
    return os.pread(fd, 1 << 20, 0).decode(errors="replace")


def _memory_file(name: str) -> int:
    fd = os.memfd_create(name)
    # Workers share one position, which the kernel does not lock here: one overwrites the other.
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    return fd


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        shared.clear()
        out, log, places = (_memory_file(name) for name in ("out", "log", "places"))
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(log, 2)
            os.dup2(places, 3)
            return serve(job)
        print(json.dumps({**job, **Case(pid, job, out, log, places).run()}), flush=True)
        for fd in (out, log, places):
            os.close(fd)
    return None


main()
