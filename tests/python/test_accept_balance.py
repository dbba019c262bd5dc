"""Workers that share a listening socket: how evenly, and what happens when one of them leaves."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import wait_until
from support.serving import Running, starter

from osloxide import _native

WORKERS = 4
CONNECTIONS = 400
# Perfect would be a quarter. Chance, and a machine that is busy with something else, take their
# share; a listener that one worker holds on to would leave others with nothing at all.
LEAST = CONNECTIONS // WORKERS // 5

SITE = """
import os

def application(environ, start_response):
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]
"""


class Site(Running):
    """Four workers on one socket."""

    def rows(self) -> list[dict[str, object]]:
        """The workers that are ready, from the scoreboard: asked too often for a command."""
        try:
            rows = _native.Scoreboard.attach(self.pid).read()
        except ProcessLookupError:
            return []
        return [row for row in rows if row["state"] == "running"]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "mysite.py").write_text(SITE)
    with starter(tmp_path, Site) as start:
        running = start(
            *("serve", "mysite", "--bind", "127.0.0.1:0", "--workers", str(WORKERS)),
            *("--log-level", "warning", "--log-config", str(logging_config(tmp_path))),
        )
        wait_until(lambda: len(running.rows()) == WORKERS, "four workers")
        yield running
        assert running.stop() == 0, running.log


def logging_config(directory: Path) -> Path:
    """Everything but the access log."""
    path = directory / "logging.ini"
    path.write_text(
        "[loggers]\nkeys=root,access\n[handlers]\nkeys=out\n[formatters]\nkeys=\n"
        "[logger_root]\nlevel=INFO\nhandlers=out\n"
        "[logger_access]\nqualname=osloxide.access\nlevel=WARNING\nhandlers=\n"
        "[handler_out]\nclass=StreamHandler\nargs=(sys.stderr,)\n"
    )
    return path


def fetch(port: int) -> int:
    """One request on a connection of its own; the pid of who answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/")
        return int(connection.getresponse().read())
    finally:
        connection.close()


def test_connections_that_stay_are_spread_over_all_workers(
    site: Site, record_property: Callable[[str, object], None]
) -> None:
    clients = [socket.create_connection(("127.0.0.1", site.port()), 30) for _ in range(CONNECTIONS)]
    try:
        counts: list[int] = []

        def all_accepted() -> bool:
            counts[:] = sorted(int(str(row["connections"])) for row in site.rows())
            return sum(counts) == CONNECTIONS

        wait_until(all_accepted, "400 connections")
    finally:
        for client in clients:
            client.close()

    print(f"{CONNECTIONS} keep-alive connections over {WORKERS} workers: {counts}")
    record_property("spread", counts)
    assert len(counts) == WORKERS
    assert counts[0] >= LEAST, counts


def test_connections_of_one_request_are_spread_over_all_workers(site: Site) -> None:
    port = site.port()
    answered: list[int] = []

    def client() -> None:
        answered.extend(fetch(port) for _ in range(CONNECTIONS // 8))

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    counts = sorted(answered.count(pid) for pid in set(answered))
    print(f"{CONNECTIONS} connections of one request each, 8 at a time: {counts}")
    assert sum(counts) == CONNECTIONS
    assert len(counts) == WORKERS
    assert counts[0] >= LEAST // 4, counts


def test_no_connection_is_lost_when_a_worker_leaves(site: Site) -> None:
    port = site.port()
    failures: list[str] = []
    answered = [0]
    leaving = threading.Event()

    def client() -> None:
        while not leaving.is_set():
            try:
                fetch(port)
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
            answered[0] += 1

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            wait_until(lambda: len(site.rows()) == WORKERS, "full strength")
            oldest = min(int(str(row["pid"])) for row in site.rows())
            goal = answered[0] + 100
            wait_until(lambda goal=goal: answered[0] >= goal, "load")
            os.kill(oldest, signal.SIGTERM)
            wait_until(lambda gone=oldest: gone not in {r["pid"] for r in site.rows()}, "its end")
        wait_until(lambda: len(site.rows()) == WORKERS, "full strength")
    finally:
        leaving.set()
        for thread in threads:
            thread.join(60)

    assert not failures, failures
