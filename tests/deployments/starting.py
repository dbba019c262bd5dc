"""Inside a sandbox: starts a service by a case's arguments, by a unit, or as process 1.

Owns what systemd does for a service: its environment, user and sockets, and the socket on which it
hears of readiness; and what an installation has put in place. Judges nothing.

Rules: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3).
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START
_NOTIFY = "/sandbox/notify"
_COMMAND = """#!{python}
import sys
from osloxide.cli import main

sys.exit(main())
"""


class Service:
    """A service that was started, and what it has told since.

    :ivar process: what was started, to wait for.
    :ivar pid: of the service's first process.
    :ivar heard: every line of notification.
    """

    def __init__(self, case: dict[str, Any], log: str) -> None:
        self._how = case.get("start")
        self.heard: list[str] = []
        self.process: subprocess.Popen[bytes]
        with open(log, "wb") as self._sink:
            if self._how is None:
                path = case["path"]
                words = [path if word == "FILE" else word for word in case["arguments"]]
                words = [sys.executable, "-m", "osloxide", "uwsgi", *words]
                self._spawn(words, dict(os.environ), None)
            else:
                self._install()
                self._spawn_as_told()
        self.pid = self.process.pid

    @property
    def is_process_1(self) -> bool:
        return bool(self._how and self._how.get("is_process_1"))

    def wait_started(self, until: Callable[[str, Callable[[], Any]], Any]) -> None:
        """Wait until it is process 1, and until it has told that it is ready."""
        if self.is_process_1:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            until("process 1", lambda: self.has_ended or children.read_text())
            self.pid = int(children.read_text())
        if self._how is not None and self._how["notifies"]:
            until("READY=1", lambda: self.has_ended or "READY=1" in self.heard)

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def reload(self) -> None:
        """As the unit's ExecReload does, or else by SIGHUP."""
        commands = self._how.get("reload") if self._how is not None else None
        if not commands:
            os.kill(self.pid, signal.SIGHUP)
        for words in commands or ():
            words = [word.replace("$MAINPID", str(self.pid)) for word in words]
            subprocess.run(words, check=True, env=self._environment(), cwd="/", timeout=60)

    def stop(self) -> None:
        name = "TERM" if self._how is None else self._how.get("kill_signal", "TERM")
        os.kill(self.pid, signal.Signals[f"SIG{name}"])

    def _install(self) -> None:
        """What ``pip install osloxide`` puts there, and what the page's commands do then."""
        for directory in self._how["bins"]:
            python = sys.executable
            if directory != "/usr/bin":
                place = Path(directory).parent
                venv.create(place, with_pip=False, symlinks=True)
                (packages,) = place.glob("lib/python3.*/site-packages")
                (packages / "build.pth").write_text("\n".join(sys.path) + "\n")
                python = f"{directory}/python"
            command = Path(directory, "osloxide")
            command.write_text(_COMMAND.format(python=python))
            command.chmod(0o755)
        for line in self._how["shell"]:
            subprocess.run(["sh", "-ec", line], check=True)
        for path, text in self._how.get("units", {}).items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text)

    def verify(self) -> str:
        """What systemd itself finds wrong with the units."""
        paths = list(self._how.get("units", {})) if self._how is not None else []
        if not paths:
            return ""
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        names = [Path(path).name for path in paths]
        return "\n".join(
            line for line in done.stderr.splitlines() if any(name in line for name in names)
        )

    def _environment(self) -> dict[str, str]:
        plain = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        assert self._how is not None
        return plain | {"PYTHONPATH": "/sandbox"} | self._how.get("environment", {})

    def _spawn_as_told(self) -> None:
        assert self._how is not None
        environment, words = self._environment(), list(self._how["words"])
        if self.is_process_1:
            words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *words]
        sockets = [_listen(address) for address in self._how.get("listens", [])]
        if self._how["notifies"]:
            self._hear()
            environment["NOTIFY_SOCKET"] = _NOTIFY
        if self._how.get("watchdog"):
            environment["WATCHDOG_USEC"] = str(int(self._how["watchdog"] * 1_000_000))
        user = self._how.get("user") or None

        if sockets:
            environment["LISTEN_FDS"] = str(len(sockets))
            # The variable names the process, which the shell then becomes.
            words = ["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *words]
        self._spawn(words, environment, user, sockets)

    def _spawn(
        self, words: list[str], environment: dict[str, str], user: str | None,
        sockets: list[socket.socket] | None = None,
    ) -> None:  # fmt: skip
        sockets = sockets or []

        def place() -> None:
            for index, listener in enumerate(sockets):
                os.dup2(listener.fileno(), _FIRST_DESCRIPTOR + index)

        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=self._sink, stderr=self._sink, cwd="/",
            env={**environment, "PYTHONPATH": "/sandbox", "PWD": "/"},
            user=None if user is None else pwd.getpwnam(user).pw_uid,
            preexec_fn=place if sockets else None,
            pass_fds=[_FIRST_DESCRIPTOR + index for index in range(len(sockets))],
        )  # fmt: skip
        for listener in sockets:
            listener.close()

    def _hear(self) -> None:
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        manager.bind(_NOTIFY)
        os.chmod(_NOTIFY, 0o777)

        def hear() -> None:
            while True:
                self.heard += manager.recv(4096).decode().splitlines()

        threading.Thread(target=hear, daemon=True).start()


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_server((host, int(port)))
