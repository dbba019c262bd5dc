"""Debian sid's nova and cinder on its CPython, started by the drop-ins of debian/.

Each starts by the command of its drop-in, tells systemd that it is ready, answers, loses a worker,
and stops with status 0. RabbitMQ and MariaDB are those of the service tests, outside of the tree.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from services.cinder import PROJECT, Cinder, Client, stop_politely
from services.conftest import Starter
from services.infra import Broker, Database
from services.nova import Calls, Nova
from services.processes import RunningService
from tree import DROP_INS, DebianEnvironment, Notifications
from waiting import wait_until

pytestmark = [
    pytest.mark.timeout(3600),  # the first run may make the tree and build the package
    # Polls that find an API not yet there leave their sockets to the collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a tree of Debian needs root (chroot, mounts)"),
]

CALLERS = 2


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> DebianEnvironment:
    return DebianEnvironment(tmp_path_factory.mktemp("debian"))


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.stop()


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    database = Database()
    yield database
    database.stop()


@pytest.fixture
def start() -> Iterator[Callable[..., RunningService]]:
    starter = Starter()
    yield starter
    starter.end()  # what a failed test has left; one that passed has proved that nothing is


def notified(
    start: Callable[..., RunningService], socket: Notifications
) -> Callable[..., RunningService]:
    """*start*, with the variable by which systemd names its socket."""

    def with_socket(argv: Any, log: Path, env: dict[str, str]) -> RunningService:
        service = start(argv, log, {**env, "NOTIFY_SOCKET": str(socket.path)})
        wait_until(lambda: socket.heard("READY=1"), f"{log.stem} says READY=1", 300, pause=0.1)
        return service

    return with_socket


def assert_native(service: RunningService) -> None:
    """The process has the package's native module, built for Debian's CPython."""
    maps = Path(f"/proc/{service.pid}/maps").read_text()
    assert re.search(r"/usr/lib/python3/dist-packages/osloxide/_native\.cpython-31[4-9]-", maps)


def replaced(service: RunningService) -> None:
    """Kill a worker, and wait until another one has its place."""
    before = service.workers()
    os.kill(before[0], signal.SIGKILL)
    wait_until(
        lambda: len(after := service.workers()) == len(before) and before[0] not in after,
        f"{service.name}: a successor of the killed worker",
        120,
    )


@pytest.mark.parametrize("name", ["conductor", "scheduler"])
def test_nova_of_debian_starts_answers_loses_a_worker_and_stops(
    name: str,
    environment: DebianEnvironment,
    broker: Broker,
    database: Database,
    tmp_path: Path,
    start: Callable[..., RunningService],
) -> None:
    nova = Nova(environment, broker, database, tmp_path)
    nova.create_schema()
    socket = Notifications(tmp_path / "notify")
    service = nova.start_service(name, notified(start, socket))
    assert_native(service)

    calls = Calls(nova, name, timeout=30, threads=CALLERS)
    calls.wait_answered(20, within=120)
    replaced(service)
    calls.wait_answered(20, within=120)
    calls.end()
    report = calls.report()

    assert stop_politely(service, within=90) == 0
    # A killed worker takes along what it was running: at most one call of each caller.
    assert len(report.failed) <= CALLERS, report.failed
    assert socket.heard("STOPPING=1")
    socket.close()


def test_cinder_of_debian_creates_a_volume_and_stops(
    environment: DebianEnvironment,
    broker: Broker,
    database: Database,
    tmp_path: Path,
    start: Callable[..., RunningService],
) -> None:
    cinder = Cinder(environment, broker.url, database, tmp_path)
    cinder.create_schema()
    sockets = [Notifications(tmp_path / f"notify-{name}") for name in ("scheduler", "volume")]
    scheduler = cinder.start_scheduler(notified(start, sockets[0]))
    volume = cinder.start_volume(notified(start, sockets[1]))
    api = cinder.start_api(start)
    for each in (scheduler, volume, api):
        assert_native(each)

    client = Client(cinder.port)
    body = {"volume": {"size": 1, "name": "debian"}}
    made = client.call("POST", f"/v3/{PROJECT}/volumes", body, 202)["volume"]["id"]
    status = wait_until(
        lambda: (
            (now := client.call("GET", f"/v3/{PROJECT}/volumes/{made}")["volume"]["status"])
            in ("available", "error")
            and now
        ),
        "the volume is made",
        120,
    )
    client.close()

    for service in (api, volume, scheduler):
        assert stop_politely(service, within=90) == 0
    assert status == "available"
    for socket in sockets:
        assert socket.heard("STOPPING=1")
        socket.close()


def test_the_services_run_on_the_cpython_of_debian(environment: DebianEnvironment) -> None:
    version = environment.output("python3", "-c", "import sys; print(sys.version_info[:2])")
    where = environment.output("python3", "-c", "import osloxide; print(osloxide.__file__)")

    assert version.strip() >= "(3, 14)"
    assert where.startswith("/usr/lib/python3/dist-packages/")


def test_each_drop_in_clears_the_command_of_the_unit_and_outlasts_the_grace_period() -> None:
    drop_ins = sorted(DROP_INS.glob("*.service.d/osloxide.conf"))
    assert len(drop_ins) >= 4
    for drop_in in drop_ins:
        text = drop_in.read_text()
        assert re.search(r"^ExecStart=$\n^ExecStart=/usr/bin/osloxide run /usr/bin/", text, re.M)
        if (timeout := re.search(r"^TimeoutStopSec=(\d+)$", text, re.M)) is not None:
            assert int(timeout[1]) > 60, "graceful_shutdown_timeout of oslo.service"
