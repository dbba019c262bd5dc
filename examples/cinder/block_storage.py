"""Cinder for the demo: its configuration, its empty schema, and a client of its HTTP API.

Writes only below the directory it is given. The schema is migrated once by ``cinder-manage db
sync`` and kept in the cache directory under the hash of the lock file, since it depends on
nothing else.
"""

import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from stage import Failure

PROJECT = "1" * 32
PREFIX = Path(sys.prefix)
HERE = Path(__file__).resolve().parent

CONFIG = """\
[DEFAULT]
debug = false
host = demo
my_ip = 127.0.0.1
auth_strategy = noauth
osapi_volume_listen = 127.0.0.1
osapi_volume_listen_port = {port}
osapi_volume_workers = {workers}
api_paste_config = {run}/api-paste.ini
resource_query_filters_file = {prefix}/etc/cinder/resource_filters.json
rootwrap_config = {prefix}/etc/cinder/rootwrap.conf
state_path = {run}/state
transport_url = osloxide+memory://
enabled_backends = fake
glance_api_servers =
service_down_time = 30
scheduler_driver_init_wait_time = 2
graceful_shutdown_timeout = 20
[fake]
volume_driver = cinder.tests.fake_driver.FakeLoggingVolumeDriver
volume_backend_name = fake
[database]
connection = sqlite:///{run}/cinder.sqlite
# SQLite refuses at once ("database is locked") a transaction that read before it writes while
# another one commits. One connection for each process lets the threads take turns instead.
max_pool_size = 1
max_overflow = 0
sqlite_synchronous = false
[oslo_concurrency]
lock_path = {run}/lock
[coordination]
backend_url = file://{run}/coordination
[key_manager]
fixed_key = {key}
"""

# Behind the same filter as cinder's own health check.
PROCESS_FACTS = """
[pipeline:process]
pipeline = request_id processapp

[app:processapp]
paste.app_factory = process_facts:app_factory
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def configure(run: Path, workers: int) -> tuple[Path, int]:
    """Write cinder.conf and api-paste.ini into *run*; return the former's path and the port."""
    for name in ("state", "lock", "coordination"):
        (run / name).mkdir()
    port = free_port()
    config = run / "cinder.conf"
    config.write_text(
        CONFIG.format(run=run, prefix=PREFIX, port=port, workers=workers, key="0" * 64)
    )
    paste = (PREFIX / "etc/cinder/api-paste.ini").read_text()
    route = "/healthcheck: healthcheck\n"
    if route not in paste:
        raise Failure(f"cinder's api-paste.ini has no line {route!r} to add /process behind")
    paste = paste.replace(route, route + "/process: process\n")
    paste += PROCESS_FACTS
    (run / "api-paste.ini").write_text(paste)
    return config, port


def environment() -> dict[str, str]:
    """The environment for cinder's processes: this interpreter's scripts, and this directory."""
    env = dict(os.environ)
    env["PATH"] = f"{PREFIX}/bin:{env.get('PATH', os.defpath)}"
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), env.get("PYTHONPATH")]))
    env["PYTHONWARNINGS"] = "ignore"  # cinder imports eventlet, which announces its own end
    return env


def migrated_schema(run: Path, config: Path, cache: Path, lock: Path) -> bool:
    """Put an empty migrated database into *run*; True when it came out of *cache*."""
    key = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    kept, database = cache / f"cinder-schema-{key}.sqlite", run / "cinder.sqlite"
    if kept.exists():
        shutil.copyfile(kept, database)
        return True
    log = run / "db-sync.log"
    with log.open("wb") as output:
        done = subprocess.run(
            [PREFIX / "bin/cinder-manage", "--config-file", config, "db", "sync"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            check=False,
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise Failure(f"cinder-manage db sync ended with status {done.returncode}:\n{tail}")
    partial = kept.with_suffix(f".{os.getpid()}")
    shutil.copyfile(database, partial)
    partial.rename(kept)
    return False


class Client:
    """One keep-alive connection to the volume API."""

    def __init__(self, port: int, timeout: float = 30) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def request(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Return the status and the decoded body (None when there is none)."""
        headers = {
            "X-Auth-Token": f"admin:{PROJECT}",
            "OpenStack-API-Version": "volume 3.71",
            "Content-Type": "application/json",
        }
        try:
            self.connection.request(
                method, path, None if body is None else json.dumps(body), headers
            )
            response = self.connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            raise
        is_json = "json" in response.headers.get("Content-Type", "")
        return response.status, json.loads(text) if text and is_json else None

    def volume_api(self, expected: int, method: str, path: str, body: object = None) -> Any:
        """A request below the project's URL that must be answered with *expected*.

        :raises Failure: another status came back.
        """
        status, answer = self.request(method, f"/v3/{PROJECT}{path}", body)
        if status != expected:
            raise Failure(f"{method} {path}: status {status} instead of {expected}: {answer}")
        return answer

    def close(self) -> None:
        self.connection.close()
