"""An RPC service for the messaging tests: one topic, endpoints that leave a trace of each run.

``rpc_service.py URL TRACE THREADS`` prints READY once it listens, and stops gracefully on SIGTERM.
``--set NAME=VALUE`` sets an option of ``[oslo_messaging_rabbit]``, ``--config FILE`` reads a file.
With ``--stock`` it runs on unchanged oslo.messaging: this is how the tests prove that their checks
can fail.
"""

# ruff: noqa: E402  (the hook and the choice of backend must precede other imports)

from __future__ import annotations

import os
import sys

STOCK = "--stock" in sys.argv
if not STOCK:
    from osloxide.activation import import_hook

    import_hook.install()

from oslo_service import backend

# Before oslo.messaging is imported: on stock oslo.service that import selects eventlet.
backend.init_backend(backend.BackendType.THREADING)

import ctypes
import threading
import time
from typing import Any

import oslo_messaging
from oslo_config import cfg
from oslo_service import service
from served import Served

TOPIC = "osloxide-test"


class Endpoint:
    """Each request appends its number to one file as it begins and to the trace as it ends.

    One line, one write: requests of several threads and processes do not mix.
    """

    target = oslo_messaging.Target(version="1.0")

    def __init__(self, trace: str) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._name = trace
        self._begun = os.open(f"{trace}.begun", flags, 0o600)
        self._trace = os.open(trace, flags, 0o600)

    def work(self, ctxt: dict[str, Any], number: int, seconds: float, after: str = "") -> int:
        """So many *seconds* of work, and until there is a file named *after*."""
        os.write(self._begun, b"%d\n" % number)
        time.sleep(seconds)
        while after and not os.path.exists(after):
            time.sleep(0.05)
        os.write(self._trace, b"%d\n" % number)
        return number

    def freeze(self, ctxt: dict[str, Any], seconds: int) -> int:
        """Hold the interpreter's lock, as a long computation in C does."""
        ctypes.PyDLL(None).sleep(seconds)
        return seconds

    def echo(self, ctxt: dict[str, Any], what: Any) -> Any:
        return what

    def large(self, ctxt: dict[str, Any], size: int, after: str = "") -> str:
        """*size* bytes, once there is a file named *after*."""
        with open(f"{self._name}.large", "a") as begun:
            begun.write(".")
        while after and not os.path.exists(after):
            time.sleep(0.05)
        return "x" * size

    def pid(self, ctxt: dict[str, Any]) -> int:
        return os.getpid()

    def thread(self, ctxt: dict[str, Any]) -> str:
        return threading.current_thread().name


def make_server(transport: Any, trace: str) -> Any:
    target = oslo_messaging.Target(topic=TOPIC, server=f"host-{os.getpid()}")
    return oslo_messaging.get_rpc_server(transport, target, [Endpoint(trace)], executor="threading")


def main() -> None:
    words = [word for word in sys.argv[1:] if word != "--stock"]
    url, trace, threads = words[:3]
    pairs = list(zip(words[3::2], words[4::2], strict=True))
    files = [value for name, value in pairs if name == "--config"]
    settings = [value for name, value in pairs if name == "--set"]
    conf = cfg.CONF
    conf([], project="rpc_service", default_config_files=files)
    transport = oslo_messaging.get_rpc_transport(conf, url=url)
    rpc = Served(lambda: make_server(transport, trace), lambda: print("READY", flush=True))
    for setting in settings:
        name, _, value = setting.partition("=")
        conf.set_override(name, value, "oslo_messaging_rabbit")
    conf.register_opts(oslo_messaging.server._pool_opts)
    conf.set_override("executor_thread_pool_size", int(threads))
    launcher = service.launch(conf, rpc, workers=1)
    sys.exit(launcher.wait())


if __name__ == "__main__":
    main()
