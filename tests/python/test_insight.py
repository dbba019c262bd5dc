"""What ``osloxide status``, ``top`` and ``metrics`` say of HTTP requests beyond their number."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from _children import environment, run_command
from conftest import wait_until
from support.raw_http import Connection
from support.serving import OSLOXIDE, Running, fetch, starter

from osloxide.cli import snapshot, table

LARGE = 4_000_000
ASKING = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
HOLDING = ASKING.replace(" / ", " /hold ")

SITE = f"""
import os, time

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/raise":
        raise RuntimeError("on purpose")
    while path == "/hold" and not os.path.exists("release"):
        time.sleep(0.01)
    if environ["REQUEST_METHOD"] == "POST":
        environ["wsgi.input"].read()
    start_response("404 Not Found" if path == "/missing" else "200 OK", [])
    return [b"x" * {LARGE} if path == "/large" else b"hello"]
"""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "seen_site.py").write_text(SITE)
    with starter(tmp_path) as start:
        try:
            yield lambda *options: start(
                *("serve", "seen_site", "--bind", "127.0.0.1:0", "--no-access-log", *options)
            )
        finally:
            (tmp_path / "release").touch()


def only(site: Running) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def is_shown() -> bool:
        # It listens before it has a scoreboard.
        found[:] = site.workers()
        return len(found) == 1

    wait_until(is_shown, "one worker")
    return found[0]


def test_answers_are_counted_by_class_time_and_bytes(serve: Callable[..., Running]) -> None:
    site = serve()
    port = site.port()
    for path in ["/", "/", "/missing", "/raise"]:
        fetch(port, path)
    with Connection(("127.0.0.1", port)) as refused:
        refused.send("BROKEN\r\n\r\n")
        assert refused.answer().status == 400

    wait_until(lambda: sum(only(site)["figures"]["answers"].values()) == 5, "five answers")
    figures = only(site)["figures"]

    assert figures["answers"] == {"none": 0, "1xx": 0, "2xx": 2, "3xx": 0, "4xx": 2, "5xx": 1}
    assert figures["exceptions"] == 1
    assert sum(figures["times"].values()) == 4, "the refused one never came to the application"
    assert figures["sent_bytes"] > 4 * 100
    assert figures["seconds"] > 0
    assert only(site)["cpu_seconds"] > 0
    assert site.stop() == 0, site.log


def test_bytes_that_a_slow_client_has_not_taken_are_shown(serve: Callable[..., Running]) -> None:
    site = serve()
    with Connection(("127.0.0.1", site.port()), receive_buffer=4096) as slow:
        slow.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: only(site)["figures"]["unsent_bytes"] > 0, "unsent bytes")

        assert len(slow.answer().body) == LARGE
    wait_until(lambda: only(site)["figures"]["unsent_bytes"] == 0, "all of it taken")
    wait_until(lambda: only(site)["figures"]["sent_bytes"] >= LARGE, "all of it counted")
    assert site.stop() == 0, site.log


def test_uploads_that_get_no_thread_yet_are_shown(serve: Callable[..., Running]) -> None:
    site = serve("--threads", "2")  # half of them for clients that are slow
    head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
    address = ("127.0.0.1", site.port())
    with Connection(address) as first, Connection(address) as second:
        first.send(head + 70_000 * "b")
        wait_until(lambda: only(site)["in_flight"] == 1, "the first has a thread")
        second.send(head + 70_000 * "b")
        wait_until(lambda: only(site)["figures"]["held_uploads"] == 1, "the second is held")

        second.send(30_000 * "b")
        assert second.answer().status == 200
        wait_until(lambda: only(site)["figures"]["held_uploads"] == 0, "it is held no more")
        first.send(30_000 * "b")
        assert first.answer().status == 200
    assert site.stop() == 0, site.log


def test_requests_that_wait_for_a_thread_are_shown(serve: Callable[..., Running]) -> None:
    site = serve("--threads", "1")
    port = site.port()
    clients = [Connection(("127.0.0.1", port)) for _ in range(3)]
    for client in clients:
        client.send(HOLDING)

    wait_until(
        lambda: (only(site)["in_flight"], only(site)["figures"]["queued"]) == (1, 2),
        "one in flight, two that wait",
    )
    (site.cwd / "release").touch()
    for client in clients:
        assert client.answer().status == 200
        client.close()
    wait_until(lambda: only(site)["figures"]["queued"] == 0, "none that waits")
    assert site.stop() == 0, site.log


def is_stopped(pid: int) -> bool:
    """Whether each of its threads is: the signal reaches them one by one."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((it / "stat").read_text().rpartition(")")[2].split()[0] == "T" for it in tasks)


