"""Many servers on one transport: what each costs the process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from services.conftest import Figure
from services.infra import Broker
from services.rpc import FLAGS
from services.subject import APPS, clean_environment

SERVERS = 40

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def many(broker: Broker) -> dict[str, Any]:
    """What apps/rpc_many.py has counted."""
    done = subprocess.run(
        [sys.executable, str(APPS / "rpc_many.py"), broker.url, str(SERVERS), *FLAGS],
        capture_output=True, text=True, timeout=240, check=False, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def test_a_server_costs_one_connection(many: dict[str, Any], figure: Figure) -> None:
    grown = many["called"]["sockets"] - many["before"]["sockets"]

    figure(f"{grown / (SERVERS - 1):.2f} connections for a further server")
    assert grown <= SERVERS


def test_the_first_call_to_a_server_opens_no_connection(many: dict[str, Any]) -> None:
    assert many["called"]["sockets"] <= many["started"]["sockets"] + 1


def test_a_server_that_stops_leaves_no_descriptor(many: dict[str, Any]) -> None:
    assert many["stopped"]["descriptors"] <= many["before"]["descriptors"] + 1


def test_the_stop_of_other_servers_leaves_the_replies_of_one_alone(many: dict[str, Any]) -> None:
    assert many["last"] == list(range(10))


def test_closing_the_transport_leaves_no_connection(many: dict[str, Any]) -> None:
    assert many["ended"]["sockets"] == 0
