"""Connections that wait in the kernel, as ``status``, ``metrics`` and ``--stats`` tell them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from _children import environment, run_command
from conftest import wait_until
from support.serving import OSLOXIDE, Running, starter

from osloxide.cli import listen_queues

SITE = """
import os, time

def application(environ, start_response):
    while environ["PATH_INFO"] == "/hold" and not os.path.exists("release"):
        time.sleep(0.01)
    start_response("200 OK", [])
    return [b"hello"]
"""
REQUEST = b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "queue_site.py").write_text(SITE)
    with starter(tmp_path) as start:
        try:
            yield lambda *options: start(
                *("serve", "queue_site", "--bind", "127.0.0.1:0", "--no-access-log", *options)
            )
        finally:
            (tmp_path / "release").touch()


def asking(stack: ExitStack, where: tuple[str, int] | str, path: bytes = b"/") -> socket.socket:
    """A client of *where* whose request is sent."""
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    client = stack.enter_context(socket.socket(family))
    client.connect(where)
    client.sendall(REQUEST % path)
    return client


def answer(client: socket.socket) -> bytes:
    received = b""
    while piece := client.recv(65536):
        received += piece
    return received


def told(site: Running) -> dict[str, int]:
    """What ``osloxide status`` says of its sockets."""
    result = run_command([*OSLOXIDE, "status", "--json", str(site.pid)], environ=environment())
    (launcher,) = json.loads(result.stdout)
    return {queue["address"]: queue["waiting"] for queue in launcher["listening"]}


def is_stopped(pid: int) -> bool:
    """Whether each of its threads is: the signal reaches them one by one."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((it / "stat").read_text().rpartition(")")[2].split()[0] == "T" for it in tasks)


def test_connections_that_no_worker_accepts_are_shown_also_when_it_hangs(
    serve: Callable[..., Running], tmp_path: Path
) -> None:
    path = str(tmp_path / "a site.sock")
    site = serve("--bind", f"unix:{path}", "--master")
    port = site.port()
    (worker,) = site.running(1)
    tcp = f"127.0.0.1:{port}"
    assert told(site) == {tcp: 0, path: 0}

    os.kill(worker, signal.SIGSTOP)
    with ExitStack() as stack:
        stack.callback(os.kill, worker, signal.SIGCONT)
        wait_until(lambda: is_stopped(worker), "a worker that is stopped")
        clients = [asking(stack, ("127.0.0.1", port)) for _ in range(3)]
        clients += [asking(stack, path) for _ in range(2)]
        wait_until(lambda: told(site) == {tcp: 3, path: 2}, "five that wait")
        shown = run_command([*OSLOXIDE, "status", str(site.pid)], environ=environment()).stdout
        assert f"{tcp}: 3 connections not accepted yet" in shown
        metrics = [*OSLOXIDE, "metrics", "--once", str(site.pid)]
        text = run_command(metrics, environ=environment()).stdout
        found = re.findall(r'^osloxide_listen_queue\{address="([^"]*)",.*\} (\S+)$', text, re.M)
        assert dict(found) == {tcp: "3.0", path: "2.0"}

        os.kill(worker, signal.SIGCONT)
        for client in clients:
            assert answer(client).endswith(b"\r\n\r\nhello")
    wait_until(lambda: told(site) == {tcp: 0, path: 0}, "none that waits")
    assert site.stop() == 0, site.log


def test_the_statistics_of_uwsgi_have_the_queue_and_its_length(
    serve: Callable[..., Running], tmp_path: Path
) -> None:
    where = str(tmp_path / "stats.sock")
    site = serve("--threads", "1", "--backlog", "64", "--stats", f"unix:{where}")
    port = site.port()
    wait_until(lambda: "stats on" in site.log, "the socket of the statistics")

    def statistics() -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(where)
            return json.loads(answer(client))

    with ExitStack() as stack:
        clients = [asking(stack, ("127.0.0.1", port), b"/hold") for _ in range(20)]
        wait_until(lambda: statistics()["listen_queue"] > 0, "connections that wait")
        seen = statistics()
        (place,) = seen["sockets"]
        assert (place["name"], place["queue"]) == (f"127.0.0.1:{port}", seen["listen_queue"])
        assert place["max_queue"] == 64

        (site.cwd / "release").touch()
        for client in clients:
            assert answer(client).endswith(b"\r\n\r\nhello")
    wait_until(lambda: statistics()["listen_queue"] == 0, "none that waits")
    assert site.stop() == 0, site.log


def test_addresses_are_written_as_urls_have_them() -> None:
    with ExitStack() as stack:
        made = {stack.enter_context(socket.create_server(("127.0.0.1", 0)))}
        made.add(stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0osloxide-{os.getpid()}")
        abstract.listen()
        ports = {it.family: it.getsockname()[1] for it in made}

        found = {queue.address for queue in listen_queues.of(os.getpid(), [])}

    assert f"127.0.0.1:{ports[socket.AF_INET]}" in found
    assert f"[::1]:{ports[socket.AF_INET6]}" in found
    assert f"@osloxide-{os.getpid()}" in found


def test_workers_with_sockets_of_their_own_are_counted_together() -> None:
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=True))
        where = first.getsockname()
        stack.enter_context(socket.create_server(where, reuse_port=True))
        for _ in range(5):
            stack.enter_context(socket.create_connection(where))
        address = f"127.0.0.1:{where[1]}"

        # No process has the number 0.
        found = {it.address: it.waiting for it in listen_queues.of(0, [os.getpid()])}

    assert found[address] == 5


def test_a_process_that_is_not_there_has_no_queue() -> None:
    assert listen_queues.of(0, [0]) == ()
