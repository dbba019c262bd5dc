"""Tracebacks of slow requests: on demand, of those that are slow, and of nothing else."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.raw_http import DEADLINE, connect, serving
from waiting import until

from osloxide.server import slow_requests


@contextmanager
def a_request_in_flight(path: str = "/stuck%0aforged") -> Iterator[None]:
    """One request that waits in a function of its own until the end of the block."""
    inside, release = threading.Event(), threading.Event()

    def waits_for_the_database() -> None:
        inside.set()
        release.wait(DEADLINE)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        waits_for_the_database()
        start_response("200 OK", [])
        return [b"done"]

    with serving(app) as server:
        connection = connect(server)
        connection.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
        assert inside.wait(DEADLINE)
        try:
            yield
        finally:
            release.set()
            assert connection.answer().body == b"done"
            connection.close()
    assert until(lambda: slow_requests.tracebacks() == [])


def test_a_request_in_flight_shows_where_it_is() -> None:
    with a_request_in_flight():
        (found,) = slow_requests.tracebacks()

    first, *stack = found.splitlines()
    assert first.startswith("GET /stuck\\nforged has run for ")
    assert " on osloxide-" in first
    assert any("in waits_for_the_database" in line for line in stack)


def test_younger_requests_are_left_out() -> None:
    with a_request_in_flight():
        assert until(lambda: len(slow_requests.tracebacks(older_than=0.05)) == 1)
        assert slow_requests.tracebacks(older_than=3600) == []


def test_the_signal_logs_what_is_slow(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(slow_requests.SIGNAL)
    monkeypatch.setenv(slow_requests.VARIABLE, "0")
    try:
        with a_request_in_flight(), caplog.at_level(logging.WARNING, "osloxide.wsgi"):
            signal.raise_signal(slow_requests.SIGNAL)
            assert until(lambda: "in waits_for_the_database" in caplog.text)
    finally:
        signal.signal(slow_requests.SIGNAL, before)


def test_a_handler_of_the_application_stays() -> None:
    before = signal.signal(slow_requests.SIGNAL, signal.SIG_IGN)
    try:
        slow_requests.install()
        assert signal.getsignal(slow_requests.SIGNAL) is signal.SIG_IGN
    finally:
        signal.signal(slow_requests.SIGNAL, before)


def test_a_threshold_that_is_no_number_counts_as_the_default(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(slow_requests.VARIABLE, "soon")

    assert slow_requests.threshold() == slow_requests.DEFAULT_SECONDS
    assert "OSLOXIDE_SLOW_REQUEST='soon'" in caplog.text
