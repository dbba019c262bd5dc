"""What operators see of a running service: ``osloxide top`` and ``osloxide metrics``.

The services are real programs with workers, the terminal is a real pseudo-terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import http.client
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _children import environment, run_command
from conftest import DEADLINE, Program, wait_until
from procfs import open_files, stat
from prometheus_client.parser import text_string_to_metric_families

from osloxide._native import Scoreboard
from osloxide.cli import snapshot, table

OSLOXIDE = [sys.executable, "-m", "osloxide"]

Start = Callable[..., Program]
Labels = tuple[tuple[str, str], ...]


@pytest.fixture
def web(running: Start) -> Iterator[Program]:
    """A WSGI service with two workers that both serve."""
    program = running("web.py", "--workers", "2", "--restart-method", "reload")
    program.expect("start", 2)
    yield program
    if program.process.poll() is None:
        assert stop(program) == 0


def stop(program: Program) -> int:
    program.send(signal.SIGTERM)
    return program.ended()


def ask(program: Program) -> int:
    """The worker that answered."""
    ((_, port),) = program.expect("port")
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=DEADLINE)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={"Connection": "close"})
        return int(connection.getresponse().read().split()[0])


def osloxide(*arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
    return run_command([*OSLOXIDE, *map(str, arguments)], environ=environment(**changes))


def without(package: str, directory: Path) -> str:
    """A directory for PYTHONPATH that makes importing *package* fail."""
    (directory / f"{package}.py").write_text(f"raise ImportError('no {package} here')\n")
    return str(directory)


# ---- rows


def look(at: float, *served: tuple[int, int, int, int]) -> snapshot.Launcher:
    """Workers given as slot, pid, served, slot_served."""
    idle = snapshot.Worker(
        slot=0, group=0, service="it", pid=None, state="running", generation=0, uptime=1.0,
        connections=0, in_flight=0, served=0, slot_served=0, oldest=None, threads=0, respawns=0,
        rss_bytes=None, last_exit=None,
    )  # fmt: skip
    workers = [
        dataclasses.replace(idle, slot=slot, pid=pid, served=own, slot_served=of_slot)
        for slot, pid, own, of_slot in served
    ]
    return snapshot.Launcher(1, "it", "", at, at, True, None, workers)


def test_rates_are_counted_between_two_looks() -> None:
    earlier, later = look(10, (0, 7, 100, 100)), look(12, (0, 7, 150, 150))
    rates = table.Rates.between(earlier, later)
    assert (rates.total, rates.of(later.workers[0])) == (25.0, 25.0)


def test_a_worker_forked_between_two_looks_counts_from_zero() -> None:
    # Its predecessor answered 10 more before it went; the slot's sum has them all.
    earlier, later = look(10, (0, 7, 100, 100)), look(12, (0, 8, 4, 114))
    rates = table.Rates.between(earlier, later)
    assert (rates.total, rates.of(later.workers[0])) == (7.0, 2.0)


def test_two_workers_of_one_slot_count_its_requests_once() -> None:
    launcher = look(10, (0, 7, 100, 130), (0, 8, 30, 130), (1, 9, 5, 5))
    assert "135 served" in table.totals(launcher, table.Rates.between(launcher, launcher))


def test_control_characters_of_a_command_line_do_not_reach_the_terminal() -> None:
    code = (
        "import osloxide._native as n, sys; b = n.Scoreboard(''); b.claim(0, 0); print(flush=True)"
    )
    command = [sys.executable, "-c", f"{code}; sys.stdin.read()", "\x1b]0;owned\x07"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        shown = osloxide("status", process.pid).stdout
        process.communicate(timeout=DEADLINE)
    assert process.returncode == 0
    assert "]0;owned" in shown
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_a_kernel_without_pid_namespaces_hides_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    readlink = os.readlink

    def without_namespaces(path: str | Path) -> str:
        if Path(path).match("ns/pid"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return readlink(path)

    board = Scoreboard("ours")
    board.claim(0, 0)
    monkeypatch.setattr(os, "readlink", without_namespaces)

    assert os.getpid() in snapshot.find()
    assert snapshot.View(os.getpid()).name == "ours"


# ---- top


class Terminal:
    """A program on a terminal of its own."""

    def __init__(
        self, *arguments: object, rows: int = 40, columns: int = 160, **changes: str
    ) -> None:
        self.master, terminal = pty.openpty()
        termios.tcsetwinsize(self.master, (rows, columns))
        self.modes = termios.tcgetattr(terminal)
        self.slave = terminal
        self.screen = ""
        self.process = subprocess.Popen(
            [*OSLOXIDE, *map(str, arguments)],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment(TERM="xterm", **changes),
            start_new_session=True,
            # Makes it the controlling terminal, so that ^C means SIGINT.
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        )

    def shows(self, pattern: str) -> re.Match[str]:
        """Wait until what was written since the last call matches."""
        found = wait_until(
            lambda: self._read() and re.search(pattern, self.screen), f"{pattern} on\n{self.screen}"
        )
        assert isinstance(found, re.Match)
        self.screen = ""
        return found

    def _read(self) -> bool:
        while select.select([self.master], [], [], 0)[0]:
            written = os.read(self.master, 65536).decode(errors="replace")
            self.screen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
        return True

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def ended(self) -> int:
        # It cannot end while the terminal's buffer is full.
        wait_until(lambda: self._read() and self.process.poll() is not None, "its end")
        self._read()
        return self.process.returncode

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.slave) == self.modes

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: object, **options: str) -> Terminal:
        opened.append(Terminal(*arguments, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_top_follows_the_requests_of_a_running_service(web: Program, terminal) -> None:
    top = terminal("top", web.pid, "--interval", "0.05")
    top.shows(rf"web\.py {web.pid}: .*web\.py --workers 2")

    seen = {ask(web) for _ in range(8)}

    top.shows(r" 8 served ")
    for pid in seen:
        top.shows(rf"WebService +\d +{pid} +running ")
    until_rated = time.monotonic() + DEADLINE
    rated = None
    while rated is None and time.monotonic() < until_rated:
        ask(web)
        top._read()
        rated = re.search(r"served \((?!0\.0)\d+[.\d]*/s\)", top.screen)
    assert rated, top.screen
    top.press(b"q")
    assert top.ended() == 0


def test_top_fits_into_80_columns_and_follows_a_terminal_that_grows(web: Program, terminal) -> None:
    # So long an interval that only the change of the size can have it drawn again.
    top = terminal("top", web.pid, "--interval", "3600", rows=24, columns=80)
    narrow = r"SLOT +PID STATE +CONN BUSY WAIT OLDEST REQ/S 5XX CPU% +RSS"
    top.shows(narrow)

    termios.tcsetwinsize(top.master, (24, 200))
    top.process.send_signal(signal.SIGWINCH)

    top.shows(r"IN FLIGHT .*REQ/S .*UNSENT .*RESPAWNS")
    top.press(b"q")
    assert top.ended() == 0


@pytest.mark.parametrize("keys", [b"q", b"\x03"], ids=["q", "ctrl-c"])
def test_leaving_top_puts_the_terminal_back(web: Program, terminal, keys: bytes) -> None:
    top = terminal("top", web.pid)
    top.shows("q leaves")
    assert not top.is_as_before()

    top.press(keys)

    assert top.ended() == 0
    assert top.is_as_before()
    assert "Traceback" not in top.screen


def test_top_leaves_at_once_when_the_supervisor_ends(web: Program, terminal) -> None:
    # So long an interval that only the end itself can have been noticed.
    top = terminal("top", web.pid, "--interval", "3600")
    top.shows("q leaves")

    assert stop(web) == 0

    assert top.ended() == 0
    assert f"web.py {web.pid} has ended" in top.screen
    assert top.is_as_before()


def test_a_suspended_top_gives_the_terminal_back_and_takes_it_again(web: Program, terminal) -> None:
    top = terminal("top", web.pid, "--interval", "0.1")
    top.shows("q leaves")

    os.kill(top.process.pid, signal.SIGTSTP)
    wait_until(lambda: stat(top.process.pid).state == "T", "its stop")
    assert top.is_as_before()

    os.kill(top.process.pid, signal.SIGCONT)
    wait_until(lambda: not top.is_as_before(), "its return")
    top.shows("q leaves")
    top.press(b"q")
    assert top.ended() == 0


def test_workers_below_the_edge_of_the_terminal_are_counted(web: Program, terminal) -> None:
    top = terminal("top", web.pid, rows=6)
    top.shows("q leaves; 1 more worker below the edge")
    top.press(b"q")
    assert top.ended() == 0


def test_top_without_a_terminal_prints_one_table_and_needs_no_rich(
    web: Program, tmp_path: Path
) -> None:
    ask(web)
    expect_counted(web, 1)

    result = osloxide("top", web.pid, "--interval", "0.1", PYTHONPATH=without("rich", tmp_path))

    assert result.returncode == 0, result.stderr
    heading, totals, columns, *rows = result.stdout.splitlines()
    assert heading.startswith(f"web.py {web.pid}: ")
    assert re.match(
        r"up \S+, 2 workers \(2 running\), \d connections?, 0 in flight, 1 served ", totals
    )
    assert "REQ/S" in columns.split()
    assert sorted(int(row.split()[2]) for row in rows) == sorted(web.workers())
    assert "\x1b" not in result.stdout


def test_top_once_reports_a_supervisor_that_ends_meanwhile(web: Program) -> None:
    command = [*OSLOXIDE, "top", "--once", "--interval", "3600", str(web.pid)]
    top = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: any("pidfd" in target for target in open_files(top.pid)), "its watch")
        assert stop(web) == 0
        stdout, _ = top.communicate(timeout=DEADLINE)
    finally:
        top.kill()
        top.wait()
    assert top.returncode == 0
    assert stdout.endswith(f"web.py {web.pid} has ended\n")


@pytest.mark.parametrize("command", ["status", "top --once --interval 0.1", "metrics --once"])
def test_a_launcher_is_found_by_its_name(web: Program, command: str) -> None:
    found = osloxide(*command.split(), "web.py")
    assert found.returncode == 0, found.stderr
    assert str(web.pid) in found.stdout

    missing = osloxide(*command.split(), "web")
    assert missing.returncode == 1
    assert "no launcher that may be read is called web; there are: " in missing.stderr
    assert "web.py" in missing.stderr


def test_a_live_table_without_rich_names_the_remedy(web: Program, terminal, tmp_path: Path) -> None:
    top = terminal("top", web.pid, PYTHONPATH=without("rich", tmp_path))
    assert top.ended() == 1
    assert "pip install 'osloxide[top]'" in top.screen
    assert "Traceback" not in top.screen


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "soon"])
def test_an_interval_out_of_range_is_a_usage_error(interval: str) -> None:
    result = osloxide("top", f"--interval={interval}")
    assert result.returncode == 2
    assert f"'{interval}' is no interval; give seconds from 0.05 to 86400" in result.stderr


# ---- metrics


class Exporter:
    """A running ``osloxide metrics``."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [*OSLOXIDE, "metrics", *map(str, arguments)],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()

    def scrape(self, path: str = "/metrics") -> tuple[int, str]:
        place = self.said.split()[-1].removesuffix("/metrics")
        if place.startswith("unix:"):
            connection = http.client.HTTPConnection("localhost", timeout=DEADLINE)
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(place.removeprefix("unix:"))
        else:
            address = place.removeprefix("http://")
            connection = http.client.HTTPConnection(address, timeout=DEADLINE)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def ended(self) -> tuple[int, str]:
        _, left = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, left


