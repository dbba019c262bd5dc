"""Memory that a burst of clients took goes back to the system when they have left."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import procfs
from conftest import wait_until
from support.serving import fetch, starter

SITE = """
def application(environ, start_response):
    start_response("200 OK", [])
    return [b"ok"]
"""
CLIENTS = 600
#: Kept in the server's memory: more was announced than has come.
BODY = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 65000\r\n\r\n" + bytes(64_000)


def test_beginnings_of_bodies_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "mysite.py").write_text(SITE)
    with starter(tmp_path) as start:
        running = start("serve", "mysite", "-b", "127.0.0.1:0", "--no-access-log")
        port, pid = running.port(), running.process.pid
        assert fetch(port) == ["ok"]
        before = procfs.resident_bytes(pid)

        with contextlib.ExitStack() as clients:
            for _ in range(CLIENTS):
                client = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
                client.sendall(BODY)
            wait_until(
                lambda: procfs.resident_bytes(pid) - before > CLIENTS * 50_000, "all of the bodies"
            )

        wait_until(
            lambda: procfs.resident_bytes(pid) - before < CLIENTS * 25_000,
            f"the memory to be given back\n{running.log}",
        )
        assert fetch(port) == ["ok"]
        assert running.stop() == 0, running.log
