"""Threads that run an application: their signal mask, their turn, and the fork guard."""

from __future__ import annotations

import ast
import logging
import os
import re
import signal
import sys
import threading
from pathlib import Path

import pytest
from _children import run_python

import osloxide
from osloxide.signals.control_thread import ControlThread

MASKS = """
import asyncio, json, subprocess, sys, threading
import osloxide
osloxide.install()
from osloxide.messaging.executor import Executor
from osloxide.threads import own, timers

def mask():
    text = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
    return int(text.partition("SigBlk:")[2].split()[0], 16)

def of_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(mask()))
    thread.start()
    thread.join()
    return found[0]

async def coroutine():
    return mask()

masks = {"main": mask()}
with Executor(4) as executor:
    masks["job"] = executor.submit(mask).result(30)
    masks["thread of a job"] = executor.submit(of_thread).result(30)
    masks["coroutine"] = executor.submit(coroutine).result(30)
for name in ("timer", "helper"):
    found, done = [], threading.Event()
    def work():
        found.append(mask())
        done.set()
    if name == "helper":
        own.start("helper", work)
    else:
        timers.begin(timers.Timer(0, "t", on_due=work, on_woken=work, is_over=lambda: False))
    assert done.wait(30)
    masks[name] = found[0]
print(json.dumps(masks))
"""


def test_commands_of_every_thread_that_runs_python_inherit_no_blocked_signal() -> None:
    child = run_python(MASKS)

    assert child.returncode == 0, child.stderr
    assert set(eval(child.stdout).values()) == {0}, child.stdout


@pytest.mark.parametrize("computations", [3, 6])
def test_a_job_begins_beside_long_computations_that_release_the_interpreter(
    computations: int,
) -> None:
    child = run_python(f"""
        import hashlib, os, threading
        import osloxide
        osloxide.install()
        from osloxide.messaging.executor import Executor

        executor = Executor(64)
        for _ in range({computations}):
            executor.submit(hashlib.pbkdf2_hmac, "sha256", b"p", b"s", 200_000_000)
        executor.submit(print, "begun", flush=True).result(30)
        os._exit(0)
    """)

    assert (child.returncode, child.stdout) == (0, "begun\n"), child.stderr


def test_a_signal_handler_may_wait_while_the_main_thread_waits() -> None:
    child = run_python("""
        import os, signal, threading
        import osloxide
        osloxide.install()
        from osloxide.signals import waiting

        outer, inner = threading.Event(), threading.Event()

        def handler(*_):
            threading.Thread(target=release).start()
            waiting.wait_for(inner)

        def release():
            waiting.fire(outer)  # while the inner wait holds the main thread
            waiting.fire(inner)

        signal.signal(signal.SIGUSR1, handler)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        waiting.wait_for(outer)
        print("both ended")
    """)

    assert (child.returncode, child.stdout) == (0, "both ended\n"), child.stderr


def test_no_failure_of_a_callback_ends_the_control_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handled = threading.Event()

    def handle(request: tuple[str, str]) -> bool:
        if request[0] == "fail":
            raise ChildProcessError(request[1])
        if request[0] == "exit":
            sys.exit(3)
        handled.set()
        return request[0] != "end"

    def pulse() -> float:
        raise ChildProcessError("reaped by the application")

    control = ControlThread(handle, lambda: None, pulse)
    control.open()
    with caplog.at_level(logging.ERROR):
        control.put(("fail", "on purpose"))
        control.put(("exit", ""))
        control.put(("end", ""))
        assert handled.wait(30)
    control.close()

    assert "goes on after a failure" in caplog.text


