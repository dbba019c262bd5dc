"""``osloxide serve --request-timeout``: a request is given up, its worker lives on."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _children import environment, run_command
from conftest import wait_until
from support.raw_http import Connection, Incomplete
from support.serving import OSLOXIDE, Running, fetch, starter
from waiting import whole_lines

SITE = """
import os, threading, time

def wait():
    # Python code all the time, so that it can be interrupted.
    while not os.path.exists("release"):
        time.sleep(0.01)

def wait_in_c():
    lock = threading.Lock()
    lock.acquire()
    while not os.path.exists("release"):
        try:
            lock.acquire(timeout=600)
        finally:
            pass

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/read":
        body = environ["wsgi.input"].read()
        start_response("200 OK", [])
        return [str(len(body)).encode()]
    if path == "/wait":
        wait()
    elif path == "/stubborn":
        while not os.path.exists("release"):
            try:
                wait()
            except BaseException:
                open("interrupted", "w").close()
    elif path == "/c":
        open("in_c", "w").close()
        wait_in_c()
    elif path == "/stream":
        return stream(start_response)
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]

def stream(start_response):
    start_response("200 OK", [("Content-Length", "10")])
    yield b"12345"
    wait()
    yield b"67890"
"""


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "slow_site.py").write_text(SITE)
    with starter(tmp_path) as start:

        def begin(*options: str) -> Running:
            return start("serve", "slow_site", "--bind", "127.0.0.1:0", "--request-timeout", "1",
                         "--access-log", "access.log", "--access-logformat",
                         "%(request_line)s %(status_code)s", *options)  # fmt: skip

        try:
            yield begin
        finally:
            (tmp_path / "release").touch()


def lines(site: Running) -> list[str]:
    return whole_lines(site.cwd / "access.log")


def test_the_client_is_answered_504_and_the_thread_is_named_and_interrupted(
    serve: Callable[..., Running],
) -> None:
    site = serve()
    port = site.port()
    (pid,) = site.running(1)
    with Connection(("127.0.0.1", port)) as client:
        answer = client.request("GET", "/wait?a=1")

        assert answer.status == 504
        assert answer.one("Connection") == "close"
        assert client.rest() == b""
    wait_until(lambda: "has come back" in site.log, "the thread")
    assert fetch(port) == [str(pid)], "the worker lives on"

    assert re.search(r"GET /wait\?a=1 HTTP/1\.1 has run for \d+\.\d s", site.log)
    assert "in wait\n" in site.log, "the traceback"
    assert "osloxide-" in site.log
    assert "application failed" not in site.log
    assert site.stop() == 0, site.log
    # Lines are written in batches, and all of them at the end.
    assert lines(site).count("GET /wait?a=1 HTTP/1.1 504") == 1
    assert len(lines(site)) == 2


def test_the_logger_has_its_line_too(tmp_path: Path) -> None:
    (tmp_path / "slow_site.py").write_text(SITE)
    with starter(tmp_path) as start:
        site = start("serve", "slow_site", "--bind", "127.0.0.1:0", "--request-timeout", "1")
        with Connection(("127.0.0.1", site.port())) as client:
            assert client.request("GET", "/wait").status == 504

        wait_until(lambda: '"GET /wait HTTP/1.1" status: 504' in site.log, site.log)
        assert site.stop() == 0, site.log
        assert site.log.count('"GET /wait HTTP/1.1" status') == 1


def test_an_answer_that_has_begun_is_cut_off(serve: Callable[..., Running]) -> None:
    site = serve()
    port = site.port()
    with Connection(("127.0.0.1", port)) as client, pytest.raises((Incomplete, ConnectionError)):
        client.request("GET", "/stream")

    wait_until(lambda: "has come back" in site.log, "the thread")
    assert site.stop() == 0, site.log
    assert lines(site) == ["GET /stream HTTP/1.1 200 (cut off)"]


@pytest.mark.parametrize("path", ["/stubborn", "/c"])
def test_a_thread_that_does_not_come_back_is_replaced_in_the_count(
    serve: Callable[..., Running], path: str
) -> None:
    site = serve("--threads", "1", "--max-stuck-threads", "9")
    port = site.port()
    (pid,) = site.running(1)

    for _ in range(3):
        with Connection(("127.0.0.1", port)) as client:
            assert client.request("GET", path).status == 504
        assert fetch(port) == [str(pid)]

    assert site.running(1) == [pid]
    assert site.stop() == 0, site.log
    assert "SIGKILL" not in site.log


def test_what_comes_late_is_discarded_and_the_thread_serves_again(
    serve: Callable[..., Running],
) -> None:
    site = serve("--threads", "2", "--max-stuck-threads", "9")
    port = site.port()
    with Connection(("127.0.0.1", port)) as client:
        assert client.request("GET", "/stubborn").status == 504
        wait_until((site.cwd / "interrupted").exists, "the interrupt")
        (site.cwd / "release").touch()
        assert client.rest() == b""

    wait_until(lambda: "has come back" in site.log, "the thread")
    done = [fetch(port) for _ in range(50)]
    assert len({tuple(pids) for pids in done}) == 1
    assert site.stop() == 0, site.log
    assert lines(site)[0] == "GET /stubborn HTTP/1.1 504"
    assert lines(site)[1:] == ["GET / HTTP/1.1 200"] * 50


def test_a_worker_with_too_many_stuck_threads_is_replaced_without_a_lost_request(
    serve: Callable[..., Running],
) -> None:
    site = serve("--threads", "8", "--max-stuck-threads", "2")
    port = site.port()
    (first,) = site.running(1)
    stop = threading.Event()
    failures: list[object] = []

    def load() -> None:
        while not stop.is_set():
            try:
                fetch(port)
            except OSError as error:
                failures.append(error)

    clients = [threading.Thread(target=load) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        for _ in range(2):
            with Connection(("127.0.0.1", port)) as connection:
                assert connection.request("GET", "/stubborn").status == 504
        wait_until(lambda: fetch(port) != [str(first)], "the successor")
        wait_until(lambda: [w["pid"] for w in site.workers()] != [first], "the end of the first")
        wait_until(lambda: f"Child {first} exited with status 0" in site.log, site.log)
    finally:
        stop.set()
        for client in clients:
            client.join(60)

    assert failures == []
    assert "2 of its threads are stuck" in site.log
    assert site.stop() == 0, site.log


def test_the_time_that_a_slow_client_takes_does_not_count(serve: Callable[..., Running]) -> None:
    site = serve("--threads", "4")
    port = site.port()
    with Connection(("127.0.0.1", port)) as slow:
        slow.send("POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n")
        slow.send(b"x" * 100_000)
        # Longer than the timeout: others are given up meanwhile, one after the other.
        for _ in range(2):
            with Connection(("127.0.0.1", port)) as other:
                assert other.request("GET", "/wait").status == 504
        slow.send(b"x" * 200_000)

        assert slow.answer().body == b"300000"
    assert site.stop() == 0, site.log


def test_a_client_that_has_left_costs_nothing_more(serve: Callable[..., Running]) -> None:
    site = serve()
    port = site.port()
    with Connection(("127.0.0.1", port)) as client:
        client.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")

    wait_until(lambda: "has come back" in site.log, "the thread")
    assert fetch(port)
    assert site.stop() == 0, site.log


def test_a_stop_while_a_thread_is_stuck_does_not_wait_for_it(
    serve: Callable[..., Running],
) -> None:
    site = serve("--graceful-timeout", "60", "--max-stuck-threads", "9")
    port = site.port()
    with Connection(("127.0.0.1", port)) as client:
        assert client.request("GET", "/c").status == 504

    assert site.stop() == 0, site.log  # within 30 s, half of the graceful timeout
    assert "still running" not in site.log


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-stuck-threads", "5"], "--max-stuck-threads 5 needs --request-timeout"),
        (["--request-timeout", "30", "--timeout", "30"], "give --timeout a larger number"),
        (["--request-timeout", "x"], "no whole number"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: list[str], said: str) -> None:
    (tmp_path / "slow_site.py").write_text(SITE)

    result = run_command(
        [*OSLOXIDE, "serve", "slow_site", "--bind", "127.0.0.1:0", *options],
        environ=environment(PYTHONPATH=str(tmp_path)),
    )

    assert result.returncode not in (0, None)
    assert said in result.stderr
