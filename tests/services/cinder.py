"""cinder 29 as its users run it: environment, configuration files, schema, and a client.

The program files are untouched; api-paste.ini gets one filter in front (apps/service_probe.py).
Versions are pinned by a lock file. The schema is made once and kept as a dump.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import wait_until

from services.infra import Database, cache_directory, cache_lock, digest
from services.processes import RunningService, free_port
from services.subject import APPS, IS_STOCK, REPOSITORY, clean_environment, run_under_subject

PROJECT = "1" * 32
LOCK = REPOSITORY / "requirements" / "cinder.lock"
DATABASE = "cinder"


class Environment:
    """A virtual environment with pinned services.

    The one that runs the tests, when it holds the services (``make setup`` installs cinder there),
    or else one of its own in the cache directory. There osloxide is reached through PYTHONPATH:
    what is under test is always the build that the tests import.

    :param name: what it is for, in the directory's name.
    :param lock: pinned requirements.
    :param script: a console script that tells that the services are installed.
    :param own: never the one that runs the tests: it holds another release.
    """

    def __init__(self, name: str, lock: Path, script: str, own: bool = False) -> None:
        pins = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
        self.key = digest(*pins, sys.version)
        self.directory = Path(sys.prefix)
        self._path = [str(APPS)]
        if own or not (self.bin / script).exists():
            self.directory = cache_directory() / f"{name}-{self.key}"
            self._install(lock)
            if not IS_STOCK:
                self._path.append(str(package_directory()))

    def _install(self, lock: Path) -> None:
        done = self.directory / "complete"
        with cache_lock(self.directory.name):  # two suites may need it at a time
            if not done.exists():
                venv.create(self.directory, with_pip=True, clear=True)
                pip = [self.python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
                subprocess.run([*pip, "--no-deps", "-r", str(lock)], check=True)
                done.touch()

    @property
    def bin(self) -> Path:
        return self.directory / "bin"

    @property
    def python(self) -> str:
        return str(self.bin / "python")

    def command(self, script: str, *arguments: str) -> list[str]:
        """A console script of this environment, run the way the subject runs it."""
        return run_under_subject(
            [str(self.bin / script), *arguments], [self.python, "-m", "osloxide"]
        )

    def variables(self) -> dict[str, str]:
        variables = clean_environment()
        variables["PATH"] = f"{self.bin}:{variables['PATH']}"
        variables["PYTHONPATH"] = ":".join(self._path)
        return variables


def package_directory() -> Path:
    """A directory that holds nothing but the osloxide under test, with its metadata."""
    import osloxide

    assert osloxide.__file__ is not None
    package = Path(osloxide.__file__).parent
    site = Path(str(importlib.metadata.distribution("osloxide").locate_file("")))
    (metadata,) = site.glob("osloxide-*.dist-info")
    directory = cache_directory() / f"osloxide-{digest(str(package), str(metadata))}"
    directory.mkdir(exist_ok=True)
    for target in (package, metadata):
        with contextlib.suppress(FileExistsError):
            (directory / target.name).symlink_to(target)
    return directory


@dataclass
class Settings:
    """What a test may choose."""

    workers: int = 4
    graceful_shutdown_timeout: int = 60
    debug: bool = False
    extra: str = ""
    """More of cinder.conf, with the names of its sections."""


class Cinder:
    """One cinder deployment in a directory: files and schema first, then its three services."""

    def __init__(
        self, environment: Environment, transport_url: str, database: Database, directory: Path
    ) -> None:
        self.environment = environment
        self.directory = directory
        self.config = directory / "cinder.conf"
        self.port = free_port()
        self.settings = Settings()
        self._transport_url = transport_url
        self._database = database
        for name in ("state", "lock", "coordination", "logs"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        etc = environment.directory / "etc" / "cinder"
        paste = (etc / "api-paste.ini").read_text()
        (directory / "api-paste.ini").write_text(
            paste.replace("[composite:osapi_volume]", "[composite:cinder_root]")
            + "\n[pipeline:osapi_volume]\npipeline = probe cinder_root\n"
            "\n[filter:probe]\npaste.filter_factory = service_probe:factory\n"
        )
        self.write()

    def write(self, **changes: Any) -> None:
        """(Re)write cinder.conf with *changes* to the settings."""
        for name, value in changes.items():
            setattr(self.settings, name, value)
        base, etc = self.directory, self.environment.directory / "etc" / "cinder"
        self.config.write_text(f"""\
