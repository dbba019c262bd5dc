"""Under the import hook oslo.messaging's servers run on osloxide's executor."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None,
    reason="oslo.messaging is an optional companion; `make setup` installs it",
)

SERVER = """
import json, sys, threading, warnings
warnings.simplefilter("ignore")
from osloxide.activation import import_hook
import_hook.install()
import oslo_messaging
from oslo_config import cfg

conf = cfg.CONF
conf([], project="test", default_config_files=[])

class Endpoint:
    def where(self, context):
        return threading.current_thread().name

transport = oslo_messaging.get_rpc_transport(conf, url="osloxide+memory://")
target = oslo_messaging.Target(topic="t", server="s")
server = oslo_messaging.get_rpc_server(transport, target, [Endpoint()], executor=EXECUTOR)
server.start()
client = oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic="t"))
names = [client.call({}, "where") for _ in range(3)]
workers = server._work_executor._max_workers
server.stop()
server.wait()
print(json.dumps({
    "names": names,
    "workers": workers,
    "class": type(server._work_executor).__module__,
    "alive": [t.name for t in threading.enumerate() if "rpc" in t.name],
    "loaded": sorted({"futurist"} & set(sys.modules)),
}))
"""


@pytest.mark.parametrize("name", ["threading", "eventlet", None])
def test_endpoints_run_on_our_threads_whatever_executor_is_named(name: str | None) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVER.replace("EXECUTOR", repr(name))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert all(name.startswith("osloxide-rpc") for name in seen["names"]), seen
    assert seen["class"] == "osloxide.messaging.executor"
    assert seen["workers"] == 64
    assert seen["alive"] == []
    assert seen["loaded"] == []
