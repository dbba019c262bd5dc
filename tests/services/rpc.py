"""Load on the small RPC service (apps/rpc_service.py), and what the service has run of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import oslo_messaging
from oslo_config import cfg
from oslo_messaging import conffixture
from waiting import wait_until, whole_lines

from services.processes import RunningService
from services.subject import APPS, IS_NATIVE, IS_STOCK, clean_environment

TOPIC = "osloxide-test"
"""Of the small RPC service."""
FLAGS = ["--stock"] if IS_STOCK else []
TIMEOUT = 60
"""Seconds of a call, oslo.messaging's default: who waits for them has lost."""


@contextlib.contextmanager
def client_of(
    url: str, *, files: Iterable[str] = (), settings: Mapping[str, Any] | None = None
) -> Iterator[Any]:
    """A client of the small RPC service on unchanged oslo.messaging, in this process.

    :param files: of configuration.
    :param settings: options of ``[oslo_messaging_rabbit]``, which win over those of the files.
    """
    fixture = conffixture.ConfFixture(cfg.CONF)
    cfg.CONF([], default_config_files=list(files))
    fixture.setUp()
    transport = oslo_messaging.get_rpc_transport(cfg.CONF, url=url)
    for name, value in (settings or {}).items():
        cfg.CONF.set_override(name, value, "oslo_messaging_rabbit")
    try:
        yield oslo_messaging.get_rpc_client(transport, oslo_messaging.Target(topic=TOPIC))
    finally:
        transport.cleanup()
        for name in settings or ():
            cfg.CONF.clear_override(name, "oslo_messaging_rabbit")
        fixture.cleanUp()
        cfg.CONF.reset()


class Senders:
    """Clients without a pause: apps/rpc_load.py, running.

    :param is_native: their calls and casts do without kombu.
    :param timeout: of a call, in seconds.
    """

    def __init__(
        self,
        url: str,
        kind: str,
        threads: int,
        settings: list[str],
        *,
        is_native: bool = IS_NATIVE,
        timeout: float = TIMEOUT,
    ) -> None:
        argv = [sys.executable, str(APPS / "rpc_load.py"), url, kind, str(threads)]
        argv += [str(timeout), *settings, *FLAGS]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by kill())
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            text=True, env=client_environment(is_native=is_native),
        )  # fmt: skip
        self.count = 0
        self._last = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last = line
            with contextlib.suppress(ValueError):
                self.count = int(line)

    def wait_more(self, more: int) -> None:
        """Wait until *more* requests than now were sent, and calls answered."""
        goal = self.count + more
        try:
            wait_until(lambda: self.count >= goal, f"{goal} requests sent", 60)
        except AssertionError as error:
            error.add_note(self.log()[-4000:])
            raise

    def log(self) -> str:
        """What they have said of errors."""
        # Its place is shared with the process that writes.
        return os.pread(self._errors.fileno(), 1 << 24, 0).decode(errors="replace")

    def through(self, fault: Callable[[], object], times: int, more: int) -> dict[str, Any]:
        """Have *fault* happen so many *times*, with *more* requests before each and at the end.

        :returns: what :meth:`stop` tells.
        """
        for _ in range(times):
            self.wait_more(more)
            fault()
        self.wait_more(more)
        return self.stop()

    def stop(self) -> dict[str, Any]:
        """End after the requests under way; what was sent, what failed, and how slow it was."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(TIMEOUT + 30)
        finally:
            self.kill()
        report: dict[str, Any] = json.loads(self._last)
        return report

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._errors.close()


Send = Callable[..., Senders]


def client_environment(*, is_native: bool) -> dict[str, str]:
    """That of a process whose RPC does without kombu, or does not."""
    return clean_environment() | {"OSLOXIDE_NATIVE_RPC": str(int(is_native))}


def options(settings: Mapping[str, int | str]) -> list[str]:
    """The command line that sets options of ``[oslo_messaging_rabbit]``.

    A name that begins with ``config`` has the path of a configuration file.
    """
    words: list[str] = []
    for name, value in settings.items():
        words += (
            ["--config", str(value)] if name.startswith("config") else ["--set", f"{name}={value}"]
        )
    return words


def start_rpc_service(
    start: Callable[..., RunningService],
    url: str,
    trace: Path,
    *,
    threads: int = 8,
    is_native: bool = IS_NATIVE,
    **settings: int | str,
) -> RunningService:
    """Start one with *threads* threads, which logs beside *trace*, and wait until it listens.

    :param is_native: it does without kombu.
    """
    number = len(list(trace.parent.glob("service-*.log")))
    argv = [sys.executable, str(APPS / "rpc_service.py"), url, str(trace), str(threads)]
    log = trace.with_name(f"service-{number}.log")
    environ = client_environment(is_native=is_native)
    service = start([*argv, *options(settings), *FLAGS], log, environ)
    service.wait_log("^READY", within=90)  # its imports take long on a busy machine
    return service


def runs(trace: Path) -> Counter[int]:
    """How often each request has run to its end."""
    return Counter(int(line) for line in whole_lines(trace))


def check_that_each_caller_lost_one_at_most(report: dict[str, Any], callers: int) -> None:
    """What waited in a transient queue is lost with its broker; its caller learns it, once, and
    goes on."""
    assert set(report["failures"]) <= {"MessagingTimeout"}
    assert sum(report["failures"].values()) <= callers


def became_of_casts(sent: int, trace: Path) -> str:
    """What became of the casts numbered from 0 to *sent*, in words. Each was sent."""
    done = runs(trace)
    lost, doubled = set(range(sent)) - set(done), [n for n, times in done.items() if times > 1]
    return f"{sent} sent, {len(lost)} lost, {len(doubled)} doubled"


def became_of_calls(report: dict[str, Any], trace: Path) -> tuple[str, list[int]]:
    """What became of the calls of *report*, in words, and those that ran twice or more.

    Each that was answered has run.
    """
    done = runs(trace)
    assert set(report["sent"]) <= set(done)
    doubled = [number for number, times in done.items() if times > 1]
    words = (
        f"{len(report['sent'])} answered, failed {report['failures']}, {len(doubled)} doubled, "
        f"slowest {report['slowest']:.1f} s"
    )
    return words, doubled
