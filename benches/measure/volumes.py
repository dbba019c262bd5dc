"""Real cinder-api, one worker on SQLite, everything at its defaults: osloxide beside eventlet.

The same program, configuration and database for both; ``GET /v3/PROJECT/volumes/detail`` returns
twenty volumes. Uses the demo's files for cinder's configuration and schema.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from measure import machine
from measure.peers import ROOT, Serving
from measure.wsgi import Round, Workload, in_turn

VOLUMES = 20
FLAVOURS = ("osloxide", "eventlet")
#: What the demo sets for its own needs; the bench wants oslo.db's defaults.
NOT_DEFAULT = ("max_pool_size", "max_overflow", "sqlite_synchronous")


def prepare(run: Path) -> tuple[Path, int]:
    """Configuration and database in *run*; the former's path and the port."""
    import block_storage

    config, port = block_storage.configure(run, workers=1)
    lines = config.read_text().splitlines()
    kept = [line for line in lines if not line.startswith(NOT_DEFAULT)]
    config.write_text("\n".join(kept).replace("osloxide+memory://", "fake:///") + "\n")
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    block_storage.migrated_schema(run, config, cache, ROOT / "requirements" / "cinder.lock")
    fill(run / "cinder.sqlite", block_storage.PROJECT)
    return config, port


def fill(path: Path, project: str) -> None:
    """Put VOLUMES volumes into the database at *path*."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        (kind,) = database.execute(
            "SELECT id FROM volume_types WHERE name = '__DEFAULT__' AND NOT deleted"
        ).fetchone()
        for number in range(VOLUMES):
            identity = str(uuid.UUID(int=number + 1))
            database.execute(
                "INSERT INTO volumes (id, project_id, user_id, status, attach_status, size, "
                "display_name, volume_type_id, availability_zone, host, created_at, deleted, "
                "use_quota, bootable, multiattach) "
                "VALUES (?, ?, 'admin', 'available', 'detached', 1, ?, ?, 'nova', "
                "'demo@fake#fake', '2026-01-01 00:00:00', 0, 1, 0, 0)",
                (identity, project, f"volume-{number}", kind),
            )


def serve(flavour: str, run: Path, cores: list[int]) -> Serving:
    """cinder-api under *flavour*."""
    import block_storage

    config, port = prepare(run)
    program = Path(sys.prefix) / "bin"
    command = [str(program / "cinder-api"), "--config-file", str(config)]
    if flavour == "osloxide":
        command = [str(program / "osloxide"), "run", *command]
    # serve.py's servers announce their port; cinder's is known before.
    script = f'echo "listening {port}"; exec "$@"'
    return Serving(
        flavour, ["sh", "-c", script, "sh", *command], cores, block_storage.environment()
    )


def run(rounds: int, seconds: int) -> Iterator[tuple[Workload, str, Round]]:
    """Both flavours in each round."""
    sys.path.insert(0, str(ROOT / "examples" / "cinder"))
    import block_storage

    workload = Workload(
        "volumes",
        f"real cinder-api, `volumes/detail` with {VOLUMES} volumes, SQLite, one worker, 16 "
        "connections, all defaults",
        path=f"/v3/{block_storage.PROJECT}/volumes/detail",
        connections=16,
        headers={
            "X-Auth-Token": f"admin:{block_storage.PROJECT}",
            "OpenStack-API-Version": "volume 3.71",
        },
    )
    server_cores, client_cores = machine.cores()
    with contextlib.ExitStack() as stack:
        up = []
        for flavour in FLAVOURS:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-cinder-"))
            up.append(stack.enter_context(serve(flavour, Path(directory), server_cores)))
        for server, measured in in_turn(up, workload, client_cores, rounds, seconds):
            yield workload, server, measured
