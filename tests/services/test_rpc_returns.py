"""Requests that a stop gives back to a quorum queue, which drops what was returned too often."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from services.infra import Broker, MissingTreeError, retried
from services.subject import APPS, IS_STOCK, clean_environment

pytestmark = [
    pytest.mark.timeout(1500),  # the first use of a release installs it
    pytest.mark.skipif(IS_STOCK, reason="stock gives nothing back"),
]


def broker_of(release: str) -> Iterator[Broker]:
    try:
        broker = retried(partial(Broker, release))
    except MissingTreeError as error:
        pytest.skip(str(error))
    yield broker
    broker.stop()


@pytest.fixture
def newest() -> Iterator[Broker]:
    """RabbitMQ 4.3: ``basic.nack`` counts no more."""
    yield from broker_of("sid")


@pytest.fixture
def counting() -> Iterator[Broker]:
    """RabbitMQ 4.0: each return counts, and the twentieth is the last."""
    yield from broker_of("trixie")


def stops(broker: Broker, count: int) -> tuple[list[int], str]:
    """What is left of four requests after *count* stops of a server that had fetched them, and
    what it logged."""
    done = subprocess.run(
        [sys.executable, str(APPS / "rpc_returns.py"), broker.url, str(count)],
        capture_output=True, text=True, timeout=300, check=False, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    left: list[int] = json.loads(done.stdout.splitlines()[-1])["left"]
    return left, done.stderr


def test_stops_of_a_server_drop_no_request_however_many_there_are(newest: Broker) -> None:
    left, _ = stops(newest, 25)

    assert left == [0, 1, 2, 3]


def test_requests_near_the_limit_of_returns_are_logged_and_still_there(counting: Broker) -> None:
    left, log = stops(counting, 12)

    assert left == [0, 1, 2, 3]
    assert "was returned to its queue 10 times, and is dropped at 20" in log