def test_a_request_that_comes_as_the_control_thread_is_closed_is_written_to_no_other_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that was opened just then got the number of the pipe, and the byte."""
    control = ControlThread(lambda request: request[0] != "end", lambda: None)
    control.open()
    control.put(("end", ""))
    files: list[int] = []
    write = os.write

    def write_late(fd: int, data: bytes) -> int:
        control.close()
        files.extend(os.memfd_create("file of the application") for _ in range(4))
        return write(fd, data)

    monkeypatch.setattr(os, "write", write_late)
    control.put(("stop", ""))
    monkeypatch.undo()

    try:
        assert [os.pread(fd, 1, 0) for fd in files] == [b""] * 4
    finally:
        for fd in files:
            os.close(fd)


def test_a_child_may_nudge_its_main_thread_although_its_parent_does() -> None:
    """It found a handler of SIGURG, and took that for one of the application."""
    control = ControlThread(lambda request: request[0] != "end", lambda: None)
    control.open()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if signal.getsignal(signal.SIGURG) is signal.SIG_DFL else 1)
    control.put(("end", ""))
    control.close()

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_worker_is_not_forked_beside_native_threads_and_the_error_names_them() -> None:
    child = run_python("""
        import osloxide
        osloxide.install()
        from oslo_config import cfg
        from osloxide import exceptions, wsgi
        from osloxide.launch import forking

        conf = cfg.ConfigOpts()
        conf([])
        server = wsgi.Server(conf, "s", lambda environ, start: [], host="127.0.0.1")
        server.start()
        try:
            forking.prepare()
        except exceptions.ForkAfterThreadsError as error:
            print(error)
        server.stop()
        server.wait()
        forking.prepare()
        print("sound again")
    """)

    assert child.returncode == 0, child.stderr
    refused, sound = child.stdout.splitlines()
    assert "native threads run in this process already (" in refused
    assert sound == "sound again"


def test_a_fork_warns_of_threads_of_the_application_and_of_no_others() -> None:
    child = run_python("""
        import logging, sys, threading
        import osloxide
        osloxide.install()
        from osloxide.green import tpool
        from osloxide.launch import forking
        from osloxide.signals.control_thread import ControlThread
        from osloxide.threads import event_loop, own, timers

        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        never = threading.Event()
        threading.Thread(target=never.wait, name="bystander", daemon=True).start()
        own.start("osloxide-helper", never.wait)
        event_loop.event_loop()
        control = ControlThread(lambda request: True, lambda: None)
        control.open()
        nothing = lambda: None
        timers.begin(timers.Timer(3600, "t", on_due=nothing, on_woken=nothing,
                                  is_over=lambda: False))
        tpool.set_num_threads(2)
        begun = threading.Event()
        tpool.setup()
        busy = lambda: begun.set() or never.wait()
        threading.Thread(target=tpool.execute, args=(busy,), name="busy", daemon=True).start()
        begun.wait()
        print(sorted(thread.name for thread in threading.enumerate()))
        forking.prepare()
        never.set()  # the end waits for tpool
    """)

    assert child.returncode == 0, child.stderr
    alive, warned = child.stdout.splitlines()
    assert eval(alive) == [
        "MainThread",
        "busy",
        "bystander",
        "osloxide-asyncio",
        "osloxide-helper",
        "service control",
        "timers",
        "tpool_thread_0",
        "tpool_thread_1",
    ]
    # A thread of tpool is the application's as long as it runs something of that.
    assert re.match(
        r"Forking workers while 3 other threads run \(busy, bystander, tpool_thread_[01]\): ",
        warned,
    )


def test_every_thread_is_started_or_entered_by_the_registry() -> None:
    """Where a thread does nothing but run functions of the application, it is the application's."""
    runs_the_application = {"loopingcall.py", "threads/timers.py"}
    package = Path(osloxide.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        entered = {
            id(argument)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("enter", "own.enter")
            for argument in node.args
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or id(node) in entered:
                continue
            if ast.unparse(node.func) == "threading.Thread":
                found.add(str(path.relative_to(package)))

    assert found == runs_the_application


def test_every_native_thread_is_started_by_the_registry() -> None:
    sources = Path(__file__).parents[2] / "src"
    texts = {path: path.read_text(encoding="utf-8") for path in sources.rglob("*.rs")}
    # Tests have threads of their own, and so has the simulation.
    left_out = {
        path.parent / f"{name}.rs"
        for path, text in texts.items()
        for name in re.findall(r"#\[cfg\((?:test|simulate)\)\]\n(?:pub )?mod (\w+);", text)
    }
    # Modules of tests are at the end of a file.
    of_tests = re.compile(r"#\[cfg\(test\)\]\n(?:#\[cfg\(.*\)\]\n)?(?:pub\(crate\) )?mod \w+ \{")
    shipped = {
        path: of_tests.split(text)[0] for path, text in texts.items() if path not in left_out
    }
    starts = re.compile(r"thread::(spawn|Builder|scope)\b")

    found = {
        str(path.relative_to(sources)) for path, text in shipped.items() if starts.search(text)
    }

    assert found == {"threads.rs"}


def test_a_fork_while_another_thread_configures_logging_does_not_deadlock() -> None:
    child = run_python("""
        import logging, logging.config, os, sys, threading
        import osloxide
        osloxide.install()
        from osloxide.launch import forking

        stop = threading.Event()
        settings = {"version": 1, "handlers": {"h": {"class": "logging.StreamHandler"}},
                    "root": {"handlers": ["h"]}}

        def configure():
            while not stop.is_set():
                logging.config.dictConfig(settings)

        thread = threading.Thread(target=configure)
        thread.start()
        for _ in range(200):
            with forking.logging_paused():
                pid = os.fork()
            if pid == 0:
                logging.getLogger("child").warning("alive")
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        thread.join()
        print("done")
    """)

    assert (child.returncode, child.stdout) == (0, "done\n"), child.stderr[-2000:]
