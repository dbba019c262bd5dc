"""A WSGI service under a launcher, written as cinder-api is.

Prints its port once it listens; every request names the process that answered. ``/slow`` takes as
long as its query says and prints when it is under way; ``/burn`` holds the interpreter meanwhile.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from osloxide.activation import import_hook

import_hook.install()

from oslo_config import cfg  # noqa: E402
from oslo_service import backend  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("--backend", default="eventlet")
parser.add_argument("--workers", type=int, default=None)
parser.add_argument("--restart-method", default="mutate")
parser.add_argument("--grace", type=int, default=20)
options = parser.parse_args()

backend.init_backend(backend.BackendType(options.backend))

from oslo_service import service, wsgi  # noqa: E402

logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
conf = cfg.ConfigOpts()
conf([], default_config_files=[], default_config_dirs=[])


def emit(event: str, detail: object = "") -> None:
    os.write(1, f"{os.getpid()} {event} {detail}\n".encode())


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    seconds = float(environ["QUERY_STRING"] or 0)
    if environ["PATH_INFO"] == "/slow":
        emit("request")
        time.sleep(seconds)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {environ['wsgi.multiprocess']}".encode()]


class WebService(service.ServiceBase):
    """Delegates to the server, as services of this kind do."""

    def __init__(self) -> None:
        self.server = wsgi.Server(conf, "web", app, host="127.0.0.1")
        emit("port", self.server.port)

    def start(self) -> None:
        self.server.start()
        emit("start")

    def stop(self) -> None:
        emit("stop")
        self.server.stop()

    def wait(self) -> None:
        self.server.wait()
        emit("waited")

    def reset(self) -> None:
        self.server.reset()
        emit("reset")


web = WebService()
launcher = service.launch(conf, web, workers=options.workers, restart_method=options.restart_method)
conf.set_override("graceful_shutdown_timeout", options.grace)
launcher.wait()
