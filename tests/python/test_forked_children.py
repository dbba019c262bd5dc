"""A child that an application forks in a request, a job or a service ends where that leaves it.

It would be one more server otherwise, on the sockets of its parent. Rules: fork(2), PEP 3333.
"""

from __future__ import annotations

import pytest
from _children import run_python

PROGRAM = """
import http.client, logging, os, queue, sys
import osloxide
osloxide.install()
from oslo_config import cfg
from oslo_service import wsgi
from osloxide.messaging.executor import Executor

logging.disable()
conf = cfg.ConfigOpts()
conf([], default_config_files=[])
ENDS = {"/exit": SystemExit(7), "/raise": KeyError("raised"), "/return": None}

CLOSED = queue.SimpleQueue()

def fork(path):
    pid = os.fork()
    if pid == 0:
        # As good as gone: a lock of the import system may be held in a child for ever.
        sys.modules["osloxide.threads.forked"] = None
        if ENDS[path]:
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

def to_the_end(environ, start_response):
    start_response("200 OK", [])
    yield b""
    pid = fork(environ["PATH_INFO"])
    if pid:
        yield status(pid)

class Forking(list):
    def __init__(self, path):
        super().__init__([b""])
        self.path = path
        self.pid = None

    def read(self, size):
        if self.pid is not None:
            return b""
        self.pid = fork(self.path)
        return status(self.pid) if self.pid else b"of the child"

def while_read(environ, start_response):
    start_response("200 OK", [])
    return environ["wsgi.file_wrapper"](Forking(environ["PATH_INFO"]))

class Closing(Forking):
    def close(self):
        CLOSED.put(self.read(0))

def while_closed(environ, start_response):
    start_response("200 OK", [])
    return Closing(environ["PATH_INFO"])

def ask(application):
    server = wsgi.Server(conf, "part", application, host="127.0.0.1", port=0)
    server.start()
    for path in ENDS:
        client = http.client.HTTPConnection("127.0.0.1", server.port)
        client.request("GET", path)
        body = client.getresponse().read() or CLOSED.get(timeout=30)
        print(body.decode(), flush=True)
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


@pytest.mark.parametrize(
    "how",
    ["ask(at_once)", "ask(in_pieces)", "ask(to_the_end)", "ask(while_read)", "ask(while_closed)",
     "run_jobs(None)"],
)  # fmt: skip
def test_a_child_of_a_request_or_a_job_ends_with_it_and_answers_nobody(how: str) -> None:
    """No process is left of the session, either."""
    done = run_python(PROGRAM.replace("HOW", how))

    assert done.stdout.split() == ["7", "1", "0"], done.stderr


SERVICE = """
import os, sys, threading
import osloxide
osloxide.install()
from oslo_config import cfg
from oslo_service import backend
backend.init_backend(backend.BackendType[sys.argv[1]])
from oslo_service import _options, service

conf = cfg.ConfigOpts()
conf([], default_config_files=[])
conf.register_opts(_options.service_opts)
ENDS = [SystemExit(7), SystemExit("said"), KeyError("raised"), None]

def fork(name):
    for end in ENDS:
        pid = os.fork()
        if pid == 0:
            if end:
                raise end
            return True
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(name, status, flush=True)

class Forking(service.Service):
    def start(self):
        self.was_reset, self.was_stopped = threading.Event(), threading.Event()
        fork("start")
    def reset(self):
        if fork("reset"):
            return
        self.was_reset.set()
    def stop(self):
        if fork("stop"):
            return
        self.was_stopped.set()
    def wait(self):
        if fork("wait"):
            return
        launcher.restart()
        self.was_reset.wait()
        launcher.stop()
        self.was_stopped.wait()

launcher = service.ServiceLauncher(conf, restart_method="mutate")
launcher.launch_service(Forking())
print("over", launcher.wait(), flush=True)
"""


@pytest.mark.parametrize("flavour", ["THREADING", "EVENTLET"])
def test_a_child_of_a_service_ends_with_the_method_that_has_forked_it(flavour: str) -> None:
    done = run_python(SERVICE, flavour)

    methods = ["start", "wait", "reset", "stop"]
    expected = [f"{method} {status}" for method in methods for status in (7, 1, 1, 0)]
    assert done.stdout.splitlines() == [*expected, "over 0"], done.stderr
    assert done.stderr.count("said") == done.stderr.count("KeyError: 'raised'") == len(methods)


def test_a_child_that_ends_writes_what_its_log_has_kept() -> None:
    done = run_python("""
        import logging, logging.handlers, os, sys
        from osloxide.threads import forked

        keeps = logging.handlers.MemoryHandler(100, target=logging.StreamHandler(sys.stdout))
        logging.getLogger().addHandler(keeps)

        def fork():
            if os.fork() == 0:
                logging.warning("of the child")
            else:
                os.wait()

        forked.call(fork)
    """)

    assert done.stdout == "of the child\n", done.stderr


INHERITED = """
import http.client, os, signal, threading
from oslo_config import cfg
from osloxide import _native, wsgi

conf = cfg.ConfigOpts()
conf([], default_config_files=[])
inside, leave = threading.Event(), threading.Event()

def app(environ, start_response):
    if environ["PATH_INFO"] == "/long":
        inside.set()
        leave.wait()
    start_response("200 OK", [])
    return [b"answer"]

class Server(wsgi.Server):
    max_connections = 1

def serve():
    server = Server(conf, "test", app, host="127.0.0.1")
    server.start()
    return server

def client(server):
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=45)

def in_flight():
    assert _native.requests_in_flight() == []

def waited_for():
    server.wait()
    server.stop()
    server.wait()
    assert server._pool.running() == server._pool.waiting() == 0

def beside_an_own_one():
    own = serve()
    asking = client(own)
    asking.request("GET", "/")
    assert asking.getresponse().read() == b"answer"
    own.stop()
    own.wait()

def child(work):
    signal.alarm(45)
    try:
        work()
    except BaseException as error:
        os.write(2, repr((work.__name__, error)).encode())
        os._exit(1)
    os._exit(0)

server = serve()
asking = client(server)
asking.request("GET", "/long")
inside.wait()
pids = [os.fork() or child(work) for work in (in_flight, waited_for, beside_an_own_one)]
ends = [os.waitpid(pid, 0)[1] for pid in pids]
leave.set()
assert ends == [0, 0, 0]
assert asking.getresponse().read() == b"answer"
print("ended")
"""


def test_a_child_has_neither_the_requests_nor_the_connections_of_its_parents_server() -> None:
    """It waited for them for ever, told of them as its own, and counted them to a bound."""
    done = run_python(INHERITED)

    assert done.stdout == "ended\n", done.stderr


def test_a_program_that_has_imported_the_native_module_twice_can_fork() -> None:
    done = run_python("""
        import os, signal, sys
        from osloxide import _native
        del sys.modules["osloxide._native"]
        import osloxide._native
        signal.alarm(45)
        pid = os.fork() or os._exit(0)
        print(os.waitpid(pid, 0)[1])
    """)

    assert done.stdout == "0\n", done.stderr
