"""nova as its users run it: 34's conductor and scheduler, 31's API; configuration, schema, clients.

Nothing of nova is changed. Its versions are pinned by a lock file; the schema is made once and kept
as a dump, in which the cell's addresses are then replaced by those of this session.
"""

from __future__ import annotations

import json
import subprocess
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from waiting import wait_until

from services.cinder import Environment
from services.infra import Broker, Database
from services.load import end
from services.processes import RunningService, accepts_connections, free_port
from services.subject import APPS, IS_NATIVE, REPOSITORY, run_under_subject

LOCK = REPOSITORY / "requirements" / "nova.lock"
LOCK_31 = REPOSITORY / "requirements" / "nova31.lock"
API, CELL0, CELL1 = "nova_api", "nova_cell0", "nova_cell1"


class Nova:
    """One nova deployment in a directory: files and schema first, then its services.

    :param extra: more of nova.conf, with the names of its sections.
    """

    def __init__(
        self,
        environment: Environment,
        broker: Broker,
        database: Database,
        directory: Path,
        extra: str = "",
    ) -> None:
        self.environment = environment
        self.directory = directory
        self.config = directory / "nova.conf"
        self.workers = 2
        self._broker = broker
        self._database = database
        self._extra = extra
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
{self._extra}""")

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
        self.map_cells()
        return seconds

    def map_cells(self) -> None:
        """Enter this deployment's addresses in the schema."""
        for name, url, transport in (
            ("cell0", self._database.url(CELL0), "none:///"),
            ("cell1", self._database.url(CELL1), self._broker.url),
        ):
            self._database.sql(
                f"UPDATE cell_mappings SET database_connection='{url}', transport_url='{transport}'"
                f" WHERE name='{name}'",
                API,
            )

    def start_service(self, name: str, start: Callable[..., RunningService]) -> RunningService:
        """Start nova-conductor or nova-scheduler and wait until every worker listens."""
        log = self.directory / "logs" / f"{name}.log"
        mark = log.stat().st_size if log.exists() else 0
        service = start(
            self.environment.command(f"nova-{name}", "--config-file", str(self.config)),
            log,
            self.environment.variables(),
        )
        wait_until(
            lambda: self._listens(service, name, mark),
            f"{name}: every worker listens",
            300,
            pause=0.1,
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
            wait_until(lambda p=port: accepts_connections(p), f"port {port} accepts", 60)  # type: ignore[misc]
        return service


@dataclass
class Report:
    """What callers saw of their calls."""

    sent: dict[str, float]
    """When each was made, by its key, in seconds of ``time.monotonic``."""
    failed: dict[str, str]
    """The exception of each that was not answered, by its key; a wrong answer is none."""
    pings: dict[str, int]
    """How many were ``answered``; the others by their exception."""
    median: float
    """Seconds until an answer to a call."""
    slowest: float
    """Seconds until the answer that took longest."""


class Calls:
    """RPC calls under way, through nova's own client classes, in a process of their own.

    On plain oslo.messaging, unless the subject is ``native``: then neither end has kombu.

    :param topic: "conductor" or "scheduler".
    :param timeout: of each call, in seconds.
    :param threads: concurrent callers.
    """

    def __init__(self, nova: Nova, topic: str, timeout: int, threads: int) -> None:
        self.topic = topic
        self.run = uuid.uuid4().hex[:12]
        """Begins the key of each call, followed by a dash and a number."""
        self._report = nova.directory / f"calls-{self.run}.json"
        argv = [nova.environment.python, str(APPS / "nova_calls.py"), str(nova.config), topic]
        if IS_NATIVE:
            argv = run_under_subject(argv, [nova.environment.python, "-m", "osloxide"])
        argv += [str(threads), str(timeout), self.run, str(self._report)]
        self._log = nova.directory / "logs" / f"calls-{topic}-{self.run}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=nova.environment.variables(),
            )
        self._threads = threads
        self._answered = self._under_way = 0
        self._moved = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="call-progress", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            progress = line.split()
            if len(progress) == 2 and all(number.isdigit() for number in progress):
                with self._moved:
                    self._answered, self._under_way = map(int, progress)
                    self._moved.notify_all()

    def wait_answered(self, more: int, within: float = 60) -> None:
        """Wait until *more* calls have been answered than were when this was called."""
        with self._moved:
            goal = self._answered + more
            reached = self._moved.wait_for(lambda: self._answered >= goal, within)
        assert reached, (
            f"{self._answered} of {goal} calls answered within {within} s:\n"
            + self._log.read_text(errors="replace")[-3000:]
        )

    def wait_under_way(self, within: float = 60) -> None:
        """Wait until every caller waits for an answer."""
        with self._moved:
            reached = self._moved.wait_for(lambda: self._under_way == self._threads, within)
        assert reached, f"{self._under_way} of {self._threads} callers wait for an answer"

    def end(self) -> None:
        """Let each caller end with the answer or the timeout of its present call."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def report(self, within: float = 150) -> Report:
        """Wait for the end of the callers, which :meth:`end` has begun."""
        try:
            self._process.wait(within)
        finally:
            self.kill()
        return Report(**json.loads(self._report.read_text()))

    def kill(self) -> None:
        """End the callers without a report. Does nothing when they have ended."""
        end(self._process, self._reader)
