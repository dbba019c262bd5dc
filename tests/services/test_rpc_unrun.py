"""Requests that a server has fetched and will not run: given back to their queue, or named."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from services.infra import Broker
from services.rpc import client_environment
from services.subject import APPS, IS_NATIVE, IS_STOCK

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(IS_STOCK, reason="stock gives nothing back"),
]

SENT = 4


@pytest.fixture(params=["native"] if IS_NATIVE else ["kombu", "native"])
def is_native(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "native")


def run(
    broker: Broker, how: str, *, is_native: bool
) -> tuple[subprocess.CompletedProcess[str], int]:
    """apps/rpc_unrun.py, and how many requests are in the queue after its end; that is deleted."""
    done = subprocess.run(
        [sys.executable, str(APPS / "rpc_unrun.py"), broker.url, how],
        capture_output=True, text=True, timeout=240, check=False,
        env=client_environment(is_native=is_native),
    )  # fmt: skip
    listed = broker.control("list_queues", "name", "messages").splitlines()
    left = [int(line.split()[1]) for line in listed if line.split()[:1] == ["unrun"]]
    broker.control("delete_queue", "unrun")
    return done, sum(left)


def end_of(broker: Broker, how: str, *, is_native: bool) -> tuple[dict[str, Any], int]:
    """What apps/rpc_unrun.py tells, and how many requests are in the queue then."""
    done, left = run(broker, how, is_native=is_native)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told, left


def lost(told: dict[str, Any]) -> list[str]:
    return [line for line in told["warnings"] if "are lost" in line]


@pytest.mark.parametrize(("how", "begun"), [("cancelled", [0]), ("refused", [])])
def test_requests_that_no_thread_runs_go_back_to_their_queue(
    broker: Broker, how: str, begun: list[int], is_native: bool
) -> None:
    told, left = end_of(broker, how, is_native=is_native)

    assert told["begun"] == begun
    assert left == SENT
    assert lost(told) == []


def test_requests_that_nothing_delivers_again_are_named_in_one_warning(
    broker: Broker, is_native: bool
) -> None:
    told, left = end_of(broker, "acknowledged", is_native=is_native)

    assert (told["begun"], left) == ([0], 0)
    (line,) = lost(told)
    assert line.startswith(f"{SENT} requests are lost")


@pytest.mark.parametrize("how", ["interrupted", "overdue"])
def test_a_process_that_is_cut_off_names_requests_that_nothing_delivers_again(
    broker: Broker, how: str, is_native: bool
) -> None:
    done, left = run(broker, how, is_native=is_native)

    lines = [line for line in done.stderr.splitlines() if "are lost" in line]
    assert done.returncode == 1, done.stderr
    assert left == 0
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"{SENT} requests are lost")
