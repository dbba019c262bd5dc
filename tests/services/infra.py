"""A private RabbitMQ and a private MariaDB: own ports, names and directories, gone afterwards.

Both run as the user who runs the tests, root or not, and never touch an installed instance: the
broker has an epmd and a node name of its own, the database a data directory and a socket of its
own. Durability is switched off, since nothing here has to survive the session. A missing program
fails the tests that need it with the remedy; it never skips them silently.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import getpass
import hashlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from waiting import wait_until

from services.processes import RunningService, accepts_connections, free_port, is_refused
from services.subject import REPOSITORY, clean_environment

RABBITMQ_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
# Debian's own rabbitmqctl changes the user, and with it the cookie.
RABBITMQCTL = "/usr/lib/rabbitmq/bin/rabbitmqctl"
RELEASES = ("", "trixie", "sid")
"""Of Debian, whose RabbitMQ there may be: this machine's own, 4.0, and 4.3."""
_MAKING_A_TREE = 1200.0
USER = PASSWORD = "osloxide"
_ATTEMPTS = 3
CERTIFICATES = Path(__file__).parents[1] / "certificates"

T = TypeVar("T")


class MissingTreeError(Exception):
    """This machine cannot have the RabbitMQ of another release."""


class MissingProgramError(Exception):
    """A program that the service tests need is not installed."""


def required(program: str, package: str) -> str:
    """Path of *program*, which Debian's *package* installs.

    :raises MissingProgramError: it is not there; the message says what installs it.
    """
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise MissingProgramError(
            f"{program} is not installed, so the service tests cannot run: "
            f"install it with `make services-setup` (Debian package {package})"
        )
    return path


def retried(start: Callable[[], T]) -> T:
    """Call *start*, which binds ports that were free a moment ago, again when one was taken."""
    for attempt in range(_ATTEMPTS):
        try:
            return start()
        except AssertionError:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("not reached")


