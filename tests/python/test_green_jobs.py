"""A job of an executor and a request of a server end as a greenthread does.

What they leave behind, a timeout or a ``kill()`` of what they were, reaches nothing that the same
thread runs later.

Rules: eventlet's greenpool and timeout; docs/eventlet.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from _children import run_python

from osloxide import green
from osloxide.green import corolocal
from osloxide.messaging.executor import Executor

TIMEOUT = 30.0


@pytest.fixture
def one_thread() -> Iterator[Executor]:
    executor = Executor(1)
    yield executor
    executor.shutdown()


def nap() -> str:
    """A wait that outlasts the timeouts of these tests."""
    green.sleep(0.2)
    return "slept"


def test_a_timeout_that_a_job_leaves_behind_reaches_no_other(one_thread: Executor) -> None:
    def leave_one_behind() -> None:
        green.Timeout(0.05)
        green.sleep(0)

    one_thread.submit(leave_one_behind).result(TIMEOUT)

    assert one_thread.submit(nap).result(TIMEOUT) == "slept"


def test_who_ran_a_job_is_dead_and_a_kill_of_it_reaches_no_other(one_thread: Executor) -> None:
    def who() -> Any:
        green.sleep(0)
        return green.getcurrent()

    first, second = (one_thread.submit(who).result(TIMEOUT) for _ in range(2))
    assert first is not second
    assert first.dead
    job = one_thread.submit(nap)
    green.kill(first)

    assert job.result(TIMEOUT) == "slept"


def test_local_data_are_of_the_job(one_thread: Executor) -> None:
    local = corolocal.local()

    def leave() -> None:
        local.value = 1

    one_thread.submit(leave).result(TIMEOUT)

    assert not one_thread.submit(lambda: hasattr(local, "value")).result(TIMEOUT)


REQUESTS = """
import eventlet, threading, urllib.request
from oslo_config import cfg
from osloxide import wsgi

cfg.CONF([])
def application(environ, start_response):
    body = b"left behind"
    if environ["PATH_INFO"] == "/leave":
        eventlet.Timeout(0.05)
        eventlet.sleep(0)
    else:
        try:
            eventlet.sleep(0.2)
            body = b"slept"
        except eventlet.Timeout as timeout:
            body = repr(timeout).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

server = wsgi.Server(cfg.CONF, "test", application, host="127.0.0.1", pool_size=1)
server.start()
for path in ("/leave", "/"):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}") as answer:
        print(answer.read().decode())
server.stop()
server.wait()
"""


def test_a_timeout_that_a_request_leaves_behind_reaches_no_other() -> None:
    hook = "from osloxide.activation import import_hook\nimport_hook.install(serve_eventlet=True)\n"
    done = run_python(hook + REQUESTS)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["left behind", "slept"], done.stderr
