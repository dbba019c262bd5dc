"""Streams for fanouts (``rabbit_stream_fanout``) beside queues that are none."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from services.infra import Broker
from services.subject import APPS, IS_NATIVE, IS_STOCK, clean_environment

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(IS_STOCK, reason="stock reads everything by kombu"),
    pytest.mark.skipif(IS_NATIVE, reason="looks into the connection of kombu"),
]


@pytest.fixture(scope="module")
def streamed(broker: Broker) -> dict[str, Any]:
    """What apps/rpc_streams.py has counted."""
    done = subprocess.run(
        [sys.executable, str(APPS / "rpc_streams.py"), broker.url],
        capture_output=True, text=True, timeout=150, check=False, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def test_calls_are_read_natively_beside_a_stream(streamed: dict[str, Any]) -> None:
    assert streamed["answered"] == 60
    # What arrives with or right after a connection may be kombu's.
    assert streamed["read"]["natively"] >= 50


def test_a_stream_runs_each_fanout_once_also_after_a_reconnection(
    streamed: dict[str, Any],
) -> None:
    # Fanouts that wait together run on threads of their own, in no order.
    assert sorted(streamed["noted"]) == list(range(10))