@functools.cache
def entrance(release: str) -> str:
    """The script that starts programs in a tree of the Debian *release* with RabbitMQ in it, which
    tools/debian_tree.py makes once.

    :raises MissingTreeError: it cannot, and why.
    """
    if os.geteuid() != 0:
        raise MissingTreeError(f"the tree of Debian {release} needs root")
    tool = REPOSITORY / "tools" / "debian_tree.py"
    command = [sys.executable, str(tool), release, "rabbitmq-server", "--run", "true"]
    try:
        made = subprocess.run(
            command, capture_output=True, text=True, timeout=_MAKING_A_TREE, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise MissingTreeError(f"{command} takes longer than {_MAKING_A_TREE:.0f} s") from error
    if made.returncode != 0:
        said = (made.stderr + made.stdout).strip().splitlines()[-1:]
        raise MissingTreeError(f"no tree of Debian {release}: {' '.join(said)}")
    script: Path = _debian_tree().entrance(release)
    return str(script)


def _debian_tree() -> Any:
    found = importlib.util.spec_from_file_location(
        "debian_tree", REPOSITORY / "tools" / "debian_tree.py"
    )
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Place:
    """Where a node of RabbitMQ runs."""

    address: str = "127.0.0.1"
    """For clients."""
    inner: str = "127.0.0.1"
    """For other nodes."""
    host: str = "localhost"
    """The name that other nodes have for ``inner``."""
    enter: tuple[str, ...] = ()
    """What starts a program there."""
    environment: Mapping[str, str] = field(default_factory=dict)


class Broker:
    """One RabbitMQ node with its own epmd. ``url`` is what oslo.messaging takes.

    :param release: of Debian, of which the tree has RabbitMQ; this machine's own unless given.
    :param configuration: further lines of ``rabbitmq.conf``.
    :param cluster: a node whose cookie this one shares, where the place is the same one also its
        epmd, and whose cluster it joins.
    :raises MissingTreeError: there is no such tree.
    """

    def __init__(
        self,
        release: str = "",
        *configuration: str,
        cluster: Broker | None = None,
        place: Place = Place(),
    ) -> None:
        self._enter = [*place.enter, *([entrance(release)] if release else [])]
        self.place = place
        self._cluster = cluster
        if not release:
            required(RABBITMQ_SERVER, "rabbitmq-server")
        self._configuration = configuration
        self.directory = Path(tempfile.mkdtemp(prefix="osloxide-rabbit-"))
        self.port = free_port()
        self._processes: list[RunningService] = []
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return f"rabbit://{USER}:{PASSWORD}@{self.place.address}:{self.port}//"

    def _start(self) -> None:
        base, first = self.directory, self._cluster or self
        self.node = f"osloxide-{secrets.token_hex(4)}@{self.place.host}"
        if self._cluster is None:
            self.epmd_port = str(free_port())
            (base / "home").mkdir()
        for name in ("mnesia", "log"):
            (base / name).mkdir()
        (base / "rabbitmq.conf").write_text(
            f"{self._listeners()}\n"
            f"default_user = {USER}\ndefault_pass = {PASSWORD}\n"
            "loopback_users = none\nlog.file.level = warning\n"
            "vm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 50MB\n"
            + "".join(f"{line}\n" for line in self._configuration)
        )
        (base / "enabled_plugins").write_text("[].")
        env = clean_environment() | {
            "HOME": str(first.directory / "home"),
            "ERL_EPMD_PORT": first.epmd_port,
            "ERL_EPMD_ADDRESS": self.place.inner,
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq.conf"),
            "RABBITMQ_MNESIA_BASE": str(base / "mnesia"),
            "RABBITMQ_LOG_BASE": str(base / "log"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(base / "pid"),
            # Not where the tests run.
            "ERL_CRASH_DUMP": str(base / "erl_crash.dump"),
            # Idle schedulers must not spin: the machine is shared with what is measured.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                f"-kernel inet_dist_use_interface {{{self.place.inner.replace('.', ',')}}} "
                "+sbwt none +sbwtdcpu none"
            ),
            **self.place.environment,
        }
        self._env = env
        if self._cluster is None or self._cluster.place != self.place:
            self._start_epmd()
        self.start_server()
        if self._cluster is not None:
            self.control("stop_app")
            self.control("join_cluster", self._cluster.node)
            self.control("start_app")

    def _start_epmd(self) -> None:
        epmd = "epmd" if self._enter else required("epmd", "erlang-base")
        command = [*self._enter, epmd, "-port", self._env["ERL_EPMD_PORT"]]
        self._run([*command, "-address", self.place.inner], "epmd.log", self._env)

        def is_up() -> bool:
            names = [*command, "-names"]
            return subprocess.run(names, capture_output=True, check=False).returncode == 0

        wait_until(is_up, "epmd is up", 20)

    def _listeners(self) -> str:
        return f"listeners.tcp.1 = {self.place.address}:{self.port}"

    def start_server(self) -> None:
        """Start the node, also again: on the same port, with what it kept on disk."""
        server = self._run([*self._enter, RABBITMQ_SERVER], "console.log", self._env)

        def is_up() -> bool:
            server.assert_running()
            return self.accepts_connections()

        wait_until(is_up, "rabbitmq accepts connections", 120, pause=0.05)

    def accepts_connections(self) -> bool:
        """Whether clients can connect."""
        return accepts_connections(self.port, self.place.address)

    def control(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` with *arguments*; what it printed."""
        command = [*self._enter, RABBITMQCTL, *arguments]
        done = subprocess.run(
            command, env=self._env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def close_connections(self) -> None:
        """Close all that clients and servers have opened."""
        self.control("close_all_connections", "a test")

    def write_elections(self) -> None:
        """Write out what it knows of the elections of quorum queues, as it does every few seconds.

        A queue that was declared after the last time has no leader for ever when the node is
        killed and started again, and neither declaring nor consuming it ends.
        """
        self.control("eval", "[dets:sync(Table) || Table <- dets:all()].")

    def kill_server(self) -> None:
        """End the node as a crash would. What is not on disk is lost."""
        self._processes.pop().kill()
        # The kernel may take a moment for the sockets of a process that has ended.
        wait_until(
            lambda: is_refused(self.port, self.place.address),
            "the port of the node is closed", 20, pause=0.05,
        )  # fmt: skip

    def signal_server(self, signo: signal.Signals) -> None:
        """Send *signo* to every process of the node; SIGSTOP is a machine that hangs."""
        for pid in self._processes[-1].family():
            os.kill(pid, signo)

    def _run(self, argv: list[str], log: str, env: dict[str, str]) -> RunningService:
        process = RunningService(argv, self.directory / log, env)
        self._processes.append(process)
        return process

    def pids(self) -> list[int]:
        """The processes of the node and its epmd."""
        return [pid for process in self._processes for pid in process.family()]

    def log_size(self) -> int:
        """The present end of the broker's log, for :meth:`log`."""
        return sum(path.stat().st_size for path in self._logs())

    def log(self, since: int = 0) -> str:
        """What the broker logged after *since*."""
        text = b"".join(path.read_bytes() for path in self._logs())
        return text[since:].decode(errors="replace")

    def _logs(self) -> list[Path]:
        return sorted((self.directory / "log").glob("*[!e].log"))

    def stop(self) -> None:
        """End both processes and prove it. There is nothing to save, so this is abrupt."""
        for process in reversed(self._processes):
            process.kill()
            assert not process.family()
        shutil.rmtree(self.directory, ignore_errors=True)


class Cluster:
    """RabbitMQ nodes that know each other. ``url`` names all of them, the first one first.

    :param configuration: further lines of each ``rabbitmq.conf``.
    :param places: of the nodes, this machine's unless given.
    """

    def __init__(
        self, size: int, release: str = "", *configuration: str, places: Sequence[Place] = ()
    ) -> None:
        self.nodes: list[Broker] = []
        try:
            for place in places or [Place()] * size:
                first = self.nodes[0] if self.nodes else None
                make = functools.partial(
                    Broker, release, *configuration, cluster=first, place=place
                )
                self.nodes.append(retried(make))
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        hosts = (f"{USER}:{PASSWORD}@{node.place.address}:{node.port}" for node in self.nodes)
        return f"rabbit://{','.join(hosts)}//"

    def stop(self) -> None:
        """End all nodes and prove it."""
        for node in reversed(self.nodes):
            node.stop()


class TlsBroker(Broker):
    """One that listens with TLS alone, on 127.0.0.1 and, by a name that its certificate does not
    have, on 127.0.0.2."""

    needs_client_certificate = False

    def _listeners(self) -> str:
        lines = tls_listeners(self.port, needs_client_certificate=self.needs_client_certificate)
        return "\n".join(["listeners.tcp = none", *lines])


def tls_listeners(port: int, *, needs_client_certificate: bool = False) -> list[str]:
    """Lines of ``rabbitmq.conf`` for TLS on *port* of 127.0.0.1, and of 127.0.0.2."""
    return [
        f"listeners.ssl.1 = 127.0.0.1:{port}",
        f"listeners.ssl.2 = 127.0.0.2:{port}",
        f"ssl_options.cacertfile = {CERTIFICATES / 'ca.crt'}",
        f"ssl_options.certfile = {CERTIFICATES / 'server.crt'}",
        f"ssl_options.keyfile = {CERTIFICATES / 'server.key'}",
        "ssl_options.verify = verify_peer",
        f"ssl_options.fail_if_no_peer_cert = {str(needs_client_certificate).lower()}",
    ]


class Database:
    """One MariaDB server. ``url(name)`` is what oslo.db takes."""

    def __init__(self) -> None:
        self._server = required("mariadbd", "mariadb-server")
        self._client = required("mariadb", "mariadb-client")
        self._dump = required("mariadb-dump", "mariadb-client")
        self._install = required("mariadb-install-db", "mariadb-server")
        # A unix socket's path is limited to 107 bytes: keep the directory's name short.
        self.directory = Path(tempfile.mkdtemp(prefix="osloxide-db-"))
        self.socket = self.directory / "socket"
        self.port = free_port()
        self._process: RunningService | None = None
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def url(self, name: str) -> str:
        return f"mysql+pymysql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{name}?charset=utf8mb3"

    def _start(self) -> None:
        data, user = self.directory / "data", getpass.getuser()
        install = subprocess.run(
            [
                self._install, "--no-defaults", f"--user={user}", f"--datadir={data}",
                "--auth-root-authentication-method=normal", "--skip-test-db",
                f"--tmpdir={self.directory}", "--innodb-log-file-size=8M",
            ],
            capture_output=True, text=True,
        )  # fmt: skip
        assert install.returncode == 0, install.stdout + install.stderr
        self._process = RunningService(
            [
                self._server, "--no-defaults", f"--user={user}", f"--datadir={data}",
                f"--socket={self.socket}", f"--pid-file={self.directory / 'pid'}",
                # A server that starts deletes what another one has of temporary tables there.
                f"--tmpdir={self.directory}",
                "--bind-address=127.0.0.1", f"--port={self.port}", "--skip-name-resolve",
                "--skip-log-bin", "--max-connections=1000", "--character-set-server=utf8mb3",
                "--innodb-flush-log-at-trx-commit=0", "--skip-innodb-doublewrite",
                "--debug-no-sync", "--innodb-buffer-pool-size=128M", "--innodb-log-file-size=8M",
            ],
            self.directory / "mariadb.log",
            clean_environment(),
        )  # fmt: skip

        def is_up() -> bool:
            assert self._process is not None
            self._process.assert_running()
            return self.socket.exists() and accepts_connections(self.port)

        wait_until(is_up, "mariadb accepts connections", 60, pause=0.05)
        self.sql(
            f"CREATE USER '{USER}'@'%' IDENTIFIED BY '{PASSWORD}'; GRANT ALL ON *.* TO '{USER}'@'%'"
        )

    def pids(self) -> list[int]:
        """The processes of the server."""
        return self._process.family() if self._process is not None else []

    def sql(self, statements: str, database: str = "") -> str:
        """Run *statements* as root and return what they print."""
        argv = [self._client, "--no-defaults", "-S", str(self.socket), "-uroot", "-N", "-B"]
        done = subprocess.run(
            [*argv, *([database] if database else [])],
            input=statements, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def locked(self, *tables: str) -> Iterator[None]:
        """Hold *tables* ("database.table"): all others who read or write them wait."""
        argv = [self._client, "--no-defaults", "-S", str(self.socket), "-uroot", "-N", "-B", "-n"]
        locks = ", ".join(f"{table} WRITE" for table in tables)
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(f"LOCK TABLES {locks}; SELECT 'locked';\n")
            client.stdin.flush()
            assert client.stdout.readline() == "locked\n"
            yield
            client.stdin.close()  # its session ends, and with it the locks

    def waiting(self) -> Counter[str]:
        """How many connections wait for a table, by the database that they use."""
        rows = self.sql(
            "SELECT db FROM information_schema.processlist WHERE state LIKE 'Waiting for table%'"
        )
        return Counter(rows.split())

    def create(self, names: list[str], key: str, fill: Callable[[], None]) -> float:
        """Create the databases *names*, empty, and let *fill* make their tables.

        The result is kept as a dump in the cache directory under *key*, so that *fill*, which takes
        a minute for cinder or nova, runs once for each set of pinned versions.

        :returns: seconds it took.
        """
        begin = time.monotonic()
        for name in names:
            self.sql(f"DROP DATABASE IF EXISTS {name}; CREATE DATABASE {name} CHARSET utf8mb3")
        dump = cache_directory() / f"{key}.sql"
        if dump.exists():
            self.sql("SET unique_checks=0, foreign_key_checks=0;\n" + dump.read_text())
            return time.monotonic() - begin
        fill()
        saved = subprocess.run(
            [
                self._dump, "--no-defaults", "-S", str(self.socket), "-uroot",
                "--databases", *names,
            ],
            capture_output=True, text=True,
        )  # fmt: skip
        assert saved.returncode == 0, saved.stderr
        part = dump.with_suffix(f".{os.getpid()}")
        part.write_text(saved.stdout)
        part.rename(dump)
        return time.monotonic() - begin

    def stop(self) -> None:
        """End the server and prove it."""
        if self._process is not None:
            if self._process.process.poll() is None:
                self._process.signal(signal.SIGKILL)
            self._process.kill()
            assert not self._process.family()
        shutil.rmtree(self.directory, ignore_errors=True)


def cache_directory() -> Path:
    """Where environments and schema dumps stay between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base) / "osloxide" / "services"
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def cache_lock(name: str) -> Iterator[None]:
    """Let one process at a time make the entry *name* of the cache."""
    with (cache_directory() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(*parts: str) -> str:
    """A short name for a set of inputs."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