@pytest.fixture
def exporter() -> Iterator[Callable[..., Exporter]]:
    started: list[Exporter] = []

    def start(*arguments: object) -> Exporter:
        started.append(Exporter(*arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGTERM)
            assert one.ended() == (0, "")


def samples(text: str, name: str) -> dict[Labels, float]:
    """Value of each sample of that name; two with the same labels are refused."""
    found: dict[Labels, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                labels = tuple(sorted(sample.labels.items()))
                assert labels not in found, f"{name}{labels} twice"
                found[labels] = sample.value
    return found


def once(program: Program, name: str) -> dict[Labels, float]:
    result = osloxide("metrics", "--once", program.pid)
    assert result.returncode == 0, result.stderr
    return samples(result.stdout, name)


def expect_counted(program: Program, requests: int) -> None:
    """Wait until so many requests are counted: a client may have its answer a little before."""
    name = "osloxide_worker_requests_total"
    wait_until(lambda: sum(once(program, name).values()) == requests, f"{requests} counted")


def test_a_scrape_shows_every_slot_of_the_service(web: Program, exporter) -> None:
    ask(web)
    expect_counted(web, 1)

    status, text = exporter(web.pid, "--listen", "127.0.0.1:0").scrape()

    assert status == 200
    requests = samples(text, "osloxide_worker_requests_total")
    assert [dict(labels) for labels in requests] == [
        {"service": "web.py", "supervisor": str(web.pid), "group": "WebService", "slot": slot}
        for slot in ("0", "1")
    ]
    assert sum(requests.values()) == 1
    assert set(samples(text, "osloxide_worker_up").values()) == {1}
    assert set(samples(text, "osloxide_worker_respawns_total").values()) == {0}
    assert all(samples(text, "osloxide_worker_threads").values())


def test_a_request_in_flight_is_seen_with_its_age(web: Program) -> None:
    ((_, port),) = web.expect("port")
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=DEADLINE)
    with contextlib.closing(connection):
        connection.request("GET", "/slow?4")
        web.expect("request")
        wait_until(
            lambda: max(once(web, "osloxide_worker_oldest_request_seconds").values()) > 0,
            "a request that ages",
        )
        assert sum(once(web, "osloxide_worker_in_flight").values()) == 1
        assert sum(once(web, "osloxide_worker_connections").values()) == 1
        connection.getresponse().read()


def test_no_counter_goes_back_when_a_worker_is_killed(web: Program) -> None:
    for _ in range(6):
        last = ask(web)
    expect_counted(web, 6)

    web.send(signal.SIGKILL, last)
    web.expect("start", 3)

    assert sum(once(web, "osloxide_worker_requests_total").values()) == 6
    assert sum(once(web, "osloxide_worker_respawns_total").values()) == 1
    ask(web)
    expect_counted(web, 7)


def test_no_counter_goes_back_when_the_workers_are_replaced(web: Program) -> None:
    earlier: set[int] = set()

    def are_replaced() -> bool:
        return len(web.workers()) == 2 and not earlier & set(web.workers())

    for expected in (4, 8, 12):
        for _ in range(4):
            ask(web)
        expect_counted(web, expected)
        earlier = set(web.workers())
        web.send(signal.SIGHUP)
        wait_until(are_replaced, "new workers alone")
    expect_counted(web, 12)
    assert set(once(web, "osloxide_worker_processes").values()) == {1}


def test_two_services_of_one_name_are_kept_apart(running: Start, web: Program, exporter) -> None:
    other = running("web.py", "--workers", "2")
    other.expect("start", 2)
    ask(other)
    expect_counted(other, 1)

    _, text = exporter("--listen", "127.0.0.1:0").scrape()

    requests = samples(text, "osloxide_worker_requests_total")
    by_pid = {
        pid: sum(n for labels, n in requests.items() if dict(labels)["supervisor"] == str(pid))
        for pid in (web.pid, other.pid)
    }
    assert by_pid == {web.pid: 0, other.pid: 1}
    assert stop(other) == 0


def test_an_exporter_without_a_pid_finds_what_comes_and_goes(running: Start, exporter) -> None:
    metrics = exporter("--listen", "127.0.0.1:0")

    def is_shown(pid: int) -> bool:
        status, text = metrics.scrape()
        assert status == 200, text
        found = samples(text, "osloxide_supervisor_up")
        return any(dict(labels)["supervisor"] == str(pid) for labels in found)

    program = running("web.py", "--workers", "1")
    program.expect("start")
    # A service may begin a moment before its launcher can be looked at.
    wait_until(lambda: is_shown(program.pid), "it is shown")
    assert stop(program) == 0
    assert not is_shown(program.pid)


def test_metrics_are_answered_on_a_unix_socket(web: Program, exporter, tmp_path: Path) -> None:
    metrics = exporter(web.pid, "--unix", tmp_path / "metrics.sock")
    assert samples(metrics.scrape()[1], "osloxide_supervisor_up")
    assert metrics.scrape("/other")[0] == 404


def test_an_exporter_of_one_supervisor_ends_with_it(web: Program, exporter) -> None:
    metrics = exporter(web.pid, "--listen", "127.0.0.1:0")
    assert stop(web) == 0
    assert metrics.ended() == (0, f"osloxide: supervisor {web.pid} has ended\n")


def test_an_idle_scraper_does_not_keep_the_exporter_from_leaving(web: Program, exporter) -> None:
    metrics = exporter(web.pid, "--listen", "127.0.0.1:0")
    host, port = metrics.said.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), DEADLINE):
        metrics.process.send_signal(signal.SIGTERM)
        assert metrics.ended() == (0, "")