def waiting(site: Running) -> dict[str, int]:
    """Connections that are not accepted yet, by address."""
    return {it["address"]: it["waiting"] for it in site.launcher()["listening"]}


def test_connections_that_no_worker_accepts_are_shown_also_when_it_hangs(
    serve: Callable[..., Running], tmp_path: Path
) -> None:
    path = str(tmp_path / "a site.sock")
    site = serve("--bind", f"unix:{path}", "--master")
    port = site.port()
    (worker,) = site.running(1)
    tcp = f"127.0.0.1:{port}"
    assert waiting(site) == {tcp: 0, path: 0}

    os.kill(worker, signal.SIGSTOP)
    with ExitStack() as stack:
        stack.callback(os.kill, worker, signal.SIGCONT)
        wait_until(lambda: is_stopped(worker), "a worker that is stopped")
        places = [("127.0.0.1", port)] * 3 + [path] * 2
        clients = [stack.enter_context(Connection(place)) for place in places]
        for client in clients:
            client.send(ASKING)
        wait_until(lambda: waiting(site) == {tcp: 3, path: 2}, "five that wait")
        shown = run_command([*OSLOXIDE, "status", str(site.pid)], environ=environment()).stdout
        assert f"{tcp}: 3 connections not accepted yet" in shown
        metrics = [*OSLOXIDE, "metrics", "--once", str(site.pid)]
        text = run_command(metrics, environ=environment()).stdout
        found = re.findall(r'^osloxide_listen_queue\{address="([^"]*)",.*\} (\S+)$', text, re.M)
        assert dict(found) == {tcp: "3.0", path: "2.0"}

        os.kill(worker, signal.SIGCONT)
        for client in clients:
            assert client.answer().body == b"hello"
    wait_until(lambda: waiting(site) == {tcp: 0, path: 0}, "none that waits")
    assert site.stop() == 0, site.log


def test_the_statistics_of_uwsgi_have_the_queue_and_its_length(
    serve: Callable[..., Running], tmp_path: Path
) -> None:
    where = str(tmp_path / "stats.sock")
    site = serve("--threads", "1", "--backlog", "64", "--stats", f"unix:{where}")
    port = site.port()
    wait_until(lambda: "stats on" in site.log, "the socket of the statistics")

    def statistics() -> dict[str, Any]:
        with Connection(where) as client:
            return json.loads(client.rest())

    with ExitStack() as stack:
        clients = [stack.enter_context(Connection(("127.0.0.1", port))) for _ in range(20)]
        for client in clients:
            client.send(HOLDING)
        wait_until(lambda: statistics()["listen_queue"] > 0, "connections that wait")
        seen = statistics()
        (place,) = seen["sockets"]
        assert (place["name"], place["queue"]) == (f"127.0.0.1:{port}", seen["listen_queue"])
        assert place["max_queue"] == 64

        (site.cwd / "release").touch()
        for client in clients:
            assert client.answer().body == b"hello"
    wait_until(lambda: statistics()["listen_queue"] == 0, "none that waits")
    assert site.stop() == 0, site.log


def test_counters_of_a_slot_outlive_its_worker_and_its_end_is_told_in_words(
    serve: Callable[..., Running],
) -> None:
    site = serve("--master")
    port = site.port()
    (first,) = site.running(1)
    for _ in range(5):
        fetch(port, "/missing")
    wait_until(lambda: only(site)["figures"]["answers"]["4xx"] == 5, "five answers")

    os.kill(first, signal.SIGKILL)
    wait_until(lambda: site.running(1) != [first], "another worker")
    fetch(port, "/missing")

    wait_until(lambda: only(site)["figures"]["answers"]["4xx"] == 6, "all six")
    assert only(site)["last_end"] == "SIGKILL"
    result = run_command([*OSLOXIDE, "status", str(site.pid)], environ=environment())
    assert "slot 0: the worker before ended with SIGKILL" in result.stdout
    assert site.stop() == 0, site.log


