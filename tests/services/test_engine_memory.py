"""The memory of a real orchestration engine over a real broker, beside the same as it is released.

heat-engine 24 with two workers, over RabbitMQ and MariaDB, once below ``osloxide run`` and once on
the eventlet that it brings, one after the other. With OSLOXIDE_LONG=1; releases.toml has its
configuration.
"""

from __future__ import annotations

import shlex
import signal
import tomllib
from pathlib import Path

import pytest
from procfs import proportional_bytes
from waiting import wait_until

from services.apis import Api, filled
from services.conftest import Figure, Starter
from services.infra import Broker, Database
from services.processes import free_port, held
from services.subject import IS_LONG, IS_STOCK

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not IS_LONG, reason="OSLOXIDE_LONG=1 runs it"),
    pytest.mark.skipif(IS_STOCK, reason="it runs both subjects"),
]

ROW = tomllib.loads((Path(__file__).parent / "releases.toml").read_text())["heat-24"]
PROGRAM = "heat-engine --config-file {directory}/heat.conf"
QUEUE = "engine"
_PATIENCE = 300.0


def consumers(broker: Broker) -> int:
    """How many consumers the engine's queue has."""
    rows = (
        line.split() for line in broker.control("list_queues", "name", "consumers").splitlines()
    )
    return sum(int(row[1]) for row in rows if row[:1] == [QUEUE] and row[1:])


def test_a_fresh_orchestration_engine_takes_no_more_memory_than_as_released(
    broker: Broker, database: Database, tmp_path: Path, figure: Figure
) -> None:
    options = {name: value for name, value in ROW.items() if name not in ("programs", "long")}
    api = Api("heat-24", **options)
    database.sql("DROP DATABASE IF EXISTS heat_memory; CREATE DATABASE heat_memory")
    url = database.url("heat_memory")
    variables = api.prepare(tmp_path, port=str(free_port()), broker=broker.url, database=url)
    environment = api.installed()
    words = shlex.split(filled(PROGRAM, {"directory": str(tmp_path)}))
    released = [str(environment.bin / words[0]), *words[1:]]
    commands = {
        "osloxide": [environment.python, "-m", "osloxide", "run", *released],
        "as released": released,
    }
    starter, found = Starter(), {}
    try:
        for name, command in commands.items():
            service = starter(command, tmp_path / f"{name}.log", variables)
            service.wait_workers(2, _PATIENCE)
            wait_until(lambda: consumers(broker) >= 2, f"{name} listens", _PATIENCE, pause=1)
            held(name, lambda s=service: s.assert_running() is None, 5, every=1)  # type: ignore[misc]
            found[name] = sum(map(proportional_bytes, service.family())) / 2**20
            service.signal(signal.SIGTERM)
            service.wait_exit(_PATIENCE)
            service.wait_gone()
            wait_until(lambda: consumers(broker) == 0, "nobody listens", _PATIENCE, pause=1)
    finally:
        starter.end()

    figure(", ".join(f"{name}: {mebibytes:.1f} MiB PSS" for name, mebibytes in found.items()))
    assert found["osloxide"] <= found["as released"]
