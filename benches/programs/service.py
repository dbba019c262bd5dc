"""A service of the oslo kind that does nothing, under a launcher: ``service.py FLAVOUR WORKERS``.

FLAVOUR is ``osloxide``, ``eventlet`` or ``threading``; all three run this same program, the first
through osloxide's import hook. Each worker prints ``started PID MONOTONIC`` when its start() ran.
"""

from __future__ import annotations

import os
import sys
import time


def main(flavour: str, workers: int) -> None:
    if flavour == "eventlet":
        import eventlet

        eventlet.monkey_patch()
    if flavour == "osloxide":
        from osloxide.activation import import_hook

        import_hook.install()
    from oslo_config import cfg
    from oslo_service import backend

    requested = "EVENTLET" if flavour == "eventlet" else "THREADING"
    backend.init_backend(backend.BackendType[requested])
    from oslo_service import service

    class Idle(service.ServiceBase):
        def start(self) -> None:
            os.write(1, f"started {os.getpid()} {time.monotonic()}\n".encode())

        def stop(self) -> None: ...

        def wait(self) -> None:
            if flavour == "threading":
                while True:
                    time.sleep(3600)

        def reset(self) -> None: ...

    conf = cfg.ConfigOpts()
    conf([], project="bench", default_config_files=[])
    launcher = service.ProcessLauncher(conf)
    launcher.launch_service(Idle(), workers=workers)
    launcher.wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
