"""Workers of ``osloxide serve`` that come and go under load."""

from __future__ import annotations

import http.client
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import wait_until
from support.serving import Running, starter

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
