"""A launcher that may run as process 1: with commands of its own, and workers that leave orphans.

``--alone`` serves without workers. One line for each event, ``PID EVENT DETAIL``, in one write.
SIGUSR1 has the process that gets it leave an orphan that ends with status 5; SIGWINCH has it start
one more command, and SIGUSR2 ask the commands how they ended, which nobody has done until then.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading

from osloxide.activation import import_hook

import_hook.install()

from oslo_config import cfg  # noqa: E402
from oslo_service import backend  # noqa: E402

ALONE = "--alone" in sys.argv
backend.init_backend(backend.BackendType.THREADING)

from oslo_service import service  # noqa: E402


def emit(event: str, detail: object = "") -> None:
    os.write(1, f"{os.getpid()} {event} {detail}\n".encode())


def leave_orphan(*_: object) -> None:
    # It ends when its input does, after its own parent: nobody but process 1 can wait for it.
    orphan = "exec 3<&0; (read line <&3; exit 5) & true"
    with subprocess.Popen(["sh", "-c", orphan], stdin=subprocess.PIPE) as shell:
        shell.wait()
    emit("orphaned")


class Init(service.Service):
    def __init__(self) -> None:
        super().__init__()
        self.stopped = threading.Event()

    def start(self) -> None:
        if not ALONE:
            signal.signal(signal.SIGUSR1, leave_orphan)
        emit("started")

    def wait(self) -> None:
        self.stopped.wait()

    def stop(self) -> None:
        self.stopped.set()


logging.basicConfig(level=logging.DEBUG, format="%(process)d %(levelname)s %(name)s %(message)s")
conf = cfg.ConfigOpts()
conf([], default_config_files=[])
commands = [subprocess.Popen(["sh", "-c", "exit 7"])]


def ask(*_: object) -> None:
    emit("statuses", " ".join(str(command.wait()) for command in commands))


def begin(*_: object) -> None:
    commands.append(subprocess.Popen(["sh", "-c", "exit 8"]))
    emit("begun")


signal.signal(signal.SIGUSR1, leave_orphan)
signal.signal(signal.SIGUSR2, ask)
signal.signal(signal.SIGWINCH, begin)
launcher = service.launch(conf, Init(), workers=1 if ALONE else 2, restart_method="mutate")
sys.exit(launcher.wait())
