"""Units as operators write them, under a real systemd: start, answer, reload, watchdog, stop.

What systemd makes of what it is told is asked of systemd. The words on its socket, one by one, are
in test_service_manager.py.

Rules: systemd.service(5), systemd.socket(5), systemd.exec(5), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from _children import environment
from conftest import APPS, wait_until
from procfs import children
from support import systemd as own
from support.raw_http import Connection, Incomplete
from support.systemd import Systemd
from waiting import whole_lines

APPLICATION = """
import os, pathlib

place = pathlib.Path(os.environ["PLACE"])

def application(environ, start_response):
    if environ["PATH_INFO"] == "/held":
        (place / "held").touch()
        (place / "gate").read_text()
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
HARDENED = """
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=no
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
ProcSubset=pid
PrivateDevices=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
CapabilityBoundingSet=
LimitNOFILE=1024
TasksMax=64
"""
"""What ``systemd-analyze security`` asks for, as far as a service of root's files can have it."""


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    if (reason := own.why_not()) is not None:
        pytest.skip(reason)
    running = Systemd(tmp_path_factory.mktemp("systemd"))
    yield running
    running.close()


class Unit:
    """A unit that runs a command of osloxide's with ``Type=notify``.

    :ivar log: a file of what it writes.
    :ivar socket: where it is to serve.
    """

    def __init__(self, systemd: Systemd, place: Path, command: str, service: str = "") -> None:
        self.systemd, self.place = systemd, place
        self.name = f"{re.sub('[^a-z0-9]', '-', place.name.lower())}.service"
        self.log = place / "log"
        self.socket = str(place / "s")
        (place / "api.py").write_text(APPLICATION)
        systemd.write(
            self.name,
            f"""\
[Service]
Type=notify
WorkingDirectory={place}
Environment=PLACE={place} PYTHONUNBUFFERED=1
StandardOutput=append:{self.log}
StandardError=append:{self.log}
ExecStart={sys.executable} {command.format(socket=self.socket)}
ExecReload=/bin/kill -HUP $MAINPID
TimeoutStartSec=60
TimeoutStopSec=30
{service}
""",
        )
        systemd.systemctl("daemon-reload")

    def show(self, name: str) -> str:
        return self.systemd.show(self.name, name)

    def systemctl(self, verb: str, *, check: bool = True) -> None:
        self.systemd.systemctl(verb, self.name, check=check)

    def pid(self) -> int:
        """Of its main process, as seen from outside."""
        return self.systemd.outside(int(self.show("MainPID")))

    def ask(self, path: str = "/") -> str:
        with Connection(self.socket) as connection:
            answer = connection.request("GET", path)
            assert answer.status == 200, answer
            return answer.body.decode()

    def assert_stopped(self, result: str = "success") -> None:
        """It has ended, systemd finds it in order, and nothing of it is left."""
        assert (self.show("ActiveState"), self.show("Result")) == ("inactive", result), self
        assert self.systemd.is_empty(self.name)

    def __repr__(self) -> str:
        log = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"{self.systemd.systemctl('status', self.name, check=False)}\n{log}"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


SERVE = "-m osloxide serve api -w 2 -b unix:{socket}"


class Load:
    """A client that connects, asks and leaves, over and over; what it gets is counted.

    It does so inside of ``with``.
    """

    def __init__(self, unit: Unit) -> None:
        self.answered: list[str] = []
        self.lost: list[str] = []
        self._unit, self._is_over = unit, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                self.answered.append(self._unit.ask())
            except (OSError, Incomplete, AssertionError) as error:
                self.lost.append(repr(error))


