"""Who serves the names eventlet and greenlet, and what happens with those that nobody serves."""

from __future__ import annotations

from pathlib import Path

import pytest
from _children import run_python

ACTIVE = """
import os
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
"""


def test_the_names_are_served_by_osloxide() -> None:
    result = run_python(
        ACTIVE
        + """
import eventlet, greenlet, eventlet.green.socket
from eventlet import event, greenthread, hubs, patcher, queue, semaphore, timeout, tpool
from eventlet.support import greenlets
import osloxide.green
assert eventlet is osloxide.green, eventlet
assert greenlet.greenlet is greenlets.greenlet
assert eventlet.Timeout.__module__ == "eventlet.timeout"
print(eventlet.spawn(lambda: eventlet.getcurrent() is greenlet.getcurrent()).wait())
"""
    )
    assert result.stdout == "True\n", result.stderr


def test_without_being_asked_nothing_is_served() -> None:
    result = run_python(
        "from osloxide.activation import import_hook\n"
        "import_hook.install(deferred=True)\n"
        "from osloxide.activation import eventlet_names\n"
        "print(eventlet_names.replacement('eventlet'))\n"
    )
    assert result.stdout == "None\n", result.stderr


@pytest.mark.parametrize(
    "statement", ["import eventlet.twistedutil", "from eventlet import twistedutil"]
)
def test_a_module_that_is_not_served_is_named_with_the_remedy(statement: str) -> None:
    result = run_python(ACTIVE + statement)
    assert "ModuleNotFoundError" in result.stderr  # which the real one raises, too
    assert "twistedutil" in result.stderr
    assert "OSLOXIDE_EVENTLET=real" in result.stderr


def test_an_attribute_that_is_not_served_is_named_with_the_remedy() -> None:
    result = run_python(ACTIVE + "import eventlet\neventlet.no_such_thing")
    assert "AttributeError" in result.stderr
    assert "no_such_thing" in result.stderr
    assert "OSLOXIDE_EVENTLET=real" in result.stderr


def test_a_process_with_the_real_eventlet_is_refused() -> None:
    pytest.importorskip("eventlet")
    result = run_python("import eventlet\n" + ACTIVE)
    assert (
        "ActivationError: osloxide cannot serve eventlet: it is already imported" in result.stderr
    )


def test_monkey_patching_changes_nothing_and_is_remembered() -> None:
    result = run_python(
        ACTIVE
        + """
import socket, sys, threading, time
before = (socket.socket, threading.Thread, threading.local, time.sleep)
import eventlet
eventlet.monkey_patch(os=False)
assert before == (socket.socket, threading.Thread, threading.local, time.sleep)
assert not eventlet.patcher.is_monkey_patched("thread")
assert import_hook.patched_by() is None
assert eventlet.patcher.requested["socket"] and not eventlet.patcher.requested["os"]
import __original_module_threading
assert __original_module_threading is threading
try:
    eventlet.monkey_patch(sockets=True)
except TypeError as error:
    print(error)
"""
    )
    expected = "monkey_patch() got an unexpected keyword argument 'sockets'\n"
    assert result.stdout == expected, result.stderr


@pytest.mark.parametrize("name", ["selfmade", "myservice.hubs:Hub"])
def test_a_hub_of_the_service_is_refused(name: str) -> None:
    result = run_python(ACTIVE + f"from eventlet import hubs\nhubs.use_hub({name!r})")
    assert "NotImplementedError" in result.stderr
    assert name in result.stderr
    assert "OSLOXIDE_EVENTLET=real" in result.stderr


def test_a_subclass_of_a_hub_is_accepted_by_its_path() -> None:
    result = run_python(
        ACTIVE
        + """
import sys, types
from eventlet import hubs
from eventlet.hubs import poll
own = types.ModuleType("own_hub")
own.Slow = type("Slow", (poll.Hub,), {})
sys.modules["own_hub"] = own
hubs.use_hub("own_hub:Slow")
print(type(hubs.get_hub()).__name__)
"""
    )
    assert result.stdout == "Slow\n", result.stderr


@pytest.mark.parametrize(
    "name",
    [
        "poll",
        "epolls",
        "selects",
        "asyncio",
        "eventlet.hubs.epolls",
        "eventlet.hubs.asyncio",
        "eventlet.hubs.selects:Hub",
    ],
)
def test_the_hubs_of_eventlet_are_accepted(name: str) -> None:
    result = run_python(
        ACTIVE
        + f"import eventlet\nfrom eventlet import hubs\nhubs.use_hub({name!r})\n"
        + "eventlet.sleep(0.001)\nprint(hubs.get_hub().clock() > 0)"
    )
    assert result.stdout == "True\n", result.stderr


