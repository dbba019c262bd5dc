"""The peers' virtual environment and the processes that serve for a measurement.

Pinned by benches/requirements.lock, one pip run for each line, so that a peer that does not build
here is left out instead of ending the run. Each run names those that it lacks, and tries again.
What they need of the distribution is installed by tools/debian.sh, or named by it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from measure import machine

BENCHES = Path(__file__).resolve().parent.parent
ROOT = BENCHES.parent
LOCK = BENCHES / "requirements.lock"
CERTIFICATES = ROOT / "tests" / "certificates"
SERVE = ROOT / "tests" / "python" / "conformance" / "serve.py"
PEERS = ROOT / ".cache" / "peers"
DEBIAN_SH = ROOT / "tools" / "debian.sh"
#: osloxide of another checkout, measured beside this one.
BEFORE = "before"

#: serve.py's name -> the distribution that it needs.
DISTRIBUTIONS = {
    "eventlet": "oslo.service",
    "gunicorn": "gunicorn",
    "granian": "granian",
    "granian4": "granian",
    "waitress": "waitress",
    "cheroot": "cheroot",
    "uwsgi": "uWSGI",
    "bjoern": "bjoern",
    "fastwsgi": "fastwsgi",
    "fastpysgi": "fastpysgi",
}

#: A line of the lock -> the Debian packages that it is built with; bindep.txt has them as well.
BUILT_WITH = {"bjoern": ("libev-dev",)}
#: The load generator.
CLIENT = "wrk"


def until(condition: Callable[[], bool], seconds: float, pause: float = 0.01) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
    return True


def obstacle(*packages: str) -> str:
    """Install Debian *packages*; what is in the way, with the remedy, or an empty string."""
    done = subprocess.run([str(DEBIAN_SH), *packages], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
    return said[0] if said else f"{' '.join(packages)} cannot be installed"


def install(interpreter: str, line: str) -> str:
    """Install one *line* of the lock; what is in the way, or an empty string."""
    needed = BUILT_WITH.get(line.partition("==")[0], ())
    if needed and (reason := obstacle(*needed)):
        return reason
    done = subprocess.run(
        [interpreter, "-m", "pip", "install", "--quiet", line],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines()[-1:] or ["pip failed"])[0]


def python() -> str:
    """The peers' interpreter, its packages installed as far as they can be."""
    interpreter = PEERS / "bin" / "python"
    stamp = PEERS / "installed.lock"
    if not interpreter.exists():
        print(f"making {PEERS}", file=sys.stderr)
        venv.create(PEERS, with_pip=True)
        stamp.unlink(missing_ok=True)
    have = stamp.read_text().splitlines() if stamp.exists() else []
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    installed = []
    for line in lines:
        if line not in have and (reason := install(str(interpreter), line)):
            print(f"left out {line}: {reason}", file=sys.stderr)
        else:
            installed.append(line)
    stamp.write_text("".join(f"{line}\n" for line in installed))
    return str(interpreter)


def absent(chosen: Sequence[str], installed: Mapping[str, str]) -> list[str]:
    """The names of *chosen* whose distribution is not *installed* (:func:`versions`)."""
    return [
        name for name in chosen
        if name in DISTRIBUTIONS and DISTRIBUTIONS[name].lower() not in installed
    ]  # fmt: skip


def versions(interpreter: str) -> dict[str, str]:
    """Installed distributions (lower case) and their versions."""
    code = (
        "import importlib.metadata as m\n"
        "for d in m.distributions(): print(d.metadata['Name'].lower(), d.version)"
    )
    listed = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True)
    return dict(line.split() for line in listed.stdout.splitlines() if len(line.split()) == 2)


def floor() -> str:
    """The server without Python, built as the extension is.

    :raises RuntimeError: there is no cargo, or it failed.
    """
    done = subprocess.run(
        [
            *("cargo", "build", "--quiet", "--locked", "--release", "--example", "floor"),
            *("--no-default-features", "--features", "server"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if done.returncode:
        raise RuntimeError(f"cargo does not build it: {done.stderr[-500:]}")
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
    return str(Path(target) / "release" / "examples" / "floor")


def command_of(server: str, app: str, interpreter: str, *options: str) -> list[str]:
    """How serve.py starts *server*; :data:`BEFORE` is osloxide of another checkout."""
    if server == BEFORE:
        return [interpreter, beside(interpreter, SERVE), "osloxide", app, *options]
    return [interpreter, str(SERVE), server, app, *options]


def beside(interpreter: str, program: str | Path) -> str:
    """The same program of the checkout that *interpreter*, one of :func:`checkout`, belongs to."""
    return str(Path(interpreter).parents[2] / Path(program).relative_to(ROOT))


def checkout(directory: str) -> str:
    """The interpreter of another checkout of osloxide, which ``make setup`` has prepared there.

    :raises ValueError: there is none.
    """
    interpreter = Path(directory).resolve() / ".venv" / "bin" / "python"
    if not interpreter.exists():
        raise ValueError(f"{interpreter} is not there; run 'make setup' in {directory}")
    return str(interpreter)


class Serving:
    """One server, pinned to *cores*, in a process group of its own.

    *command* prints ``listening PORT``; :func:`command_of` makes one for serve.py's servers.
    """

    scheme = "http"

    def __init__(
        self,
        server: str,
        command: Sequence[str],
        cores: Sequence[int],
        environment: Mapping[str, str] | None = None,
        partners: Sequence[int] = (),
    ) -> None:
        self.server = server
        #: Processes that work for this server but are none of it, such as its database.
        self.partners = partners
        self.directory = Path(tempfile.mkdtemp(prefix="bench-"))
        self.log_path = self.directory / "log"
        environment = environment or dict(
            os.environ, PYTHONPATH=str(BENCHES / "programs"), PYTHONUNBUFFERED="1"
        )
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                ["taskset", "-c", ",".join(map(str, cores)), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self.port = 0
        if not until(self._is_up, 30, 0.05):
            self.stop()
            raise RuntimeError(f"{server} does not serve after 30 s:\n{self.log()}")

    def log(self) -> str:
        return self.log_path.read_text("latin-1")[-2000:]

    def _is_up(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.server} ended before it served:\n{self.log()}")
        for line in self.log().splitlines():
            if line.startswith("listening "):
                self.port = int(line.split()[1])
        if not self.port:
            return False
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def pids(self) -> list[int]:
        return machine.members(self.process.pid)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