def test_metrics_have_a_histogram_and_classes(serve: Callable[..., Running]) -> None:
    pytest.importorskip("prometheus_client")
    site = serve()
    port = site.port()
    for _ in range(3):
        fetch(port)
    wait_until(lambda: only(site)["figures"]["answers"]["2xx"] == 3, "three answers")

    result = run_command([*OSLOXIDE, "metrics", "--once", str(site.pid)], environ=environment())

    assert result.returncode == 0, result.stderr
    samples = [line for line in result.stdout.splitlines() if not line.startswith("#")]
    (answered,) = [s for s in samples if 'class="2xx"' in s]
    assert answered.endswith(" 3.0")
    assert any(s.startswith("osloxide_worker_request_seconds_count") for s in samples)
    (infinite,) = [s for s in samples if 'le="+Inf"' in s]
    assert infinite.endswith(" 3.0")
    assert any(s.startswith("osloxide_worker_unsent_bytes") for s in samples)
    assert site.stop() == 0, site.log


def test_an_application_is_called_by_its_name_everywhere(serve: Callable[..., Running]) -> None:
    name = "nova-test-api"
    site = serve("--name", name, "-w", "2", "--title-prefix", "cell1 ")
    victim, survivor = site.running(2)

    os.kill(victim, signal.SIGRTMIN + 3)

    wait_until(lambda: survivor in (now := site.running(2)) and victim not in now, "a new worker")
    result = run_command([*OSLOXIDE, "status", "--json", name], environ=environment())
    (launcher,) = json.loads(result.stdout)
    assert (launcher["pid"], launcher["name"]) == (site.pid, name)
    assert launcher["command"].startswith(sys.executable), "what a title says is said once"
    assert [row["service"] for row in launcher["workers"]] == [name, name]
    assert sorted(str(row["last_end"]) for row in launcher["workers"]) == ["None", "SIGRTMIN+3"]
    assert re.search(
        rf"Worker \d \(pid {victim}\) of {name} ended .*killed by SIGRTMIN\+3", site.log
    )
    assert "SiteService" not in site.log

    # A parent that is killed by a signal that nobody handles leaves no worker.
    workers = site.running(2)
    os.kill(site.pid, signal.SIGPWR)
    assert site.process.wait(45) == -signal.SIGPWR
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "no worker left")


def test_the_live_table_fits_into_80_characters() -> None:
    worker = snapshot.Worker(
        slot=127, group=0, service="nova-api", pid=4194303, state="starting", generation=1,
        uptime=99999.0, connections=10000, in_flight=1000, served=10**9, slot_served=10**9,
        oldest=99999.0, threads=1000, respawns=99, rss_bytes=999 << 20, last_exit=9,
        cpu_seconds=1e6,
        figures=snapshot.Figures(answers={"5xx": 10**8}, queued=1999),
    )  # fmt: skip
    launcher = snapshot.Launcher(
        pid=1, name="x", command="", read_at=1.0, uptime=1.0, is_alive=True, rss_bytes=1,
        workers=[worker],
    )  # fmt: skip
    rates = table.Rates(1e4, {(127, 4194303): 12345.6}, {(127, 4194303): 7.99})

    columns = table.narrow(rates)
    # One blank between two columns, where plain() has two.
    assert table.width(launcher, columns) - (len(columns) - 1) <= 80


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "status 0"),
        (3 << 8, "status 3"),
        (9, "SIGKILL"),
        (6 | 0x80, "SIGABRT"),
        (signal.SIGIO, "SIGIO"),
        (signal.SIGSTKFLT, "SIGSTKFLT"),
        (signal.SIGRTMIN, "SIGRTMIN"),
        (signal.SIGRTMIN + 6, "SIGRTMIN+6"),
        (signal.SIGRTMAX, "SIGRTMAX"),
        (32, "signal 32"),
    ],
)
def test_wait_statuses_are_told_in_words(status: int, words: str) -> None:
    assert snapshot.ending(status) == words
