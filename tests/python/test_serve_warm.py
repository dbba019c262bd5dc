"""``osloxide serve --warm``: workers are forked from a process that has loaded the application.

Real commands; each test ends its own, and ``starter`` refuses what is left of it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import wait_until
from procfs import open_fds, session_members
from support.serving import Running, fetch, starter

SITE = """
import atexit, os, time

loaded_in = os.getpid()
with open("loads", "a") as loads:
    loads.write(f"{loaded_in}\\n")
version = "one"

def note():
    with open("exits", "a") as exits:
        exits.write(f"{os.getpid()}\\n")

atexit.register(note)

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {loaded_in} {version} {os.getppid()}".encode()]
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "mysite.py").write_text(SITE)
    with starter(tmp_path) as begin:
        yield begin


def warm(start: Callable[..., Running], *arguments: str, workers: int = 2) -> Running:
    return start("serve", "mysite", "--warm", "-w", str(workers), "-b", "127.0.0.1:0", *arguments)


def change(running: Running, old: str, new: str) -> None:
    """Change the module, to a file of another size: bytecode is told apart by that, too."""
    file = running.cwd / "mysite.py"
    file.write_text(file.read_text().replace(old, new))


def loads(running: Running) -> list[int]:
    """Which processes have loaded the application."""
    file = running.cwd / "loads"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def children(pid: int) -> set[int]:
    """Those that still run."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return set()
    return {int(child) for child in found if _state(child) not in ("Z", "")}


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def template(running: Running) -> int:
    """The one child of the parent that is no worker."""
    found: set[int] = set()

    def is_alone() -> bool:
        workers = {worker["pid"] for worker in running.workers()}
        found.clear()
        found.update(children(running.pid) - workers)
        return len(found) == 1

    wait_until(is_alone, f"one template\n{running.log}")
    return found.pop()


def replaced(running: Running, old: set[int], count: int) -> set[int]:
    """Wait for *count* workers, none of *old*."""
    found: set[int] = set()

    def is_done() -> bool:
        found.clear()
        found.update(
            int(str(worker["pid"])) for worker in running.workers() if worker["state"] == "running"
        )
        return len(found) == count and not found & old

    wait_until(is_done, f"replaced workers\n{running.log}")
    return found


def test_the_application_is_loaded_once_and_workers_are_children_of_the_parent(
    start: Callable[..., Running],
) -> None:
    site = warm(start, workers=3)
    workers = set(site.running(3))

    pid, loaded_in, _, parent = fetch(site.port())

    assert loads(site) == [int(loaded_in)]
    assert int(loaded_in) == template(site)
    assert (int(pid) in workers, int(parent)) == (True, site.pid)
    assert site.stop() == 0, site.log


def test_a_worker_that_dies_is_replaced_without_another_load(start: Callable[..., Running]) -> None:
    site = warm(start)
    workers = set(site.running(2))

    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    again = replaced(site, workers, 2)

    assert len(loads(site)) == 1
    assert int(fetch(site.port())[0]) in again
    assert "killed by SIGKILL" in site.log
    assert site.stop() == 0, site.log


def test_exit_functions_of_the_application_run_in_workers_and_not_in_the_template(
    start: Callable[..., Running],
) -> None:
    site = warm(start)
    workers = set(site.running(2))

    assert site.stop() == 0, site.log

    ended = {int(pid) for pid in (site.cwd / "exits").read_text().split()}
    assert ended == workers


def test_a_hangup_loads_new_code_and_no_request_is_lost(start: Callable[..., Running]) -> None:
    site = warm(start)
    workers = set(site.running(2))
    failures: list[BaseException] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            try:
                fetch(site.port())
            except BaseException as error:  # noqa: BLE001  # reported below
                failures.append(error)

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        change(site, '"one"', '"two, and longer"')
        site.process.send_signal(signal.SIGHUP)
        replaced(site, workers, 2)
    finally:
        is_over.set()
        for client in clients:
            client.join()

    assert not failures
    assert fetch(site.port())[2] == "two,"
    assert len(loads(site)) == 2
    assert fetch(site.port())[1] == str(template(site)), "the old template has left"
    assert site.stop() == 0, site.log


def test_code_that_cannot_be_loaded_at_a_hangup_leaves_the_old_workers_and_is_tried_again(
    start: Callable[..., Running],
) -> None:
    site = warm(start)
    workers = set(site.running(2))

    change(site, '"one"', '"two" + missing')
    site.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "cannot load mysite" in site.log, "the report")
    os.kill(min(workers), signal.SIGKILL)
    replaced(site, {min(workers)}, 2)
    assert fetch(site.port())[2] == "one", "also in a worker that was forked since"
    assert "tried again" in site.log

    change(site, '"two" + missing', '"three"')
    wait_until(lambda: fetch(site.port())[2] == "three", f"the new code\n{site.log}")
    assert site.stop() == 0, site.log


def test_hangups_during_a_load_end_with_the_newest_code(start: Callable[..., Running]) -> None:
    site = warm(start)
    site.running(2)

    change(site, "import atexit, os, time", "import atexit, os, time; time.sleep(0.5)")
    site.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(children(site.pid)) == 4, "the next template")
    change(site, '"one"', '"the last"')
    for _ in range(20):
        site.process.send_signal(signal.SIGHUP)

    wait_until(lambda: fetch(site.port())[2:4] == ["the", "last"], f"the last code\n{site.log}")
    assert site.stop() == 0, site.log


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (
            "import socket; a = socket.create_server(('127.0.0.1', 0)); "
            "b = socket.create_connection(a.getsockname())",
            "a connection to 127.0.0.1:",
        ),
        (
            "import threading; threading.Thread(target=threading.Event().wait, name='poller', "
            "daemon=True).start()",
            "thread poller",
        ),
        (
            "import sqlite3; db = sqlite3.connect('data.db'); db.execute('create table t(c)'); "
            "db.commit()",
            "the SQLite database ",
        ),
        ("import asyncio; loop = asyncio.new_event_loop()", "an event loop (epoll)"),
        ("import subprocess; p = subprocess.Popen(['sleep', '30'])", "the running command 'sleep"),
    ],
    ids=["connection", "thread", "database", "loop", "command"],
)
def test_what_workers_would_share_is_named_and_refused(
    start: Callable[..., Running], tmp_path: Path, code: str, named: str
) -> None:
    (tmp_path / "mysite.py").write_text(f"{code}\n{SITE}")

    site = warm(start)
    status = site.process.wait(30)

    assert status == 3, site.log
    assert named in site.log
    assert "open it in the first request" in site.log
    assert site.log.count("--warm cannot fork workers") == 1
    for pid in session_members(site.pid):
        os.kill(pid, signal.SIGKILL)  # the command that the application started and left
    wait_until(lambda: not session_members(site.pid), "the end of all")


def test_listeners_datagrams_files_and_what_was_closed_are_no_reason_to_refuse(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    code = """
import socket, subprocess, threading
listener = socket.create_server(("127.0.0.1", 0))
closed = socket.create_connection(listener.getsockname())
listener.accept()[0].close()
closed.close()
statsd = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
statsd.connect(("127.0.0.1", 8125))
log = open("application.log", "a")
subprocess.run(["true"])
thread = threading.Thread(target=int)
thread.start()
thread.join()
"""
    (tmp_path / "mysite.py").write_text(code + SITE)

    site = warm(start)

    site.running(2)
    assert site.stop() == 0, site.log


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda signo: signo.name)
def test_a_template_that_is_lost_is_loaded_again_while_workers_serve(
    start: Callable[..., Running], how: signal.Signals
) -> None:
    site = warm(start)
    workers = set(site.running(2))
    lost = template(site)

    os.kill(lost, how)
    os.kill(min(workers), signal.SIGKILL)

    assert fetch(site.port())
    replaced(site, {min(workers)}, 2)
    assert template(site) != lost
    assert len(loads(site)) == 2
    assert site.stop() == 0, site.log


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1])
def test_signals_to_the_template_alone_change_nothing(
    start: Callable[..., Running], signo: signal.Signals
) -> None:
    site = warm(start)
    workers = set(site.running(2))
    before = template(site)

    os.kill(before, signo)
    os.kill(min(workers), signal.SIGKILL)
    replaced(site, {min(workers)}, 2)

    assert template(site) == before
    assert site.stop() == 0, site.log


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_all(
    start: Callable[..., Running], signo: signal.Signals
) -> None:
    site = warm(start)
    site.running(2)

    os.killpg(site.pid, signo)

    assert site.process.wait(30) == (0 if signo == signal.SIGTERM else 1), site.log
    wait_until(lambda: not session_members(site.pid), "the end of all")


def test_nothing_outlives_a_killed_parent(start: Callable[..., Running]) -> None:
    site = warm(start)
    site.running(2)

    site.process.kill()
    site.process.wait(30)

    wait_until(lambda: not session_members(site.pid), "the end of all")


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stop_while_the_template_loads_ends_all_at_once(
    start: Callable[..., Running], tmp_path: Path, signo: signal.Signals
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "mysite.py").write_text("open('begun', 'w'); open('fifo')\n" + SITE)
    site = warm(start)
    wait_until((tmp_path / "begun").exists, "an import that hangs")

    site.process.send_signal(signo)

    expected = {signal.SIGTERM: 0, signal.SIGINT: 1, signal.SIGKILL: -9}[signo]
    assert site.process.wait(30) == expected, site.log
    wait_until(lambda: not session_members(site.pid), "the end of all")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("1/0", "division by zero"),
        ("import sys; sys.exit(4)", "sys.exit(4)"),
        ("import os; os._exit(4)", "tried again"),
    ],
)
def test_an_application_that_cannot_be_loaded_fails_the_start(
    start: Callable[..., Running], tmp_path: Path, code: str, told: str
) -> None:
    (tmp_path / "mysite.py").write_text(code)
    site = warm(start)

    if "_exit" in code:  # it tells nobody why: as for workers, it is tried again with back-off
        wait_until(lambda: told in site.log, "the report")
        assert site.stop() == 0, site.log
        return
    assert site.process.wait(30) == 3, site.log
    assert site.log.count(told) >= 1
    assert "Traceback" not in site.log or "1/0" in code


def test_a_load_that_hangs_is_given_up_after_the_worker_timeout(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "mysite.py").write_text("import os; os.path.exists('go') or open('fifo')\n" + SITE)
    site = warm(start, "--timeout", "2")

    wait_until(lambda: "was not loaded within 2 s" in site.log, "the report")
    (tmp_path / "go").touch()

    site.running(2)
    assert site.stop() == 0, site.log


def test_logs_are_opened_again_for_workers_that_are_forked_later(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    log = tmp_path / "service.log"
    site = start(
        "serve", "mysite", "--warm", "-w", "1", "-b", "unix:" + str(tmp_path / "socket"),
        "--log-file", str(log),
    )  # fmt: skip
    (worker,) = site.running(1)
    log.rename(tmp_path / "old.log")

    site.process.send_signal(signal.SIGUSR1)
    wait_until(
        lambda: log.exists() and log.read_text().count("log files opened again") == 3,
        "a fresh log of parent, template and worker",
    )
    os.kill(worker, signal.SIGKILL)
    (later,) = replaced(site, {worker}, 1)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "socket"))
        client.sendall(b"GET /marked HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        client.makefile("rb").read()

    wait_until(lambda: "/marked" in log.read_text(), "its access log")
    assert site.stop() == 0
    assert f" {later} " in log.read_text()


def test_respawns_and_reloads_leak_neither_descriptors_nor_processes(
    start: Callable[..., Running],
) -> None:
    site = warm(start, workers=1)
    worker = site.running(1)[0]

    def hang_up() -> int:
        site.process.send_signal(signal.SIGHUP)
        return replaced(site, {worker}, 1).pop()

    def has_settled() -> bool:
        return len(session_members(site.pid)) == 3  # parent, template, worker

    worker = hang_up()
    wait_until(has_settled, "the end of the first template and worker")
    before = open_fds(site.pid)
    for _ in range(4):
        os.kill(worker, signal.SIGKILL)
        worker = replaced(site, {worker}, 1).pop()
        worker = hang_up()

    wait_until(has_settled, "the end of all others")
    wait_until(lambda: open_fds(site.pid) <= before, f"no more descriptors than {before}")
    assert site.stop() == 0, site.log