def test_the_backdoor_is_refused_with_its_reason() -> None:
    result = run_python(
        ACTIVE + "from eventlet import backdoor\nbackdoor.backdoor_server(None, {})"
    )
    assert "NotImplementedError" in result.stderr
    assert "backdoor_port" in result.stderr


def test_a_program_ends_with_green_sockets_open() -> None:
    """Destructors run when the threads are gone already, whatever they held."""
    result = run_python(
        ACTIVE
        + """
import eventlet
server = eventlet.listen(("127.0.0.1", 0))
waiting = eventlet.spawn(server.accept)
later = [eventlet.spawn_after(0.0001 * n, len, "") for n in range(2000)]
eventlet.sleep(0.01)
print("ended")
"""
    )
    assert result.stdout == "ended\n", result.stderr
    assert result.returncode == 0


LATE = """
from oslo_service import backend, loopingcall, service, threadgroup
early = (service.Launcher, loopingcall.FixedIntervalLoopingCall, threadgroup.ThreadGroup)
"""


def test_a_program_that_patches_after_oslo_service_gets_the_eventlet_type() -> None:
    """designate 20 imports oslo.messaging, and with it oslo.service, before it monkey-patches."""
    result = run_python(
        ACTIVE
        + LATE
        + """
assert backend.get_backend_type() is backend.BackendType.THREADING
import eventlet
eventlet.monkey_patch(os=False)
assert backend.get_backend_type() is backend.BackendType.EVENTLET
from osloxide.backends.eventlet import service as of_eventlet
assert service.ProcessLauncher is of_eventlet.ProcessLauncher
assert service.launch is of_eventlet.launch
assert early[1] is not loopingcall.FixedIntervalLoopingCall
print(early[2] is not threadgroup.ThreadGroup)
"""
    )
    assert result.stdout == "True\n", result.stderr


@pytest.mark.parametrize(
    "statement",
    ["eventlet.monkey_patch()", "eventlet.monkey_patch(all=False)"],
    ids=["chosen", "nothing-asked-for"],
)
def test_a_choice_of_the_program_outlives_monkey_patching(statement: str) -> None:
    chosen = "backend.init_backend(backend.BackendType.THREADING)" if "()" in statement else ""
    result = run_python(
        ACTIVE
        + f"from oslo_service import backend\n{chosen}\n"
        + LATE
        + f"import eventlet\n{statement}\n"
        + "print(backend.get_backend_type().value, early[0] is service.Launcher)"
    )
    assert result.stdout == "threading True\n", result.stderr


def test_connections_of_mysqldb_are_made_and_used_on_the_pool_of_native_threads(
    tmp_path: Path,
) -> None:
    """As little of MySQLdb as that takes: the real one is built against a library in C."""
    package = tmp_path / "MySQLdb"
    package.mkdir()
    (package / "cursors.py").touch()
    (package / "converters.py").touch()
    (package / "connections.py").write_text(
        "import threading\n"
        "def place(): return threading.current_thread().name\n"
        "class Cursor:\n"
        "    def execute(self, text): return place()\n"
        "class Connection:\n"
        "    def __init__(self, host): self.host, self.made_on = host, place()\n"
        "    def cursor(self): return Cursor()\n"
        "limit = 7\n"
    )
    (package / "__init__.py").write_text(
        "from MySQLdb.connections import Connection\n"
        "connect = Connect = Connection\n"
        "threadsafety = 1\n"
    )
    result = run_python(
        ACTIVE
        + f"""
import sys, threading
sys.path.insert(0, {str(tmp_path)!r})
from eventlet.green import MySQLdb

here = threading.current_thread().name
for make in (MySQLdb.connect, MySQLdb.Connection, MySQLdb.connections.Connection):
    connection = make(host="db")
    assert connection.host == "db" and connection.made_on != here, connection.made_on
    assert connection.cursor().execute("SELECT 1") != here
assert (MySQLdb.connections.limit, MySQLdb.threadsafety) == (7, 1)
assert MySQLdb.cursors.__name__ == "MySQLdb.cursors"
print("passed")
"""
    )
    assert result.stdout == "passed\n", result.stderr
