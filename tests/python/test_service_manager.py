"""What systemd is told, and when. Real datagram sockets, real processes.

Rules: sd_notify(3), sd_watchdog_enabled(3), systemd.service(5) (Type=notify-reload).
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import DEADLINE, Program, wait_until

Start = Callable[..., Program]


class Systemd:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.settimeout(DEADLINE)

    def hear(self) -> dict[str, str]:
        """The next message."""
        lines = self.socket.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def has_heard_nothing(self) -> bool:
        return not select.select([self.socket], [], [], 0)[0]


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    manager = Systemd(str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_readiness_is_told_again_until_the_socket_of_systemd_takes_it(
    running: Start, flavour: str, systemd: Systemd, workers: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.setblocking(False)
        filler.connect(systemd.address)
        filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filler.send(b"FILLER=1")
                filled += 1
    args = ("--backend", flavour, "--workers", workers)
    program = running("probe.py", *args, NOTIFY_SOCKET=systemd.address)
    program.expect("start", int(workers))

    for _ in range(filled):
        assert systemd.hear() == {"FILLER": "1"}

    assert systemd.hear()["READY"] == "1"
    assert stop(program) == 0


def stop(program: Program) -> int:
    program.send(signal.SIGTERM)
    return program.ended()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_systemd_hears_of_readiness_once_every_start_has_returned_and_of_the_end(
    running: Start, flavour: str, workers: str, systemd: Systemd
) -> None:
    args = ("--backend", flavour, "--workers", workers, "--wait", "drain:1")
    program = running("probe.py", *args, NOTIFY_SOCKET=systemd.address)

    assert systemd.hear() == {"READY": "1", "MAINPID": str(program.pid)}
    assert len(program.events("started")) == int(workers)
    program.send(signal.SIGTERM)
    assert systemd.hear() == {"STOPPING": "1"}
    assert program.events("waited") == [], "it was told only when all was over"
    assert program.ended() == 0
    assert systemd.has_heard_nothing()


def test_workers_and_commands_do_not_inherit_the_address_or_the_watchdog(
    running: Start, flavour: str, systemd: Systemd
) -> None:
    variables = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "60000000"}
    program = running("probe.py", "--backend", flavour, "--workers", "2", **variables)
    program.expect("wait", 2)

    assert {detail for _, detail in program.events("notify-socket")} == {"None None"}
    assert stop(program) == 0


def test_an_abstract_address_is_understood(running: Start, tmp_path: Path) -> None:
    manager = Systemd(f"@osloxide-test-{tmp_path.name}-{time.monotonic_ns()}")
    with manager.socket:
        program = running("probe.py", "--workers", "1", NOTIFY_SOCKET=manager.address)

        assert manager.hear()["READY"] == "1"
        assert stop(program) == 0


def test_systemd_hears_nothing_while_start_hangs(
    running: Start, flavour: str, systemd: Systemd
) -> None:
    args = ("--backend", flavour, "--workers", "2", "--start", "hang", "--grace", "1")
    program = running("probe.py", *args, NOTIFY_SOCKET=systemd.address)
    program.expect("start", 2)
    program.send(signal.SIGTERM)

    assert program.ended() == 0
    assert systemd.has_heard_nothing()


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("method", ["reload", "mutate"])
def test_a_reload_is_over_for_systemd_when_every_worker_has_done_its_part(
    running: Start, flavour: str, workers: str, method: str, systemd: Systemd, tmp_path: Path
) -> None:
    config = tmp_path / "probe.conf"
    config.write_text("[DEFAULT]\ncolour = red\n")
    args = ("--workers", workers, "--restart-method", method, "--config", str(config))
    program = running("probe.py", "--backend", flavour, *args, NOTIFY_SOCKET=systemd.address)
    systemd.hear()
    before = time.monotonic_ns() // 1000

    program.send(signal.SIGHUP)

    message = systemd.hear()
    assert message["RELOADING"] == "1"
    assert before <= int(message["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert systemd.hear() == {"READY": "1"}
    done = "started" if method == "reload" else "reset"
    # A mutation also resets the parent's copy; a reload starts every worker once more.
    expected = {("reload", "1"): 2, ("reload", "2"): 4, ("mutate", "1"): 1, ("mutate", "2"): 3}
    assert len(program.events(done)) == expected[method, workers]
    assert stop(program) == 0
    assert systemd.hear() == {"STOPPING": "1"}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_systemd_is_not_left_waiting_by_an_unusable_configuration(
    running: Start, flavour: str, workers: str, systemd: Systemd, tmp_path: Path
) -> None:
    config = tmp_path / "probe.conf"
    config.write_text("[DEFAULT]\ncolour = red\n")
    args = ("--workers", workers, "--config", str(config))
    program = running("probe.py", "--backend", flavour, *args, NOTIFY_SOCKET=systemd.address)
    systemd.hear()
    config.write_text("no section and no value\n")

    program.send(signal.SIGHUP)

    assert systemd.hear()["RELOADING"] == "1"
    assert systemd.hear() == {"READY": "1"}
    assert stop(program) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_watchdog_hears_of_a_service_that_is_alive_until_it_ends(
    running: Start, flavour: str, workers: str, systemd: Systemd
) -> None:
    variables = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "400000"}
    args = ("--backend", flavour, "--workers", workers, "--wait", "drain:1")
    program = running("probe.py", *args, **variables)
    assert systemd.hear()["READY"] == "1"

    for _ in range(5):
        assert systemd.hear() == {"WATCHDOG": "1"}
    program.send(signal.SIGTERM)
    while (message := systemd.hear()) == {"WATCHDOG": "1"}:
        pass

    assert message == {"STOPPING": "1"}
    assert systemd.hear() == {"WATCHDOG": "1"}, "a long drain must not look like a hang"
    assert program.ended() == 0


def test_a_watchdog_that_is_meant_for_another_process_is_left_alone(
    running: Start, systemd: Systemd
) -> None:
    program = running(
        "probe.py",
        "--workers",
        "2",
        NOTIFY_SOCKET=systemd.address,
        WATCHDOG_USEC="1000",
        WATCHDOG_PID="1",
    )
    systemd.hear()

    assert stop(program) == 0
    assert systemd.hear() == {"STOPPING": "1"}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_watchdog_hears_nothing_of_a_process_that_hangs(
    running: Start, workers: str, systemd: Systemd
) -> None:
    """Of a launcher with workers that is the parent: what hangs below it is its own business."""
    variables = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "200000"}
    program = running("probe.py", "--workers", workers, "--burn-here-on-winch", **variables)
    systemd.hear()
    systemd.hear()

    program.send(signal.SIGWINCH)
    program.expect("burning")
    while not systemd.has_heard_nothing():
        systemd.hear()  # what was on its way

    wait_until(lambda: is_silent(systemd, 1.0), "the watchdog hears nothing for a second", 30)
    program.send(signal.SIGKILL)
    assert program.ended() == -signal.SIGKILL


def is_silent(systemd: Systemd, seconds: float) -> bool:
    """Observe for *seconds*: True when nothing arrived."""
    if not select.select([systemd.socket], [], [], seconds)[0]:
        return True
    systemd.hear()
    return False
