"""Nothing of osloxide needs eventlet, greenlet or cotyledon: their import fails in these processes.

nova poisons the name in the same way, and futurist imports eventlet where it can, so "not in
sys.modules" alone would prove nothing.
"""

from __future__ import annotations

import http.client
import signal
from collections.abc import Callable

import pytest
from _children import run_python
from conftest import Program

POISON = """
import sys
class Poison:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("eventlet", "greenlet", "cotyledon"):
            raise ImportError(name + " is poisoned")
sys.meta_path.insert(0, Poison())
"""

WALK = (
    POISON
    + """
import importlib, pkgutil, warnings
from osloxide.activation import import_hook
warnings.simplefilter("ignore")
import_hook.install()
package, left_out = sys.argv[1], sys.argv[2].split()
root = importlib.import_module(package)
for module in pkgutil.walk_packages(root.__path__, package + "."):
    if any(module.name == name or module.name.startswith(name + ".") for name in left_out):
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        # Optional, and not installed here.
        optional = ("oslo_messaging", "kombu", "amqp", "MySQLdb", "OpenSSL", "zmq")
        assert error.name.partition(".")[0] in optional, error
    print(module.name)
bad = [name for name in sys.modules if name.partition(".")[0] in ("eventlet", "greenlet")]
assert not bad, bad
"""
)


def test_poison_works() -> None:
    result = run_python(POISON + "import eventlet")
    assert "ImportError: eventlet is poisoned" in result.stderr


def test_every_module_of_osloxide_is_importable() -> None:
    result = run_python(WALK, "osloxide", "osloxide.__main__")

    assert result.returncode == 0, result.stderr
    names = result.stdout.split()
    for name in ("backends.eventlet.service", "backends.threading.service", "wsgi", "cli.serve"):
        assert f"osloxide.{name}" in names


def test_every_module_of_oslo_service_is_importable() -> None:
    # eventlet_backdoor is eventlet; the tests need a test environment.
    result = run_python(WALK, "oslo_service", "oslo_service.eventlet_backdoor oslo_service.tests")

    assert result.returncode == 0, result.stderr
    names = result.stdout.split()
    for name in ("service", "wsgi", "loopingcall", "threadgroup", "backend._eventlet.service"):
        assert f"oslo_service.{name}" in names


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["eventlet", "threading"])
def test_launchers_and_wsgi_server_work(
    running: Callable[..., Program], kind: str, workers: int
) -> None:
    program = running("poisoned.py", kind, str(workers))
    [(_, port)] = program.expect("port")
    program.expect("started", workers)

    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
    connection.request("GET", "/")
    pid, _, loaded = connection.getresponse().read().decode().partition(" ")
    connection.close()
    program.send(signal.SIGTERM)

    assert program.ended() == 0, program
    assert (int(pid) == program.pid) is (workers == 1)
    assert loaded == "[]"
    for event, times in (("started", workers), ("stopped", workers), ("ended", 1)):
        assert [detail for _, detail in program.events(event)] == ["[]"] * times, program