def test_an_exporter_is_not_shown_as_a_launcher(web: Program, exporter) -> None:
    metrics = exporter("--listen", "127.0.0.1:0")
    assert metrics.process.pid not in snapshot.find()
    assert web.pid in snapshot.find()


def test_metrics_on_a_port_in_use_name_the_remedy(web: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = osloxide("metrics", web.pid, "--listen", f"127.0.0.1:{port}")
    assert result.returncode == 1
    assert f"osloxide metrics cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "another process listens there" in result.stderr


def test_metrics_without_the_library_name_the_remedy(tmp_path: Path) -> None:
    path = without("prometheus_client", tmp_path)
    result = osloxide("metrics", "--once", PYTHONPATH=path)
    assert result.returncode == 1
    assert "pip install 'osloxide[metrics]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_metrics_want_to_be_told_where_to_answer() -> None:
    result = osloxide("metrics")
    assert result.returncode == 2
    assert "--listen --unix --once is required" in result.stderr


# ---- what a launcher is called, and what it is doing


def shown(pid: int) -> list[dict]:
    """The workers of a launcher as ``status --json`` prints them."""
    (launcher,) = json.loads(osloxide("status", pid, "--json").stdout)
    return launcher["workers"]


@pytest.mark.parametrize("grace", ["0", "60"])
def test_a_single_process_that_drains_is_shown_as_draining(running: Start, grace: str) -> None:
    program = running("probe.py", "--workers", "1", "--grace", grace, "--stop", "until-usr1")
    program.expect("wait")
    assert [(row["service"], row["state"]) for row in shown(program.pid)] == [("Probe", "running")]

    program.send(signal.SIGTERM)
    program.expect("stop")

    assert [row["state"] for row in shown(program.pid)] == ["draining"]
    program.send(signal.SIGUSR1)
    assert program.ended() == 0


def test_services_are_shown_by_name_and_told_apart_where_they_share_one(running: Start) -> None:
    args = ("--launcher", "process", "--services", "2", "--workers", "1")
    program = running("probe.py", *args)
    program.expect("wait", 2)

    assert [(row["service"], row["group"]) for row in shown(program.pid)] == [
        ("Probe/0", 0),
        ("Probe/1", 1),
    ]
    (heading, *_) = osloxide("status", program.pid).stdout.splitlines()
    assert "supervisor of" not in heading, "the title says what the table says"
    assert heading.startswith(f"probe.py {program.pid}: {sys.executable}")
    assert stop(program) == 0
