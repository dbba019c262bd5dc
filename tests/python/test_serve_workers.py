"""Workers of ``osloxide serve`` that come and go under load."""

from __future__ import annotations

import http.client
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import wait_until
from support.raw_http import Connection
from support.serving import Running, fetch, starter

# The second time it is loaded, its import holds the interpreter, as that of a C extension does.
SLOW_AGAIN = """
import os, pathlib, time

if pathlib.Path("slow").exists():
    pathlib.Path("loading").touch()
    sum(range(20_000_000))

def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "again.py").write_text(SLOW_AGAIN)
    with starter(tmp_path) as begin:
        yield begin


class Clients:
    """Threads that connect again and again until they are refused."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        self.lost: list[str] = []
        self._port = port
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            try:
                connection.request("GET", "/")
                assert connection.getresponse().read() == b"ok"
                self.answered += 1
            except ConnectionRefusedError:
                return
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
            finally:
                connection.close()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)


def test_a_stop_while_one_worker_loads_the_application_loses_no_connection(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    site = start("serve", "again", "-b", "127.0.0.1:0", "-w", "2")
    port, (victim, _) = site.port(), site.running(2)
    (tmp_path / "slow").touch()
    os.kill(victim, signal.SIGKILL)
    wait_until((tmp_path / "loading").exists, "a worker loads the application")
    clients = Clients(port)
    wait_until(lambda: clients.answered > 20, "load")

    status = site.stop()
    clients.join()

    assert clients.lost == []
    assert status == 0, site.log


@pytest.mark.parametrize("options", [[], ["--master"]])
def test_a_reload_of_broken_code_ends_a_process_that_serves_alone_and_leaves_others_serving(
    start: Callable[..., Running], tmp_path: Path, options: list[str]
) -> None:
    site = start("serve", "again", "-b", "127.0.0.1:0", *options)
    port, before = site.port(), site.running(1)
    assert fetch(port) == ["ok"]
    code = (tmp_path / "again.py").read_text()
    (tmp_path / "again.py").write_text("import no_such_module\n")

    os.kill(site.pid, signal.SIGHUP)

    if not options:
        assert site.process.wait(30) == 3
        assert "No module named 'no_such_module'" in site.log
        return
    wait_until(lambda: "No module named 'no_such_module'" in site.log, "the report")
    assert fetch(port) == ["ok"]
    (tmp_path / "again.py").write_text(code)
    wait_until(lambda: not set(before) & set(site.running(1)), "the mended code is loaded")
    assert fetch(port) == ["ok"]
    assert site.stop() == 0, site.log


@pytest.mark.parametrize("workers", ["1", "2"])
def test_quit_as_units_of_uwsgi_send_it_to_every_process_is_a_graceful_stop(
    start: Callable[..., Running], tmp_path: Path, workers: str
) -> None:
    pid_file = tmp_path / "pid"
    site = start("serve", "again", "-b", "127.0.0.1:0", "-w", workers, "--pid", str(pid_file))
    port, pids = site.port(), site.running(int(workers))
    clients = Clients(port)
    wait_until(lambda: clients.answered > 20, "load")

    for pid in {site.pid, *pids}:
        os.kill(pid, signal.SIGQUIT)
    status = site.process.wait(60)
    clients.join()

    assert status == 0, site.log
    assert clients.lost == []
    assert not pid_file.exists()


def test_ttin_and_ttou_add_and_remove_workers_under_load_and_lose_nothing(
    start: Callable[..., Running],
) -> None:
    site = start("serve", "again", "-b", "127.0.0.1:0", "-w", "2")
    port, before = site.port(), set(site.running(2))
    clients = Clients(port)

    for count in (3, 4):
        os.kill(site.pid, signal.SIGTTIN)
        assert before < set(site.running(count))
    os.kill(site.pid, signal.SIGHUP)
    wait_until(lambda: not before & set(site.running(4)), "a reload keeps the number")
    for count in (3, 2, 1):
        os.kill(site.pid, signal.SIGTTOU)
        site.running(count)
    os.kill(site.pid, signal.SIGTTOU)
    wait_until(lambda: "keeps its only worker" in site.log, "the last one stays")
    assert len(site.running(1)) == 1
    answered = clients.answered
    wait_until(lambda: clients.answered > answered + 20, "it serves")

    status = site.stop()
    clients.join()
    assert clients.lost == []
    assert status == 0, site.log


def test_a_worker_that_was_added_is_replaced_when_it_dies(start: Callable[..., Running]) -> None:
    site = start("serve", "again", "-b", "127.0.0.1:0", "--master")
    (first,) = site.running(1)
    os.kill(site.pid, signal.SIGTTIN)
    (added,) = set(site.running(2)) - {first}

    os.kill(added, signal.SIGKILL)

    wait_until(lambda: added not in site.running(2), "another worker")
    assert site.stop() == 0, site.log


SLOW_CLIENTS = """
import os

def application(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/big":
        return (b"x" * 100_000 for _ in range(100))
    return [f"{os.getpid()} {len(body)}".encode()]
"""


def test_clients_that_send_or_read_slowly_for_longer_than_the_timeout_cost_no_worker(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    timeout, size = 3.0, 400_000
    (tmp_path / "slow_clients.py").write_text(SLOW_CLIENTS)
    site = start(
        "serve", "slow_clients", "--bind", "127.0.0.1:0", "--workers", "1",
        "--timeout", f"{timeout:g}",
    )  # fmt: skip
    (worker,) = site.running(1)
    address = ("127.0.0.1", site.port())
    with Connection(address) as sender, Connection(address, receive_buffer=4096) as reader:
        reader.send("GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        sender.send(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n")
        # Slowness is what is tried here: a thousand bytes, and a look at the others.
        sent, received, begun = 0, 0, time.monotonic()
        while time.monotonic() < begun + 1.5 * timeout or sent < 20_000:
            sender.send(b"x" * 1000)
            sent += 1000
            received += len(reader.socket.recv(1000))
            assert fetch(site.port()) == [str(worker), "0"], site.log
            if sent == size - 1000:
                break
            select.select([], [], [], 0.02)
        sender.send(b"x" * (size - sent))

        assert sender.answer().body == f"{worker} {size}".encode()
        while block := reader.socket.recv(1 << 16):
            received += len(block)

    assert received > 100 * 100_000
    assert site.running(1) == [worker]
    assert site.stop() == 0, site.log
