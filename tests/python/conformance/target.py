"""The server under test as a process: started, watched through /proc, stopped, proven gone.

Owns the files the driver looks into: the server's log and the application's events. Never talks
HTTP beyond the readiness probe; that is wire.py's and the rows' work.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

from procfs import cpu_seconds, group_members, open_fds, resident_bytes, threads
from waiting import until, whole_lines

from conformance.manner import PLAIN, Manner
from conformance.wire import Connection

HERE = Path(__file__).resolve().parent
CERTIFICATES = HERE.parents[1] / "certificates"
_tags = itertools.count(1)


class Target:
    """One running server.

    :param server: a name of serve.py.
    :param python: the interpreter that has that server installed.
    :param options: further arguments of serve.py.
    :param manner: how clients talk to it.
    """

    def __init__(
        self,
        server: str,
        *options: str,
        python: str = sys.executable,
        manner: Manner = PLAIN,
    ) -> None:
        self.server = server
        self.manner = manner
        if manner.is_tls:
            options += ("--certfile", str(CERTIFICATES / "server.crt"))
            options += ("--keyfile", str(CERTIFICATES / "server.key"))
        self.directory = Path(tempfile.mkdtemp(prefix="conformance-"))
        self.events_path = self.directory / "events"
        self.log_path = self.directory / "log"
        self.events_path.touch()
        environment = dict(
            os.environ,
            CONFORMANCE_EVENTS=str(self.events_path),
            PYTHONPATH=os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(":"),
            PYTHONUNBUFFERED="1",
        )
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [python, str(HERE / "serve.py"), server, "app:app", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        try:
            self.port = self._await_port()
        except BaseException:
            self.stop()
            raise

    def _await_port(self) -> int:
        port = 0

        def is_serving() -> bool:
            nonlocal port
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"{self.server} ended with status {self.process.returncode}:\n{self.log()}"
                )
            for line in whole_lines(self.log_path):
                if line.startswith("listening "):
                    port = int(line.split()[1])
            if not port:
                return False
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        if not until(is_serving, 30, 0.05):
            raise RuntimeError(f"{self.server} does not serve after 30 s:\n{self.log()}")
        return port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the whole process group and check that nothing of it is left."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        if not until(lambda: not group_members(self.process.pid), 5):
            raise RuntimeError(f"{self.server} left processes {group_members(self.process.pid)}")
        shutil.rmtree(self.directory, ignore_errors=True)

    def connect(self, timeout: float = 5.0, receive_buffer: int | None = None) -> Connection:
        """A new connection of a client."""
        return Connection(self.port, timeout, receive_buffer, self.manner)

    # ---- what the server wrote and what the application saw -----------------------------------

    @staticmethod
    def new_tag() -> str:
        """A word that marks one exchange in the events."""
        return f"t{next(_tags)}"

    def log(self) -> str:
        return self.log_path.read_text("latin-1")

    def events(self, tag: str | None = None, event: str | None = None) -> list[dict[str, Any]]:
        """What the application recorded, optionally only for *tag* and only *event*."""
        found = [json.loads(line) for line in whole_lines(self.events_path)]
        return [
            item
            for item in found
            if (tag is None or item["tag"] == tag) and (event is None or item["event"] == event)
        ]

    def saw(self, event: str, tag: str, seconds: float = 3.0) -> bool:
        return until(lambda: bool(self.events(tag, event)), seconds)

    # ---- cost, over the process tree ------------------------------------------------------------

    def pids(self) -> list[int]:
        return group_members(self.process.pid)

    def fds(self) -> int:
        return sum(map(open_fds, self.pids()))

    def threads(self) -> int:
        return sum(map(threads, self.pids()))

    def memory(self) -> int:
        """Resident bytes."""
        return sum(map(resident_bytes, self.pids()))

    def cpu(self) -> float:
        """User and system seconds used so far."""
        return cpu_seconds(self.pids())

    def is_alive(self) -> bool:
        return self.process.poll() is None
