"""APIs of OpenStack, started in three ways, under load: reload, kill of a worker, stop.

The three ways: ``osloxide serve MODULE``, ``osloxide uwsgi`` with the options of a deployment's ini
file, and that behind nginx over the uwsgi protocol.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from services.apis import ALL, Api, http_call
from services.conftest import Figure, Start
from services.processes import RunningService, accepts_connections, free_port
from services.subject import IS_STOCK, REPOSITORY
from services.test_proxies import NGINX, needs

pytestmark = [
    pytest.mark.skipif(IS_STOCK, reason="oslo.service has no such command"),
    pytest.mark.timeout(600),
]

IS_LONG = os.environ.get("OSLOXIDE_LONG") == "1"
# Installing keystone, glance and placement takes a minute the first time.
NAMES = ["cinder", "nova", *(["keystone", "placement", "glance"] if IS_LONG else [])]
WAYS = ["serve", "ini", *(["nginx"] if IS_LONG else [])]
KOLLA = REPOSITORY / "tests" / "deployments" / "files" / "kolla-ansible" / "nova-api-uwsgi.ini"


@pytest.fixture(scope="module", params=NAMES)
def api(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Api, Path, dict[str, str]]:
    """An API with its schema, and the environment to start it with."""
    api = ALL[request.param]
    directory = tmp_path_factory.mktemp(api.name)
    return api, directory, api.prepare(directory)


def ini_of(api: Api, directory: Path, address: str) -> str:
    """The file of a deployment tool, with this machine's paths and this API's module."""
    text = KOLLA.read_text()
    text = re.sub(r"^uid = .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^http = .*$", address, text, flags=re.MULTILINE)
    text = re.sub(r"^logto2 = .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^processes = .*$", "processes = 2", text, flags=re.MULTILINE)
    return re.sub(r"^module = .*$", f"module = {api.module}:application", text, flags=re.MULTILINE)


@pytest.fixture(params=WAYS)
def served(
    request: pytest.FixtureRequest,
    api: tuple[Api, Path, dict[str, str]],
    start: Start,
    tmp_path: Path,
) -> Iterator[tuple[RunningService, int]]:
    """The API, started in one of the ways, and the port where it answers."""
    this, directory, variables = api
    port = inner = free_port()
    arguments = [word.format(directory=directory) for word in this.arguments]
    osloxide = [this.environment().python, "-m", "osloxide"]
    ini = tmp_path / f"{this.name}.ini"
    if request.param == "serve":
        command = [*osloxide, "serve", this.module, "-b", f"127.0.0.1:{port}", "-w", "2", "--"]
        command += arguments
    else:
        kind = "http" if request.param == "ini" else "socket"
        ini.write_text(ini_of(this, directory, f"{kind} = 127.0.0.1:{inner}"))
        command = [*osloxide, "uwsgi", "--ini", str(ini), "--pyargv", " ".join(arguments)]
    service = start(command, tmp_path / "service.log", variables)
    service.wait_workers(2)
    wait_until(lambda: accepts_connections(inner) or None, "it listens", 120)
    proxy = None
    if request.param == "nginx":
        port = free_port()
        config = tmp_path / "nginx.conf"
        config.write_text(
            NGINX.format(directory=tmp_path, port=port, upstream=f"127.0.0.1:{inner}")
        )
        proxy = subprocess.Popen([needs("nginx"), "-c", str(config)])
        wait_until(lambda: accepts_connections(port) or None, "nginx listens", 30)
    yield service, port
    if proxy is not None:
        proxy.terminate()
        proxy.wait(30)


class Clients:
    """Requests for the root of an API, one after the other on each of some threads."""

    def __init__(self, port: int, count: int = 3) -> None:
        self._port = port
        self._ends = threading.Event()
        self.answered = 0
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._ends.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            try:
                connection.request("GET", "/")
                status = connection.getresponse().status
                with self._lock:
                    self.answered += 1
                    if status >= 500:
                        self.failures.append(str(status))
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.failures.append(repr(error))
            finally:
                connection.close()

    def wait_more(self, count: int) -> None:
        """Wait for so many further answers."""
        wanted = self.answered + count
        wait_until(lambda: self.answered >= wanted or None, "answers", 120)

    def end(self) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(120)


def test_an_api_does_its_work_and_survives_reload_kill_and_stop(
    api: tuple[Api, Path, dict[str, str]],
    served: tuple[RunningService, int],
    figure: Figure,
) -> None:
    this, (service, port) = api[0], served
    this.use(http_call(port))
    clients = Clients(port)
    try:
        clients.wait_more(10)
        before = set(service.workers())
        service.signal(signal.SIGHUP)
        wait_until(
            lambda: (len(service.workers()) == 2 and not before & set(service.workers())) or None,
            "new workers",
            180,
        )
        clients.wait_more(10)
        assert clients.failures == []  # a reload loses nothing

        os.kill(service.workers()[0], signal.SIGKILL)
        clients.wait_more(10)
        service.wait_workers(2, 120)
        lost = len(clients.failures)
        assert lost <= 3  # what was in flight in that worker, at most one of each client
    finally:
        clients.end()
    this.use(http_call(port))
    figure(f"{this.name}: {clients.answered} answered, {lost} lost by the kill")
    service.stop()
