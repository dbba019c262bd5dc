"""Requests are counted by name, and every command of an operator shows the counts."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from osloxide.cli import snapshot, table

OSLOXIDE = [sys.executable, "-m", "osloxide"]

PROCESS = """
import sys, threading
from osloxide import _native
from osloxide.messaging import executor as rpc

board = _native.Scoreboard("named")
board.claim(0, 0)
executor = rpc.Executor(max_workers=1)
gate, begun = threading.Event(), threading.Event()

def work():
    begun.set()
    gate.wait()

def fail():
    raise ValueError("on purpose")

for job in (lambda: True, lambda: False, fail):
    executor.submit_as("build", job).exception()
executor.submit(lambda: False).result()
executor.submit_as("wait", work)
begun.wait()
for _ in range(3):
    executor.submit_as("wait", work)
executor.submit_as("\\x1b]0;owned\\x07", work)
print("ready", flush=True)
sys.stdin.read()
gate.set()
executor.shutdown()
"""


@pytest.fixture
def named() -> Iterator[int]:
    """The pid of a process in which one request runs and four wait."""
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.stdin.close()
        assert process.wait(20) == 0


def run(*arguments: str) -> str:
    done = subprocess.run(
        [*OSLOXIDE, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_status_tells_what_is_queued_running_done_and_failed(named: int) -> None:
    [launcher] = json.loads(run("status", str(named), "--json"))

    [worker] = launcher["workers"]
    methods = {method["name"]: method for method in worker["methods"]}
    build, wait = methods["build"], methods["wait"]
    assert (build["done"], build["failed"], build["running"], build["queued"]) == (3, 2, 0, 0)
    assert build["oldest"] is None
    assert (wait["done"], wait["failed"], wait["running"], wait["queued"]) == (0, 0, 1, 3)
    assert wait["oldest"] >= 0
    assert worker["served"] == 4


def test_tables_show_the_busiest_name_first(named: int) -> None:
    for command in (("status",), ("top", "--once", "--interval", "0.1")):
        lines = run(*command, str(named)).splitlines()
        headings = next(i for i, line in enumerate(lines) if line.startswith("METHOD"))
        assert lines[headings].split() == [
            "METHOD", "QUEUED", "RUNNING", "OLDEST", "DONE", "FAILED",
        ]  # fmt: skip
        words = [line.split() for line in lines[headings + 1 :]]
        assert words[0][:3] == ["wait", "3", "1"]
        assert words[2] == ["build", "0", "0", "-", "3", "2"]
        assert not any("\x1b" in line for line in lines)


@pytest.mark.skipif(
    importlib.util.find_spec("prometheus_client") is None, reason="`make setup` installs it"
)
def test_metrics_have_a_series_for_each_name(named: int) -> None:
    text = run("metrics", str(named), "--once")

    labels = f'{{method="build",service="named",supervisor="{named}"}}'
    assert f"osloxide_method_requests_total{labels} 3.0" in text
    assert f"osloxide_method_failures_total{labels} 2.0" in text
    assert f"osloxide_method_running{labels.replace('build', 'wait')} 1.0" in text
    assert f"osloxide_method_queued{labels.replace('build', 'wait')} 3.0" in text


def worker(slot: int, *methods: snapshot.Method) -> snapshot.Worker:
    return snapshot.Worker(
        slot=slot, group=0, pid=1, state="running", generation=0, uptime=1.0, connections=0,
        in_flight=0, served=0, slot_served=0, oldest=None, threads=0, respawns=0, rss_bytes=None,
        last_exit=None, methods=methods, service="",
    )  # fmt: skip


def test_names_are_summed_over_slots_and_counted_once_for_two_workers_of_one() -> None:
    launcher = snapshot.Launcher(
        1, "it", "", 10, 10, True, None,
        [
            worker(0, snapshot.Method("build", 1, 2, 100, 5, 3.0)),
            worker(0, snapshot.Method("build", 0, 1, 100, 5, 9.0)),
            worker(1, snapshot.Method("build", 1, 0, 7, 1, None)),
        ],
    )  # fmt: skip

    assert launcher.methods() == [snapshot.Method("build", 2, 3, 107, 6, 9.0)]
    assert table.methods(launcher)[1].split() == ["build", "2", "3", "9.0s", "107", "6"]


def test_requests_without_names_need_no_table() -> None:
    launcher = snapshot.Launcher(1, "it", "", 10, 10, True, None, [worker(0)])
    assert table.methods(launcher) == []
