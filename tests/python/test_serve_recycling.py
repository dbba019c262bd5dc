"""``osloxide serve`` replaces workers that are well, and loses no request by it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from _children import environment, run_command
from conftest import wait_until
from support.serving import OSLOXIDE, Running, fetch, starter

SITE = """
import os

held = []

def application(environ, start_response):
    if environ["PATH_INFO"] == "/grow":
        held.append(os.urandom(8 << 20))
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]
"""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "recycled_site.py").write_text(SITE)
    with starter(tmp_path) as start:
        yield lambda *options: start(
            "serve", "recycled_site", "--bind", "127.0.0.1:0", "--no-access-log", *options
        )


@contextmanager
def load(port: int, *, clients: int, keep_alive: bool) -> Iterator[tuple[list[str], list[str]]]:
    """Requests without a pause; yields the answers (pids) and what failed."""
    answers: list[str] = []
    failures: list[str] = []
    done = threading.Event()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while not done.is_set():
            headers = {} if keep_alive else {"Connection": "close"}
            try:
                connection.request("GET", "/", headers=headers)
                answer = connection.getresponse()
                body = answer.read().decode()
                (answers if answer.status == 200 else failures).append(body)
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
                connection.close()
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers, failures
    finally:
        done.set()
        for thread in threads:
            thread.join(60)


@pytest.mark.parametrize("keep_alive", [False, True], ids=["close", "keep-alive"])
@pytest.mark.parametrize("workers", [1, 3])
def test_no_request_is_lost_while_workers_are_replaced_after_their_requests(
    serve: Callable[..., Running], workers: int, keep_alive: bool
) -> None:
    site = serve("--workers", str(workers), "--max-requests", "100", "--max-requests-jitter", "50")
    port = site.port()
    site.running(workers)

    with load(port, clients=4, keep_alive=keep_alive) as (answers, failures):
        wait_until(lambda: len(set(answers)) >= workers + 4, "replaced workers")

    assert failures == []
    assert "it has served" in site.log
    assert site.stop() == 0, site.log


def test_the_successor_of_the_only_worker_takes_over_first(serve: Callable[..., Running]) -> None:
    site = serve("--max-requests", "5")
    port = site.port()
    (first,) = site.running(1)
    # Held by the first worker: it must not be told to leave before there is another one.
    for _ in range(5):
        assert fetch(port) == [str(first)]

    wait_until(lambda: fetch(port) != [str(first)], "an answer of the successor")

    wait_until(lambda: [w["pid"] for w in site.workers()] != [first], "the successor alone")
    assert "exited with status 0" in site.log or site.running(1) != [first]
    assert site.stop() == 0, site.log


def test_workers_whose_time_is_up_together_are_replaced_one_after_the_other(
    serve: Callable[..., Running],
) -> None:
    site = serve("--workers", "3", "--max-worker-lifetime", "3")
    before = set(site.running(3))
    seen: list[set[object]] = []

    def is_over() -> bool:
        running = {w["pid"] for w in site.workers() if w["state"] == "running"}
        seen.append(running)
        return len(running) >= 3 and not running & before

    wait_until(is_over, f"three others\n{site.log}")

    assert min(len(running) for running in seen) >= 3, seen
    assert max(len(running) for running in seen) <= 4, seen
    assert site.log.count("it has run for 3 s") >= 3
    assert site.stop() == 0, site.log


@pytest.mark.parametrize("kind", ["", "uss:", "pss:"])
def test_a_worker_that_grows_is_replaced(serve: Callable[..., Running], kind: str) -> None:
    site = serve("--workers", "2", "--max-worker-memory", f"{kind}150M")
    port = site.port()
    before = set(site.running(2))

    def is_replaced() -> bool:
        fetch(port, "/grow")
        return "MiB of memory" in site.log

    wait_until(is_replaced, "a worker that is too large")
    wait_until(lambda: len(set(site.running(2)) & before) < 2, "another worker")
    assert site.stop() == 0, site.log


def test_a_worker_whose_successor_cannot_start_serves_on(
    serve: Callable[..., Running], tmp_path: Path
) -> None:
    site = serve("--max-requests", "3")
    port = site.port()
    (first,) = site.running(1)
    (tmp_path / "recycled_site.py").write_text("raise RuntimeError('broken by a deployment')")

    for _ in range(10):
        assert fetch(port) == [str(first)]
    wait_until(lambda: site.log.count("broken by a deployment") >= 3, "failed successors")
    assert fetch(port) == [str(first)]

    (tmp_path / "recycled_site.py").write_text(SITE)
    wait_until(lambda: fetch(port) != [str(first)], "a successor")
    assert site.stop() == 0, site.log


def test_a_stop_during_a_replacement_ends_everything(serve: Callable[..., Running]) -> None:
    site = serve("--workers", "2", "--max-requests", "1")
    port = site.port()
    site.running(2)
    for _ in range(10):
        fetch(port)

    assert site.stop() == 0, site.log


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-requests-jitter", "5"], "--max-requests-jitter 5 needs --max-requests"),
        (["--max-worker-lifetime-jitter", "5"], "needs --max-worker-lifetime"),
        (["--max-worker-memory", "12X"], "is no amount of memory"),
        (["--max-worker-memory", "vsz:12M"], "is no amount of memory"),
        (["--max-worker-lifetime", "-1"], "no whole number of at least 0"),
    ],
)
def test_limits_that_mean_nothing_are_refused(
    tmp_path: Path, options: list[str], said: str
) -> None:
    (tmp_path / "recycled_site.py").write_text(SITE)

    result = run_command(
        [*OSLOXIDE, "serve", "recycled_site", "--bind", "127.0.0.1:0", *options],
        environ=environment(PYTHONPATH=str(tmp_path)),
    )

    assert result.returncode not in (0, None)
    assert said in result.stderr
