"""A WSGI service in a process where importing eventlet, greenlet or cotyledon fails.

Poisons the names as nova does, then launches a service through oslo.service's own names. Writes
``PID EVENT DETAIL`` lines to stdout; started by the ``running`` fixture of conftest.py.
"""

from __future__ import annotations

import os
import sys

POISONED = ("eventlet", "greenlet", "cotyledon")


class Poison:
    """Meta-path finder that fails the import of what must not be needed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in POISONED:
            raise ImportError(f"{name} is poisoned")


sys.meta_path.insert(0, Poison())


def emit(event: str, detail: object = "") -> None:
    os.write(1, f"{os.getpid()} {event} {detail}\n".encode())


def loaded() -> list[str]:
    return sorted(name for name in sys.modules if name.partition(".")[0] in POISONED)


def main(kind: str, workers: int) -> int:
    from osloxide.activation import import_hook

    import_hook.install()

    from oslo_config import cfg
    from oslo_service import backend

    backend.init_backend(backend.BackendType(kind))

    from oslo_service import service, wsgi

    def application(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{os.getpid()} {loaded()}".encode()]

    class Site(service.Service):
        def __init__(self) -> None:
            super().__init__()
            self.server = wsgi.Server(conf, "site", application, host="127.0.0.1", port=0)

        def start(self) -> None:
            self.server.start()
            self.tg.add_timer(0.05, lambda: None)
            emit("started", loaded())

        def stop(self, graceful: bool = False) -> None:
            self.server.stop()
            super().stop(graceful)
            emit("stopped", loaded())

        def wait(self) -> None:
            self.server.wait()
            super().wait()

    conf = cfg.ConfigOpts()
    conf([], project="poisoned", default_config_files=[], default_config_dirs=[])
    site = Site()
    emit("port", site.server.port)
    launcher = service.launch(conf, site, workers=workers)
    status = launcher.wait()
    emit("ended", loaded())
    return status or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