STARTER = """
import pathlib, sys
from support.systemd import Systemd
running = Systemd(pathlib.Path(sys.argv[1]))
print(running.pid, running.cgroup, flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("systemd")
def test_nothing_is_left_of_a_systemd_whose_tests_are_killed(place: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(place)],
        env={**environment(), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        assert starter.stdout is not None
        first, cgroup = starter.stdout.readline().split()
        starter.kill()
    try:
        wait_until(lambda: own.has_gone(Path(cgroup)), f"no process below {cgroup}")
    except AssertionError:
        os.kill(int(first), signal.SIGKILL)
        raise


def test_no_control_group_is_left_of_a_systemd_that_could_not_be_started(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hierarchy = place / "cgroup"
    hierarchy.mkdir()
    monkeypatch.setattr(own, "_hierarchy", lambda: hierarchy)
    monkeypatch.setattr(own, "_TARGETS", ["no/directory"])

    with pytest.raises(FileNotFoundError, match="no/directory"):
        Systemd(place)

    assert list(hierarchy.iterdir()) == []


def test_a_start_is_over_when_the_service_answers_and_a_stop_when_all_have_left(
    systemd: Systemd, place: Path
) -> None:
    unit = Unit(systemd, place, SERVE)

    unit.systemctl("start")

    assert unit.ask()
    assert len(children(unit.pid())) == 2
    unit.systemctl("stop")
    unit.assert_stopped()
    assert unit.show("ExecMainStatus") == "0"


def test_a_reload_replaces_all_workers_and_the_service_stays(systemd: Systemd, place: Path) -> None:
    unit = Unit(systemd, place, SERVE)
    unit.systemctl("start")
    main, before = unit.pid(), set(children(unit.pid()))

    with Load(unit) as load:
        unit.systemctl("reload")
        wait_until(lambda: not before & set(children(main)), lambda: f"new workers\n{unit!r}")
        known = len(load.answered)
        wait_until(lambda: len(load.answered) > known + 10, "answers of the new workers")

    assert load.lost == []
    assert (unit.pid(), unit.show("ActiveState")) == (main, "active")
    unit.systemctl("stop")
    unit.assert_stopped()


def test_a_request_that_runs_is_answered_at_a_stop(systemd: Systemd, place: Path) -> None:
    unit = Unit(systemd, place, SERVE)
    os.mkfifo(place / "gate")
    unit.systemctl("start")
    with Connection(unit.socket) as connection:
        connection.send("GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until((place / "held").exists, "the request runs")
        systemd.systemctl("stop", "--no-block", unit.name)
        wait_until(lambda: unit.show("ActiveState") == "deactivating", "the stop has begun")
        (place / "gate").write_text("go")

        assert connection.answer().status == 200

    wait_until(lambda: unit.show("ActiveState") == "inactive", lambda: repr(unit))
    unit.assert_stopped()


def test_a_worker_that_is_killed_is_replaced_and_systemd_sees_no_failure(
    systemd: Systemd, place: Path
) -> None:
    unit = Unit(systemd, place, SERVE)
    unit.systemctl("start")
    main = unit.pid()
    victim = children(main)[0]

    os.kill(victim, signal.SIGKILL)

    wait_until(lambda: victim not in children(main) and len(children(main)) == 2, "a successor")
    assert unit.ask()
    assert (unit.show("ActiveState"), unit.show("NRestarts")) == ("active", "0")
    unit.systemctl("stop")
    unit.assert_stopped()


def test_a_parent_that_is_killed_is_started_again_with_nothing_left_of_it(
    systemd: Systemd, place: Path
) -> None:
    restart = "Restart=on-failure\nRestartSec=0\nKillMode=process"
    unit = Unit(systemd, place, SERVE, restart)
    unit.systemctl("start")
    main = unit.pid()
    orphans = set(children(main))

    os.kill(main, signal.SIGKILL)

    wait_until(lambda: unit.show("NRestarts") == "1", lambda: repr(unit))
    wait_until(lambda: unit.show("ActiveState") == "active", lambda: repr(unit))
    assert unit.ask()
    wait_until(lambda: not orphans & set(systemd.members(unit.name)), "its workers have left")
    unit.systemctl("stop")
    unit.assert_stopped()


def test_an_application_that_fails_fails_the_start_at_once(systemd: Systemd, place: Path) -> None:
    unit = Unit(systemd, place, SERVE.replace("api", "broken"))
    (place / "broken.py").write_text("raise ValueError('no database')\n")

    unit.systemctl("start", check=False)

    assert unit.show("ActiveState") == "failed", unit
    assert unit.show("ExecMainStatus") == "3"
    assert "ValueError: no database" in unit.log.read_text()
    assert systemd.is_empty(unit.name)


@pytest.mark.parametrize("command", [SERVE, SERVE.replace("-w 2", "-w 1")], ids=["two", "one"])
def test_the_watchdog_hears_from_a_service_that_is_well_and_ends_one_that_hangs(
    systemd: Systemd, place: Path, command: str
) -> None:
    unit = Unit(systemd, place, command, "WatchdogSec=2s\nRestart=on-watchdog\nRestartSec=0")
    unit.systemctl("start")
    heard = {unit.show("WatchdogTimestampMonotonic")}

    def has_heard_often() -> bool:
        heard.add(unit.show("WatchdogTimestampMonotonic"))
        return len(heard) > 3

    wait_until(has_heard_often, lambda: f"the watchdog\n{unit!r}")
    assert unit.show("NRestarts") == "0"
    main = unit.pid()
    os.kill(main, signal.SIGSTOP)

    wait_until(lambda: unit.show("NRestarts") == "1", lambda: f"a start\n{unit!r}")
    wait_until(lambda: unit.show("ActiveState") == "active", lambda: repr(unit))
    assert unit.pid() != main
    assert unit.ask()
    unit.systemctl("stop")
    unit.assert_stopped()


def test_connections_wait_in_the_socket_of_systemd_while_the_service_restarts(
    systemd: Systemd, place: Path
) -> None:
    unit = Unit(systemd, place, SERVE.replace("-b unix:{socket}", ""))
    listening = unit.name.replace(".service", ".socket")
    systemd.write(listening, f"[Socket]\nListenStream={unit.socket}\n")
    systemd.systemctl("daemon-reload")
    systemd.systemctl("start", listening)
    assert unit.ask(), "the first connection starts it"
    first = unit.pid()

    with Load(unit) as load:
        unit.systemctl("restart")
        known = len(load.answered)
        wait_until(lambda: len(load.answered) > known + 10, lambda: f"{load.lost}\n{unit!r}")

    assert load.lost == []
    assert unit.pid() != first
    systemd.systemctl("stop", listening, unit.name)
    unit.assert_stopped()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_unit_that_is_locked_down_serves_and_reloads(
    systemd: Systemd, place: Path, workers: str
) -> None:
    command = SERVE.replace("-w 2", f"-w {workers}")
    unit = Unit(systemd, place, command, f"{HARDENED}ReadWritePaths={place}\nWatchdogSec=20s")

    unit.systemctl("start")

    main = unit.pid()
    assert unit.ask()
    before = set(children(main))
    unit.systemctl("reload")
    wait_until(lambda: not before & set(children(main)), lambda: f"new workers\n{unit!r}")
    assert unit.ask()
    unit.systemctl("stop")
    unit.assert_stopped()
    assert "Traceback" not in unit.log.read_text(), unit


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("method", ["reload", "mutate"])
def test_a_service_of_oslo_starts_reloads_and_stops_as_a_locked_unit(
    systemd: Systemd, place: Path, workers: str, method: str
) -> None:
    command = f"{APPS / 'probe.py'} --workers {workers} --restart-method {method}"
    unit = Unit(systemd, place, command, f"{HARDENED}ReadWritePaths={place}")

    unit.systemctl("start")

    def seen(event: str) -> int:
        return sum(f" {event} " in line for line in whole_lines(unit.log))

    assert seen("started") == int(workers), unit
    unit.systemctl("reload")
    done, count = {"reload": ("started", 2 * int(workers)), "mutate": ("reset", 1)}[method]
    wait_until(lambda: seen(done) >= count, lambda: repr(unit))
    wait_until(lambda: unit.show("ActiveState") == "active", lambda: repr(unit))
    unit.systemctl("stop")
    unit.assert_stopped()


def test_a_unit_that_would_be_killed_before_its_grace_period_is_named(
    systemd: Systemd, place: Path
) -> None:
    unit = Unit(systemd, place, f"{SERVE} --graceful-timeout 60")

    unit.systemctl("start")

    wait_until(
        lambda: f"{unit.name} has TimeoutStopSec=30" in unit.log.read_text(), lambda: repr(unit)
    )
    unit.systemctl("stop")
    unit.assert_stopped()
