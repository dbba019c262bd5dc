"""What an installed osloxide must do: import, check, run a service, serve an application.

Owns the proof that a wheel is whole. Runs by itself, with the interpreter of the environment that
is tested and nothing but the standard library and what the wheel requires; never from a checkout:
it fails when osloxide comes from one. Each process that it starts is told to stop and must end with
status 0, and nothing of its session may be left.

    PYTHON -I tests/installed/smoke.py
"""

import contextlib
import importlib
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

DEADLINE = 60.0
"""Seconds after which something that must happen counts as missing."""
CHECKOUT = Path(__file__).resolve().parents[2]
OF_DEBIAN = Path("/usr/lib/python3/dist-packages")
"""Where a Debian package has its modules; its licences are in a place of their own."""
COMMAND = [str(Path(sys.executable).with_name("osloxide"))]
if Path(sys.executable).parent == Path("/usr/bin"):
    # Debian's command runs on the default CPython, which need not be this one.
    COMMAND = [sys.executable, "-m", "osloxide"]
PROBE = str(Path(sys.executable).with_name("osloxide-ready"))

SERVICE = """
import os

from oslo_config import cfg
from oslo_service import service


class Announcer(service.Service):
    def start(self):
        super().start()
        print(f"worker {os.getpid()} of {type(self.tg).__module__}", flush=True)


cfg.CONF([], project="smoke")
service.launch(cfg.CONF, Announcer(), workers=2).wait()
"""
APPLICATION = """
def application(environ, start_response):
    body = environ["wsgi.input"].read() or environ["PATH_INFO"].encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def session_members(session: int) -> list[int]:
    """The processes of *session* that are not yet zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


class Running:
    """A started ``osloxide`` command: its log, and its end."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments],
                cwd=log.parent,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, pattern: str, times: int = 1) -> list[str]:
        """What *pattern* found in the log, once it did so *times*; fails at the deadline."""

        def found() -> list[str]:
            return re.findall(pattern, self.log.read_text(errors="replace"))

        self.wait_until(lambda: len(found()) >= times, f"{times} x {pattern}")
        return found()

    def stop(self) -> None:
        """SIGTERM, status 0, nothing left."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(DEADLINE)
        assert status == 0, f"status {status}\n{self.log.read_text(errors='replace')}"
        self.wait_until(lambda: not session_members(self.process.pid), "the end of every process")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Return when *condition* holds; fails at the deadline, and shows the log."""
        end = time.monotonic() + DEADLINE
        while not condition():
            text = self.log.read_text(errors="replace")
            assert time.monotonic() < end, f"not within {DEADLINE:.0f} s: {what}\n{text}"
            time.sleep(0.02)


def the_module_is_the_installed_one() -> None:
    has_lock: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    had_lock = has_lock()
    import osloxide
    from osloxide import _native

    for module in (osloxide, _native):
        assert module.__file__ is not None
        assert CHECKOUT not in (Path(module.__file__).parents) or "site-packages" in module.__file__
    assert has_lock() == had_lock, "a free-threaded CPython has switched its lock on for the module"
    assert _native.__version__ == importlib.metadata.version("osloxide")


def the_licences_are_inside() -> None:
    files = importlib.metadata.files("osloxide") or []
    names = {path.name for path in files}
    if OF_DEBIAN in Path(importlib.import_module("osloxide").__file__ or "").parents:
        assert Path("/usr/share/doc/python3-osloxide/copyright").exists()
        return
    expected = {"LICENSE", "THIRD-PARTY.txt", "osloxide.cyclonedx.json"}
    assert expected <= names, sorted(expected - names)


def check_accepts_a_service(directory: Path) -> None:
    result = subprocess.run(
        [*COMMAND, "check", sys.executable, "service.py"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def run_starts_and_stops_workers(directory: Path) -> None:
    service = Running(directory / "run.log", "run", sys.executable, "service.py")
    try:
        assert set(service.wait_for(r"worker \d+ of (\w+)", 2)) == {"osloxide"}
        service.stop()
    finally:
        service.kill()


def serve_answers(directory: Path) -> None:
    name = f"smoke-{os.getpid()}"
    options = ("--bind=127.0.0.1:0", "--workers=2", f"--name={name}")
    site = Running(directory / "serve.log", "serve", "application.py", *options)
    try:
        port = site.wait_for(r"listening on 127\.0\.0\.1:(\d+)")[0]
        url = f"http://127.0.0.1:{port}/here"
        for body, expected in ((None, b"/here"), (b"x" * 100_000, b"x" * 100_000)):
            with urllib.request.urlopen(url, data=body, timeout=DEADLINE) as answer:
                assert answer.read() == expected
        site.wait_until(lambda: subprocess.call([PROBE, name], timeout=DEADLINE) == 0, PROBE)
        site.stop()
    finally:
        site.kill()


def main() -> int:
    """Run every proof; print one line for each, then pytest's kind of summary."""
    proofs: list[Callable[[], None]] = [the_module_is_the_installed_one, the_licences_are_inside]
    with tempfile.TemporaryDirectory(prefix="osloxide-smoke-") as name:
        directory = Path(name)
        (directory / "service.py").write_text(SERVICE)
        (directory / "application.py").write_text(APPLICATION)
        in_directory = (check_accepts_a_service, run_starts_and_stops_workers, serve_answers)
        failures = 0
        for proof in [*proofs, *in_directory]:
            try:
                proof(directory) if proof in in_directory else proof()  # type: ignore[call-arg,operator]
            except Exception as error:  # noqa: BLE001 - the next proof still has something to say
                failures += 1
                print(f"FAILED {proof.__name__}: {error!r}"[:4000])
            else:
                print(f"ok     {proof.__name__}")
    total = len(proofs) + len(in_directory)
    print(f"{total - failures} passed" + (f", {failures} failed" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
