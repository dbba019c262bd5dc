"""A small WSGI service for the fault tests: wsgi.Server under a ProcessLauncher.

Run with an oslo configuration file; writes its port to ``port_file`` once it is bound. With
``--stock`` it runs on oslo.service and eventlet, which is how the tests prove that their checks can
fail. Holds no logic worth testing: it holds requests, computes, crashes.
"""

from __future__ import annotations

import os
import sys

if "--stock" in sys.argv:
    import eventlet

    eventlet.monkey_patch()
    from oslo_service import service, wsgi
else:
    from osloxide import service, wsgi

import ctypes
import random
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from oslo_config import cfg
from oslo_log import log as logging

CONF = cfg.CONF
LOG = logging.getLogger("small")
OPTIONS = [
    cfg.PortOpt("port", default=0),
    cfg.IntOpt("workers", default=2),
    cfg.StrOpt("restart_method", default="reload"),
    cfg.StrOpt("port_file"),
    cfg.StrOpt("crash_file", help="start() raises while this file exists"),
    cfg.StrOpt("greeting", default="hello", mutable=True),
]
Respond = Callable[[str, list[tuple[str, str]]], Any]


def application(environ: dict[str, Any], start_response: Respond) -> Iterable[bytes]:
    query = parse_qs(environ.get("QUERY_STRING", ""))
    seconds = float(query.get("s", ["0"])[0])
    body = f"{CONF.greeting} from {os.getpid()}\n".encode()
    match environ["PATH_INFO"]:
        case "/hold":
            LOG.info("holding a request for %s s", seconds)
            time.sleep(seconds)
        case "/spin":
            LOG.info("spinning with the interpreter lock held for %s s", seconds)
            # One call into C that computes and never looks at the eval breaker.
            sum(range(int(seconds * 1e8)))
        case "/segv":
            ctypes.string_at(0)
        case "/memory":
            # Written to, so that the memory is really taken.
            hoard = [b"x" * (1 << 20) for _ in range(int(seconds))]
            body = f"{len(hoard)} MiB\n".encode()
    start_response(
        "200 OK",
        [
            ("Content-Type", "text/plain"),
            ("Content-Length", str(len(body))),
            ("X-Worker-Pid", str(os.getpid())),
        ],
    )
    return [body]


class Web(service.ServiceBase):
    """The server, with the hooks that the tests watch through the log."""

    def __init__(self) -> None:
        self.server = wsgi.Server(CONF, "small", application, host="127.0.0.1", port=CONF.port)

    def start(self) -> None:
        if CONF.crash_file and os.path.exists(CONF.crash_file):
            LOG.info("start crashes")
            raise RuntimeError("crash on demand")
        self.server.start()
        LOG.info("worker serves, and draws %s", random.random())

    def stop(self) -> None:
        self.server.stop()

    def wait(self) -> None:
        self.server.wait()

    def reset(self) -> None:
        LOG.info("service reset, greeting is %s", CONF.greeting)
        self.server.reset()


def main() -> None:
    logging.register_options(CONF)
    CONF.register_opts(OPTIONS)
    CONF([argument for argument in sys.argv[1:] if argument != "--stock"], project="small")
    logging.setup(CONF, "small")
    launcher = service.ProcessLauncher(CONF, restart_method=CONF.restart_method)
    web = Web()
    with open(f"{CONF.port_file}.new", "w") as file:
        file.write(str(web.server.port))
    os.rename(f"{CONF.port_file}.new", CONF.port_file)
    launcher.launch_service(web, workers=CONF.workers)
    launcher.wait()
    LOG.info("launcher has ended")


main()
