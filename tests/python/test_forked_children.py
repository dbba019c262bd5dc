"""A child that an application forks in a request or a job ends where the application leaves it.

It would be one more server otherwise, on the sockets of its parent. Rules: fork(2), PEP 3333.
"""

from __future__ import annotations

import pytest
from _children import run_python

PROGRAM = """
import http.client, logging, os, sys
import osloxide
osloxide.install()
from oslo_config import cfg
from oslo_service import wsgi
from osloxide.messaging.executor import Executor

logging.disable()
conf = cfg.ConfigOpts()
conf([], default_config_files=[])
ENDS = {"/exit": SystemExit(7), "/raise": KeyError("raised"), "/return": None}

def fork(path):
    pid = os.fork()
    if pid == 0 and ENDS[path]:
        raise ENDS[path]
    return pid

def status(pid):
    return b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def at_once(environ, start_response):
    pid = fork(environ["PATH_INFO"])
    start_response("200 OK", [])
    return [status(pid) if pid else b"of the child"]

def in_pieces(environ, start_response):
    start_response("200 OK", [])
    yield b""
    pid = fork(environ["PATH_INFO"])
    yield status(pid) if pid else b"of the child"

def ask(application):
    server = wsgi.Server(conf, "part", application, host="127.0.0.1", port=0)
    server.start()
    for path in ENDS:
        client = http.client.HTTPConnection("127.0.0.1", server.port)
        client.request("GET", path)
        print(client.getresponse().read().decode(), flush=True)
        client.close()
    server.stop()

def run_jobs(_application):
    executor = Executor(2, "rpc-own")
    for path in ENDS:
        pid = executor.submit(fork, path).result(30)
        print(status(pid).decode(), flush=True)
    executor.shutdown()

HOW
"""


@pytest.mark.parametrize("how", ["ask(at_once)", "ask(in_pieces)", "run_jobs(None)"])
def test_a_child_of_a_request_or_a_job_ends_with_it_and_answers_nobody(how: str) -> None:
    """No process is left of the session, either."""
    done = run_python(PROGRAM.replace("HOW", how))

    assert done.stdout.split() == ["7", "1", "0"], done.stderr
