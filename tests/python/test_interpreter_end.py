"""The end of a program that uses only parts of osloxide, and no launcher: it is clean.

What these parts have begun runs on threads that enter Python. One that wants the interpreter back
once its finalisation has begun ends the process with SIGABRT or SIGSEGV; so each program here must
end with status 0, and without a word on stderr.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from _children import environment

PRELUDE = """
import asyncio, gc, logging, os, socket, sys, threading, time, warnings
import osloxide
osloxide.install()
from oslo_config import cfg
from oslo_service import loopingcall, threadgroup, wsgi
from osloxide.messaging.executor import Executor
logging.disable()
warnings.simplefilter("ignore", DeprecationWarning)  # of oslo.service, and of forks beside threads
conf = cfg.ConfigOpts()
conf([], default_config_files=[])
"""

SERVER = """
begun = threading.Event()

def application(environ, start_response):
    begun.set()
    if {kind!r} == "sleeps":
        time.sleep(0.3)
    if {kind!r} == "computes":
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            pass
    start_response("200 OK", [])
    def body():
        for _ in range(10):
            if {kind!r} == "streams":
                time.sleep(0.03)
            yield b"x" * 1000
    return body()

server = wsgi.Server(conf, "part", application, host="127.0.0.1", port=0)
server.start()
clients = []
for _ in range(8):
    clients.append(socket.create_connection(("127.0.0.1", server.port)))
    clients[-1].sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
begun.wait()
# A server that is stopped, and may be started again, leaves others to wait in the kernel.
while sum((stats := server._engines[0].stats())[name] for name in ("connections", "served")) < 8:
    time.sleep(0.01)
"""

ANSWERS = """
def read(client):
    with client.makefile("rb") as file:
        return file.read().count(b"x" * 1000)

def check():
    assert [read(client) for client in clients] == [10] * 8

reader = threading.Thread(target=check)
"""


def run(program: str) -> str:
    """Run *program* to its end, which must be clean; what it printed."""
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PRELUDE + textwrap.dedent(program)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout


@pytest.mark.parametrize("kind", ["sleeps", "computes", "streams"])
@pytest.mark.parametrize(
    "before",
    ["", "server.stop()", "del server; gc.collect()", "server.stop(); del server; gc.collect()"],
    ids=["kept", "stopped", "collected", "stopped and collected"],
)
def test_requests_of_a_server_are_answered_before_the_end(kind: str, before: str) -> None:
    run(SERVER.format(kind=kind) + ANSWERS + f"reader.start()\n{before}\n")


def test_connections_to_a_server_that_was_collected_are_refused_and_its_threads_leave() -> None:
    run(
        SERVER.format(kind="sleeps")
        + ANSWERS
        + """
from osloxide import _native
port = server.port
del server
gc.collect()
check()
deadline = time.monotonic() + 60
while _native.native_threads() and time.monotonic() < deadline:
    time.sleep(0.01)
assert not _native.native_threads()
try:
    socket.create_connection(("127.0.0.1", port)).close()
except ConnectionRefusedError:
    pass
else:
    raise AssertionError("somebody listens")
"""
    )


@pytest.mark.skipif(
    (3, 13) <= sys.version_info < (3, 13, 3),
    reason="CPython issue 130522: threading complains on stderr as a forked child ends",
)
@pytest.mark.skipif(
    sys.version_info[:2] == (3, 15),
    reason="CPython's own: some children never end (tests/installed/child_of_entering_threads.py)",
)
def test_a_server_that_was_collected_in_a_forked_child_holds_up_neither_process() -> None:
    run(
        SERVER.format(kind="sleeps")
        + ANSWERS
        + """
reader.start()
pid = os.fork()
if pid == 0:
    del server
    gc.collect()
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    )


@pytest.mark.parametrize("before", ["", "del executor; gc.collect()"], ids=["kept", "collected"])
@pytest.mark.parametrize("is_coroutine", [False, True], ids=["function", "coroutine"])
def test_jobs_of_an_executor_are_done_before_the_end(before: str, is_coroutine: bool) -> None:
    if is_coroutine and (3, 12) <= sys.version_info < (3, 12, 3):
        pytest.skip("CPython issue 113964: no thread for an event loop after the main thread")
    job = "async def job():\n    await asyncio.sleep(0.05)\n    os.write(1, b'x')\n"
    if not is_coroutine:
        job = "def job():\n    time.sleep(0.05)\n    os.write(1, b'x')\n"

    printed = run(
        job + f"executor = Executor(4)\nfor _ in range(20): executor.submit(job)\n{before}\n"
    )

    assert printed == "x" * 20


@pytest.mark.parametrize(
    "program",
    [
        "for _ in range(3):\n"
        "    loopingcall.FixedIntervalLoopingCall(sum, range(1000)).start(interval=0.005)\n"
        "time.sleep(0.05)\n",
        "group = threadgroup.ThreadGroup()\n"
        "for _ in range(3):\n"
        "    group.add_timer(0.005, sum, None, range(1000))\n"
        "    group.add_thread(time.sleep, 0.2)\n"
        "time.sleep(0.05)\n",
        "server = wsgi.Server(conf, 'part', lambda *_: [], host='127.0.0.1', port=0)\n"
        "server.start()\n"
        "for _ in range(20):\n"
        "    threading.Thread(target=server.wait, daemon=True).start()\n",
        "executor = Executor(4)\n"
        "for future in [executor.submit(time.sleep, 0.05) for _ in range(20)]:\n"
        "    threading.Thread(target=future.result, daemon=True).start()\n",
    ],
    ids=["looping calls", "thread group", "threads that wait for a server", "waits for jobs"],
)
def test_threads_that_go_on_do_not_disturb_the_end(program: str) -> None:
    run(program)


def test_requests_in_flight_at_the_end_may_still_hand_jobs_to_an_executor() -> None:
    printed = run(
        """
executor = Executor(2)
begun, answered = threading.Event(), threading.Event()

def application(environ, start_response):
    begun.set()
    time.sleep(0.3)
    start_response("200 OK", [])
    return [executor.submit(lambda: b"from a job").result(30)]

server = wsgi.Server(conf, "part", application, host="127.0.0.1", port=0)
server.start()
client = socket.create_connection(("127.0.0.1", server.port))
client.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
threading.Thread(
    target=lambda: os.write(1, client.makefile("rb").read().partition(b"\\r\\n\\r\\n")[2])
).start()
begun.wait()
"""
    )

    assert "from a job" in printed
