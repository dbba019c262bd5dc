"""A real API under ``osloxide serve --warm`` beside its neighbours: a worker's death, and memory.

Keystone, with the configuration of tests/services. Two figures for each server: the time from
``kill -9`` of its only worker to the next answer, and the proportional set size of the parent and
four workers after many requests. gunicorn runs on keystone's interpreter.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.apis import ALL

from measure import machine
from measure.apis import free_port
from measure.peers import until

COLUMNS = ("death to answer ms", "slowest ms", "failed", "processes", "PSS MiB")
REQUESTS, WORKERS, CLIENTS, DEATHS = 10_000, 4, 4, 5
#: Seconds between two deaths: after a life of 10 s the supervisor has forgiven the last one
#: (docs/lifecycle.md). Many that follow sooner are a crash loop, and measure the back-off.
BETWEEN_DEATHS = 11.0
PATH = "/v3"
COMMANDS = {
    # With --timeout also one worker has a parent.
    "osloxide --warm": ("-m", "osloxide", "serve", "{module}", "--warm", "--timeout", "120"),
    "osloxide --preload": ("-m", "osloxide", "serve", "{module}", "--preload", "--timeout", "120"),
    "osloxide": ("-m", "osloxide", "serve", "{module}", "--timeout", "120"),
    # Options are in a file: keystone reads the command line that gunicorn leaves.
    "gunicorn --preload": ("-m", "gunicorn"),
    "gunicorn": ("-m", "gunicorn"),
}
GUNICORN = """
wsgi_app = "{module}:application"
bind = "127.0.0.1:{port}"
workers, preload_app, timeout = {workers}, {preload}, 120
"""


@contextlib.contextmanager
def serving(
    command: list[str], variables: dict[str, str], port: int, directory: Path
) -> Iterator[int]:
    """The pid of the parent, once it answers."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            cwd=directory, start_new_session=True,
        )  # fmt: skip
        try:
            if not until(lambda: answers(port) or process.poll() is not None, 300):
                raise RuntimeError("no answer")
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(log.read().decode(errors="replace")[-1500:])
            yield process.pid
        finally:
            for pid in machine.members(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(30)


def answers(port: int) -> bool:
    """Whether one request was answered, on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", PATH, headers={"Connection": "close"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def children(parent: int) -> list[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(pid) for pid in text.split()]


def worker_of(parent: int, port: int) -> int:
    """The child that has used CPU for a request: a template answers none."""
    before = {pid: machine.cpu([pid]).total for pid in children(parent)}
    for _ in range(60):
        answers(port)
    return max(before, key=lambda pid: machine.cpu([pid]).total - before[pid])


def deaths(parent: int, port: int) -> list[float]:
    """Seconds from the death of the worker to the next answer, of each death."""
    found = []
    for count in range(DEATHS):
        if count:
            time.sleep(BETWEEN_DEATHS)
        worker = worker_of(parent, port)
        os.kill(worker, signal.SIGKILL)
        begun = time.monotonic()
        while not answers(port):
            pass
        found.append(time.monotonic() - begun)
    return found


def ask_many(port: int) -> int:
    """Send all requests on a few connections that are kept; how many failed."""
    failed = []

    def run() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for _ in range(REQUESTS // CLIENTS):
            try:
                connection.request("GET", PATH)
                connection.getresponse().read()
            except (OSError, http.client.HTTPException) as error:
                failed.append(error)
                connection.close()
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(failed)


def with_gunicorn(variables: dict[str, str], directory: Path, python: str) -> dict[str, str]:
    """The environment in which gunicorn of *python*'s packages can be imported."""
    packages = directory / "gunicorn-packages"
    packages.mkdir(exist_ok=True)
    for name in ("gunicorn", "packaging"):
        show = f"import {name}; print({name}.__path__[0])"
        found = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True)
        with contextlib.suppress(FileExistsError):
            (packages / name).symlink_to(found.stdout.strip())
    # osloxide's sitecustomize has no business there.
    return {**variables, "PYTHONPATH": str(packages)}


def run(python: str) -> tuple[str, str, list[dict[str, Any]]]:
    """Title, explanation and rows of the table.

    :param python: an interpreter that has gunicorn.
    """
    rows = []
    api = ALL["keystone"]
    with tempfile.TemporaryDirectory(prefix="bench-") as made:
        variables = api.prepare(Path(made))
        for server, words in COMMANDS.items():
            row: dict[str, Any] = {"server": server, **dict.fromkeys(COLUMNS, "-")}
            environ = variables
            if "gunicorn" in server:
                environ = with_gunicorn(variables, Path(made), python)
            for workers in (1, WORKERS):
                port = free_port()
                arguments = [word.format(module=api.module) for word in words]
                command = [str(api.installed().python), *arguments]
                if "gunicorn" in server:
                    preload = "--preload" in server
                    text = GUNICORN.format(
                        module=api.module, port=port, workers=workers, preload=preload
                    )
                    Path(made, "gunicorn.conf.py").write_text(text)
                else:
                    command += ["--workers", str(workers), "--bind", f"127.0.0.1:{port}"]
                try:
                    with serving(command, environ, port, Path(made)) as parent:
                        if workers == 1:
                            seconds = deaths(parent, port)
                            row["death to answer ms"] = round(1000 * statistics.median(seconds))
                            row["slowest ms"] = round(1000 * max(seconds))
                        else:
                            row["failed"] = ask_many(port)
                            pids = machine.members(parent)
                            row["processes"] = len(pids)
                            row["PSS MiB"] = round(machine.pss(pids) / 1024, 1)
                except RuntimeError as error:
                    print(f"{server}, {workers} workers: {error}")
            print(row, flush=True)
            rows.append(row)
    says = (
        f"Keystone on SQLite, `GET {PATH}`. Death to answer: from `kill -9` of the only worker to "
        f"the next answer, median and slowest of {DEATHS}, {BETWEEN_DEATHS:.0f} s apart. PSS: of "
        f"the parent and {WORKERS} workers after {REQUESTS:,} requests on {CLIENTS} connections; "
        "`--warm` has a template as well. There is no row of stock oslo.service: it was not tried."
    )
    return "Death of a worker, and memory", says, rows
