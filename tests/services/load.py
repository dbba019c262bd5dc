"""A load driver: keep-alive or fresh connections, every failure counted by kind.

The file is both halves. Run as a program it is the driver, in a process of its own so that it
shares no interpreter lock with the test; it needs nothing but the standard library. Imported, it
offers ``Load``, which starts the driver and reads its report.
The driver never retries and never forgives: what a client would have seen is what is counted.
Instants are CLOCK_MONOTONIC, which all processes of the machine share.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Response header in which the services of these tests name the process that answered.
PID_HEADER = "X-Worker-Pid"


@dataclass(frozen=True)
class Answer:
    """One request that was answered with the expected status."""

    sent: float
    done: float
    pid: int


@dataclass(frozen=True)
class Failure:
    """One request that was not answered as expected.

    ``pid`` is the worker that answered earlier on this connection, 0 on a fresh connection.
    """

    sent: float
    done: float
    pid: int
    kind: str


@dataclass
class Report:
    """What the driver saw."""

    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def kinds(self) -> dict[str, int]:
        """Failures by kind."""
        return dict(Counter(failure.kind for failure in self.failures))

    def pids(self, since: float = 0.0) -> dict[int, int]:
        """Answers by worker pid, of the requests sent after *since*."""
        return dict(Counter(answer.pid for answer in self.answers if answer.sent >= since))

    def summary(self) -> str:
        took = sorted(answer.done - answer.sent for answer in self.answers)
        text = f"{len(self.answers)} answered, {len(self.failures)} failed {self.kinds() or ''}"
        if took:
            p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
            text += f", ms p50 {p50 * 1e3:.1f} p99 {p99 * 1e3:.1f} max {took[-1] * 1e3:.0f}"
        return text


class Load:
    """A driver process under way. ``stop()`` ends it and returns its report.

    :param port: TCP port on 127.0.0.1.
    :param connections: concurrent connections, each with one request in flight at a time.
    :param keep_alive: False opens a fresh connection for each request.
    :param timeout: seconds after which an unanswered request counts as failed.
    """

    def __init__(
        self,
        port: int,
        *,
        connections: int = 8,
        keep_alive: bool = True,
        path: str = "/",
        headers: Mapping[str, str] | None = None,
        timeout: float = 20,
        pause: float = 0.0,
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="osloxide-load-")
        self._report = Path(self._directory.name) / "report.json"
        argv = [sys.executable, __file__, "--port", str(port), "--connections", str(connections)]
        argv += ["--path", path, "--timeout", str(timeout), "--report", str(self._report)]
        argv += ["--pause", str(pause)]
        argv += [] if keep_alive else ["--fresh"]
        for name, value in (headers or {}).items():
            argv += ["--header", f"{name}: {value}"]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answered = 0
        self._failed = 0
        self._moved = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="load-progress", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answered, failed = line.split()
            with self._moved:
                self._answered, self._failed = int(answered), int(failed)
                self._moved.notify_all()

    def wait_answered(self, more: int, within: float = 30) -> None:
        """Wait until *more* requests have been answered than were when the call was made."""
        with self._moved:
            goal = self._answered + more
            reached = self._moved.wait_for(lambda: self._answered >= goal, within)
            assert reached, f"load: {self._answered} of {goal} answered, {self._failed} failed"

    def stop(self, within: float = 60) -> Report:
        """Let each connection finish its request, end the driver and return what it saw."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(within)
            raw = json.loads(self._report.read_text())
        finally:
            self.kill()
        return Report([Answer(*a) for a in raw["answers"]], [Failure(*f) for f in raw["failures"]])

    def kill(self) -> None:
        """End the driver without a report. Does nothing when it has ended."""
        end(self._process, self._reader)
        self._directory.cleanup()


def end(process: subprocess.Popen[str], reader: threading.Thread) -> None:
    """Kill *process* if it still runs; then join the *reader* of its output and close its pipes."""
    if process.poll() is None:
        process.kill()
        process.wait()
    reader.join()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


# ---- the driver process -------------------------------------------------------------------------


class _Driver:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.headers = dict(line.split(": ", 1) for line in options.header)
        self.answers: list[tuple[float, float, int]] = []
        self.failures: list[tuple[float, float, int, str]] = []
        self.ending = threading.Event()

    def connection(self) -> None:
        """One client: send, await, send again, until the end."""
        client: http.client.HTTPConnection | None = None
        pid = 0
        while not self.ending.is_set():
            sent = time.monotonic()
            stage = "request"
            try:
                if client is None:
                    pid = 0
                    stage = "connect"
                    client = http.client.HTTPConnection(
                        "127.0.0.1", self.options.port, timeout=self.options.timeout
                    )
                    client.connect()
                    stage = "request"
                client.request("GET", self.options.path, headers=self.headers)
                response = client.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                kind = f"{stage}: {type(error).__name__}"
                self.failures.append((sent, time.monotonic(), pid, kind))
                if client is not None:
                    client.close()
                client = None
                # A refused connection must not turn the driver into a spinning one.
                self.ending.wait(0.02)
                continue
            pid = int(response.headers.get(PID_HEADER) or 0)
            done = time.monotonic()
            if response.status == self.options.status and body:
                self.answers.append((sent, done, pid))
            else:
                self.failures.append((sent, done, pid, f"status {response.status}"))
            if self.options.fresh or response.will_close:
                client.close()
                client = None
            if self.options.pause:
                self.ending.wait(self.options.pause)
        if client is not None:
            client.close()

    def run(self) -> None:
        threads = [
            threading.Thread(target=self.connection, name=f"connection-{n}")
            for n in range(self.options.connections)
        ]
        for thread in threads:
            thread.start()
        closed = threading.Thread(target=self._await_end, daemon=True)
        closed.start()
        while not self.ending.wait(0.05):
            print(len(self.answers), len(self.failures), flush=True)
        for thread in threads:
            thread.join()
        print(len(self.answers), len(self.failures), flush=True)
        Path(self.options.report).write_text(
            json.dumps({"answers": self.answers, "failures": self.failures})
        )

    def _await_end(self) -> None:
        sys.stdin.read()
        self.ending.set()


def main() -> None:
    parser = argparse.ArgumentParser(description="Load driver: ends when its stdin closes.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--fresh", action="store_true", help="a new connection for each request")
    parser.add_argument("--path", default="/")
    parser.add_argument("--header", action="append", default=[], help="Name: value")
    parser.add_argument("--status", type=int, default=200, help="the expected status")
    parser.add_argument("--timeout", type=float, default=20, help="seconds per request")
    parser.add_argument("--pause", type=float, default=0, help="seconds between two requests")
    parser.add_argument("--report", required=True, help="JSON file written at the end")
    _Driver(parser.parse_args()).run()


if __name__ == "__main__":
    main()
