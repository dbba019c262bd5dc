"""Real cinder-api, everything at its defaults: osloxide beside eventlet.

The same program, configuration and database for both; ``GET /v3/PROJECT/volumes/detail`` returns
twenty volumes. Twice: one worker on SQLite, with the demo's files, and two workers on MariaDB, with
those of the service tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from services.cinder import DATABASE, LOCK, Cinder, Environment
from services.infra import Database, MissingProgramError, retried

import block_storage
from measure import machine
from measure.cinder import FLAVOURS, HEADERS, PATH, command_of
from measure.peers import ROOT, Serving
from measure.wsgi import Round, Workload, in_turn

VOLUMES = 20
#: What the demo sets for its own needs; the bench wants oslo.db's defaults.
NOT_DEFAULT = ("max_pool_size", "max_overflow", "sqlite_synchronous")
SAYS = f"real cinder-api, `volumes/detail` with {VOLUMES} volumes, 16 connections, all defaults"
ON_SQLITE = Workload(
    "volumes",
    f"{SAYS}; SQLite, one worker",
    path=PATH,
    connections=16,
    headers=HEADERS,
)
ON_MARIADB = dataclasses.replace(
    ON_SQLITE, name="two-volumes", says=f"{SAYS}; MariaDB, two workers on two cores", workers=2
)


def statements() -> str:
    """SQL that puts VOLUMES volumes into an empty schema of cinder, for either database."""
    rows = [
        "INSERT INTO volumes (id, project_id, user_id, status, attach_status, size, "  # noqa: S608
        "display_name, volume_type_id, availability_zone, host, created_at, deleted, "
        "use_quota, bootable, multiattach) "
        f"SELECT '{uuid.UUID(int=number + 1)}', '{block_storage.PROJECT}', 'admin', 'available', "
        f"'detached', 1, 'volume-{number}', id, 'nova', 'demo@fake#fake', "
        "'2026-01-01 00:00:00', 0, 1, 0, 0 FROM volume_types "
        "WHERE name = '__DEFAULT__' AND NOT deleted;"
        for number in range(VOLUMES)
    ]
    return "\n".join(rows)


def serve(
    flavour: str,
    config: Path,
    port: int,
    cores: Sequence[int],
    environment: Mapping[str, str],
    partners: Sequence[int] = (),
) -> Serving:
    """Start cinder-api with *config*, which says that it listens on *port*."""
    # serve.py's servers announce their port; cinder's is known before.
    script = f'echo "listening {port}"; exec "$@"'
    command = ["sh", "-c", script, "sh", *command_of(flavour, config)]
    return Serving(flavour, command, cores, environment, partners)


def serve_on_sqlite(flavour: str, directory: Path, cores: Sequence[int]) -> Serving:
    """cinder-api with a database of its own in *directory*."""
    config, port = block_storage.configure(directory, workers=ON_SQLITE.workers)
    lines = config.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(NOT_DEFAULT)]
    config.write_text("\n".join(kept).replace("osloxide+memory://", "fake:///") + "\n")
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    block_storage.migrated_schema(directory, config, cache, LOCK)
    with contextlib.closing(sqlite3.connect(directory / "cinder.sqlite")) as database:
        database.executescript(statements())
    return serve(flavour, config, port, cores, block_storage.environment())


def on_sqlite(stack: contextlib.ExitStack, cores: Sequence[int]) -> list[Serving]:
    """Both flavours, up until *stack* closes."""
    up = []
    for flavour in FLAVOURS:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-cinder-"))
        up.append(stack.enter_context(serve_on_sqlite(flavour, Path(directory), cores)))
    return up


def on_mariadb(stack: contextlib.ExitStack, cores: Sequence[int]) -> list[Serving]:
    """Both flavours on one database, up until *stack* closes."""
    database = retried(Database)
    stack.callback(database.stop)
    environment = Environment("cinder", LOCK, "cinder-api")
    up: list[Serving] = []
    for flavour in FLAVOURS:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-cinder-"))
        cinder = Cinder(environment, "fake://", database, Path(directory))
        cinder.write(workers=ON_MARIADB.workers)
        if not up:
            cinder.create_schema()
            database.sql(statements(), DATABASE)
        variables = environment.variables() | {"PYTHONWARNINGS": "ignore"}
        serving = serve(flavour, cinder.config, cinder.port, cores, variables, database.pids())
        up.append(stack.enter_context(serving))
    return up


def run(rounds: int, seconds: int) -> Iterator[tuple[Workload, str, Round]]:
    """Both flavours in each round, on SQLite and then on MariaDB."""
    for workload, start in ((ON_SQLITE, on_sqlite), (ON_MARIADB, on_mariadb)):
        server_cores, client_cores = machine.cores(workload.workers)
        with contextlib.ExitStack() as stack:
            try:
                up = start(stack, server_cores)
            except MissingProgramError as exc:
                print(f"left out {workload.name}: {exc}")
                continue
            for server, measured in in_turn(up, workload, client_cores, rounds, seconds):
                yield workload, server, measured