[DEFAULT]
debug = {self.settings.debug}
host = osloxide-test
my_ip = 127.0.0.1
auth_strategy = noauth
osapi_volume_listen = 127.0.0.1
osapi_volume_listen_port = {self.port}
osapi_volume_workers = {self.settings.workers}
api_paste_config = {base / "api-paste.ini"}
resource_query_filters_file = {etc / "resource_filters.json"}
rootwrap_config = {etc / "rootwrap.conf"}
state_path = {base / "state"}
transport_url = {self._transport_url}
enabled_backends = fake
glance_api_servers =
report_interval = 5
service_down_time = 60
scheduler_driver_init_wait_time = 5
backend_stats_polling_interval = 60
graceful_shutdown_timeout = {self.settings.graceful_shutdown_timeout}
[fake]
volume_driver = cinder.tests.fake_driver.FakeLoggingVolumeDriver
volume_backend_name = fake
[database]
connection = {self._database.url(DATABASE)}
[oslo_concurrency]
lock_path = {base / "lock"}
[coordination]
backend_url = file://{base / "coordination"}
[key_manager]
fixed_key = {"0" * 64}
{self.settings.extra}""")

    def create_schema(self) -> float:
        """Make the tables, from the kept dump when there is one; returns seconds."""

        def sync() -> None:
            done = subprocess.run(
                [str(self.environment.bin / "cinder-manage"), "--config-file", str(self.config),
                 "db", "sync"],
                env=self.environment.variables(), capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

        return self._database.create([DATABASE], f"cinder-{self.environment.key}", sync)

    def command(self, name: str) -> list[str]:
        return self.environment.command(name, "--config-file", str(self.config))

    def log(self, name: str) -> Path:
        return self.directory / "logs" / f"{name}-{os.urandom(3).hex()}.log"

    def start_api(self, start: Callable[..., RunningService]) -> RunningService:
        """Start cinder-api and wait until every worker is there and one answers."""
        service = start(self.command("cinder-api"), self.log("api"), self.environment.variables())
        service.wait_workers(self.settings.workers)

        def answers() -> bool:
            service.assert_running()
            try:
                return Client(self.port).call("GET", "/", expected=300) is not None
            except OSError:
                return False

        wait_until(answers, "cinder-api answers", 60, pause=0.05)
        return service

    def start_scheduler(self, start: Callable[..., RunningService]) -> RunningService:
        service = start(
            self.command("cinder-scheduler"), self.log("scheduler"), self.environment.variables()
        )
        service.wait_log("Starting cinder-scheduler node", within=60)
        return service

    def start_volume(self, start: Callable[..., RunningService]) -> RunningService:
        service = start(
            self.command("cinder-volume"), self.log("volume"), self.environment.variables()
        )
        service.wait_log("Driver post RPC initialization completed", within=60)
        return service


class Client:
    """A cinder user: JSON over one keep-alive connection, noauth admin."""

    def __init__(self, port: int, timeout: float = 60) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def call(self, method: str, path: str, body: object = None, expected: int | None = None) -> Any:
        """One call; returns the decoded answer.

        :raises AssertionError: the status is not *expected*.
        """
        all_headers = {
            "X-Auth-Token": f"admin:{PROJECT}",
            "OpenStack-API-Version": "volume 3.71",
        }
        data = None
        if body is not None:
            data = json.dumps(body)
            all_headers["Content-Type"] = "application/json"
        self._connection.request(method, path, data, all_headers)
        response = self._connection.getresponse()
        answer = response.read()
        assert expected is None or response.status == expected, (
            f"{method} {path}: {response.status}, not {expected}: {answer[:500]!r}"
        )
        return json.loads(answer) if answer[:1] in (b"{", b"[") else answer.decode()

    def status(self, path: str) -> int:
        """The HTTP status of a GET."""
        self._connection.request("GET", path, headers={"X-Auth-Token": f"admin:{PROJECT}"})
        response = self._connection.getresponse()
        response.read()
        return response.status

    def close(self) -> None:
        self._connection.close()


def whole_job(port: int) -> list[str]:
    """What a user does with cinder: types, a volume, a snapshot, and all of it deleted again.

    :returns: the steps that were taken.
    :raises AssertionError: a step was not answered as cinder answers it.
    """
    client, base, steps = Client(port), f"/v3/{PROJECT}", []

    def step(method: str, path: str, expected: int, body: object = None) -> Any:
        answer = client.call(method, path, body, expected)
        steps.append(f"{method} {path.removeprefix(base)} {expected}")
        return answer

    def settled(path: str, kind: str) -> None:
        def state() -> str:
            found: str = client.call("GET", path, expected=200)[kind]["status"]
            return "" if found in ("creating", "deleting") else found

        reached = wait_until(state, f"{path} settles", 60, pause=0.05)
        assert reached == "available", f"{path} is {reached}"
        steps.append(f"{kind} available")

    step("GET", "/", 300)
    step("GET", "/healthcheck", 200)
    step("GET", "/nope", 404)
    step("GET", f"{base}/volumes/detail", 200)
    step("POST", f"{base}/types", 400, {"volume_type": {}})
    name = f"type-{os.urandom(4).hex()}"
    kind = {"name": name, "extra_specs": {"volume_backend_name": "fake"}}
    type_id = step("POST", f"{base}/types", 200, {"volume_type": kind})["volume_type"]["id"]
    services = step("GET", f"{base}/os-services", 200)["services"]
    assert {s["binary"] for s in services if s["state"] == "up"} >= {
        "cinder-scheduler",
        "cinder-volume",
    }, services
    volume = {"size": 1, "name": "volume", "volume_type": type_id}
    volume_id = step("POST", f"{base}/volumes", 202, {"volume": volume})["volume"]["id"]
    settled(f"{base}/volumes/{volume_id}", "volume")
    snapshot = {"volume_id": volume_id, "name": "snapshot"}
    snapshot_id = step("POST", f"{base}/snapshots", 202, {"snapshot": snapshot})["snapshot"]["id"]
    settled(f"{base}/snapshots/{snapshot_id}", "snapshot")
    for path in (f"{base}/snapshots/{snapshot_id}", f"{base}/volumes/{volume_id}"):
        step("DELETE", path, 202)
        wait_until(lambda p=path: client.status(p) == 404, f"{path} is deleted", 60, pause=0.05)  # type: ignore[misc]
        steps.append("deleted")
    step("DELETE", f"{base}/types/{type_id}", 202)
    client.close()
    return steps


def stop_politely(service: RunningService, within: float = 30) -> int:
    """SIGTERM, exit status, nothing left."""
    service.signal(signal.SIGTERM)
    status = service.wait_exit(within)
    service.wait_gone()
    return status
