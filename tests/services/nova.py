"""nova as its users run it: 34's conductor and scheduler, 31's API; configuration, schema, clients.

Nothing of nova is changed. Its versions are pinned by a lock file; the schema is made once and kept
as a dump, in which the cell's addresses are then replaced by those of this session.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.cinder import Environment
from services.infra import Broker, Database
from services.load import end
from services.processes import RunningService, accepts_connections, free_port, until
from services.subject import APPS, REPOSITORY

LOCK = REPOSITORY / "requirements" / "nova.lock"
LOCK_31 = REPOSITORY / "requirements" / "nova31.lock"
API, CELL0, CELL1 = "nova_api", "nova_cell0", "nova_cell1"


class Nova:
    """One nova deployment in a directory: files and schema first, then its services."""

    def __init__(
        self, environment: Environment, broker: Broker, database: Database, directory: Path
    ) -> None:
        self.environment = environment
        self.directory = directory
        self.config = directory / "nova.conf"
        self.workers = 2
        self._broker = broker
        self._database = database
        for name in ("state", "lock", "logs"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self, debug: bool = False) -> None:
        """(Re)write nova.conf."""
        # Neutron, glance and placement are not there; port 9 refuses at once whoever asks.
        self.config.write_text(f"""\
[DEFAULT]
debug = {debug}
host = osloxide-test
my_ip = 127.0.0.1
state_path = {self.directory / "state"}
transport_url = {self._broker.url}
report_interval = 5
service_down_time = 60
graceful_shutdown_timeout = 60
[database]
connection = {self._database.url(CELL1)}
[api_database]
connection = {self._database.url(API)}
[conductor]
workers = {self.workers}
[scheduler]
workers = {self.workers}
[oslo_concurrency]
lock_path = {self.directory / "lock"}
[placement]
auth_type = admin_token
endpoint = http://127.0.0.1:9
endpoint_override = http://127.0.0.1:9
token = admin
[keystone_authtoken]
auth_type = none
[cinder]
auth_type = none
[neutron]
auth_type = none
endpoint_override = http://127.0.0.1:9
[glance]
endpoint_override = http://127.0.0.1:9
[service_user]
send_service_user_token = False
""")

    def create_schema(self) -> float:
        """Make the tables, from the kept dump when there is one; returns seconds."""

        def manage(*arguments: str) -> None:
            done = subprocess.run(
                [str(self.environment.bin / "nova-manage"), "--config-file", str(self.config),
                 *arguments],
                env=self.environment.variables(), capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

        def sync() -> None:
            manage("api_db", "sync")
            cell0 = self._database.url(CELL0)
            manage("cell_v2", "map_cell0", "--database_connection", cell0)
            manage("cell_v2", "create_cell", "--name", "cell1")
            manage("db", "sync")

        seconds = self._database.create([API, CELL0, CELL1], f"nova-{self.environment.key}", sync)
        for name, url, transport in (
            ("cell0", self._database.url(CELL0), "none:///"),
            ("cell1", self._database.url(CELL1), self._broker.url),
        ):
            self._database.sql(
                f"UPDATE cell_mappings SET database_connection='{url}', transport_url='{transport}'"
                f" WHERE name='{name}'",
                API,
            )
        return seconds

    def start_service(self, name: str, start: Callable[..., RunningService]) -> RunningService:
        """Start nova-conductor or nova-scheduler and wait until every worker listens."""
        log = self.directory / "logs" / f"{name}.log"
        mark = log.stat().st_size if log.exists() else 0
        service = start(
            self.environment.command(f"nova-{name}", "--config-file", str(self.config)),
            log,
            self.environment.variables(),
        )
        until(
            f"{name}: every worker listens",
            lambda: self._listens(service, name, mark),
            300,
            every=0.1,
        )
        service.wait_workers(self.workers)
        return service

    def _listens(self, service: RunningService, name: str, mark: int) -> bool:
        service.assert_running()  # a service that failed to start is not waited for
        return service.text(mark).count(f"Starting {name} node") >= self.workers


class NovaApi(Nova):
    """nova 31 with the programs that serve its API themselves."""

    def __init__(
        self, environment: Environment, broker: Broker, database: Database, directory: Path
    ) -> None:
        self.port, self.metadata_port = free_port(), free_port()
        super().__init__(environment, broker, database, directory)

    def write(self, debug: bool = False) -> None:
        """(Re)write nova.conf, api-paste.ini and the policy."""
        super().write(debug)
        paste = (self.environment.directory / "etc" / "nova" / "api-paste.ini").read_text()
        (self.directory / "api-paste.ini").write_text(paste)
        # Without keystone there are no roles; nova's policies ask for them.
        (self.directory / "policy.yaml").write_text(
            'context_is_admin: "role:admin or is_admin:True"\n'
        )
        with self.config.open("a") as config:
            config.write(f"""\
[DEFAULT]
osapi_compute_listen = 127.0.0.1
osapi_compute_listen_port = {self.port}
osapi_compute_workers = {self.workers}
metadata_listen = 127.0.0.1
metadata_listen_port = {self.metadata_port}
metadata_workers = 1
enabled_apis = osapi_compute,metadata
[wsgi]
api_paste_config = {self.directory / "api-paste.ini"}
wsgi_log_format = %(client_ip)s "%(request_line)s" %(status_code)s %(body_length)s
[api]
auth_strategy = noauth2
[oslo_policy]
policy_file = {self.directory / "policy.yaml"}
""")

    def start_api(self, start: Callable[..., RunningService]) -> RunningService:
        """Start nova-api and wait until both of its APIs answer."""
        service = start(
            self.environment.command("nova-api", "--config-file", str(self.config)),
            self.directory / "logs" / "api.log",
            self.environment.variables(),
        )
        service.wait_workers(self.workers + 1)
        for port in (self.port, self.metadata_port):
            until(f"port {port} accepts", lambda p=port: accepts_connections(p), 60)  # type: ignore[misc]
        return service


class Calls:
    """RPC calls under way, through nova's own client classes, in a process of their own.

    :param topic: "conductor" or "scheduler".
    :param timeout: of each call, in seconds.
    :param threads: concurrent callers.
    """

    def __init__(self, nova: Nova, topic: str, timeout: int = 30, threads: int = 4) -> None:
        self._report = nova.directory / f"calls-{topic}.json"
        argv = [nova.environment.python, str(APPS / "nova_calls.py"), str(nova.config), topic]
        argv += [str(threads), str(timeout), str(self._report)]
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=nova.environment.variables(),
        )
        self._answered = 0
        self._moved = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="call-progress", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().isdigit():
                with self._moved:
                    self._answered = int(line)
                    self._moved.notify_all()

    def wait_answered(self, more: int, within: float = 60) -> None:
        """Wait until *more* calls have been answered than were when this was called."""
        with self._moved:
            goal = self._answered + more
            reached = self._moved.wait_for(lambda: self._answered >= goal, within)
            assert reached, f"{self._answered} of {goal} calls answered within {within} s"

    def stop(self, within: float = 90) -> dict[str, Any]:
        """End the callers.

        :returns: ``answered`` (calls), ``failures`` (by kind), ``median``, ``slowest`` (seconds).
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(within)
        finally:
            self.kill()
        report: dict[str, Any] = json.loads(self._report.read_text())
        return report

    def kill(self) -> None:
        """End the callers without a report. Does nothing when they have ended."""
        end(self._process, self._reader)
