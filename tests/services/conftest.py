"""Fixtures of the service tests: the small service, and a table of the figures they print."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from waiting import wait_until

from services.infra import (
    RELEASES,
    Broker,
    Database,
    MissingProgramError,
    MissingTreeError,
    retried,
)
from services.load import Load
from services.ovsdb import Ovn
from services.processes import RunningService
from services.rpc import Send, Senders, options
from services.subject import IS_LONG, SUBJECT, clean_environment, small_service_command

_FIGURES: list[tuple[str, str]] = []

Figure = Callable[[str], None]


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Record what was measured: shown in the summary, also of a passing run."""

    def record(text: str) -> None:
        _FIGURES.append((request.node.name.removeprefix("test_"), text))
        print(f"figure: {text}")

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _FIGURES:
        terminalreporter.section(f"figures of {SUBJECT}")
        for name, text in _FIGURES:
            terminalreporter.write_line(f"{name}: {text}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that fails leaves sockets open; that must not fail the next one as well."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(
                pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
            )


Start = Callable[..., RunningService]


class Starter:
    """Starts programs, and ends what is left of them."""

    def __init__(self) -> None:
        self._running: list[RunningService] = []

    def __call__(
        self, argv: Sequence[str], log: Path, env: Mapping[str, str], prefix: Sequence[str] = ()
    ) -> RunningService:
        service = RunningService(argv, log, env, prefix)
        self._running.append(service)
        return service

    def end(self) -> dict[str, list[int]]:
        """Kill what is left, and name it."""
        left = [(service.name, service.kill()) for service in reversed(self._running)]
        return {name: pids for name, pids in left if pids}


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start programs that the test must end itself: the fixture fails it for any that it left.

    After a failed test everything is killed without further complaint.
    """
    starter = Starter()
    yield starter
    left = starter.end()
    if not request.node.stash.get(_FAILED, False):
        assert not left, f"the test left processes behind: {left}"


@pytest.fixture(scope="module")
def shared_start() -> Iterator[Start]:
    """Like ``start``, for services which the tests of one module share; they are stopped here."""
    starter = Starter()
    yield starter
    starter.end()


@pytest.fixture
def load() -> Iterator[Callable[..., Load]]:
    """Start load drivers; none outlives the test."""
    running: list[Load] = []

    def run(port: int, **options: object) -> Load:
        driver = Load(port, **options)  # type: ignore[arg-type]
        running.append(driver)
        return driver

    yield run
    for driver in running:
        driver.kill()


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if call.when == "call":
        item.stash[_FAILED] = report.failed  # type: ignore[attr-defined]
    return report


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Where the small RPC service notes what it has run."""
    path = tmp_path / "trace"
    path.touch()
    return path


@pytest.fixture
def send(broker: Broker) -> Iterator[Send]:
    """Start clients of the small RPC service; none outlives the test."""
    running: list[Senders] = []

    def run(kind: str, threads: int, **settings: int) -> Senders:
        running.append(Senders(broker.url, kind, threads, options(settings)))
        return running[-1]

    yield run
    for senders in running:
        with contextlib.suppress(AssertionError, ValueError):
            senders.kill()


class SmallService:
    """The small WSGI service, configured by one file which tests may rewrite."""

    def __init__(self, start: Start, directory: Path, prefix: Sequence[str] = ()) -> None:
        self.directory = directory
        self.config = directory / "small.conf"
        self.port_file = directory / "port"
        self.crash_file = directory / "crash"
        self.options: dict[str, object] = {
            "port_file": self.port_file,
            "crash_file": self.crash_file,
            "workers": 2,
            "graceful_shutdown_timeout": 30,
        }
        self.environment = clean_environment()
        self._start = start
        self._prefix = prefix

    def write(self, **options: object) -> None:
        """(Re)write the configuration file with *options* on top of the present ones.

        :param worker_timeout: goes to osloxide's own section, all others to ``[DEFAULT]``.
        """
        self.options.update(options)
        lines = [f"{n} = {v}" for n, v in self.options.items() if n != "worker_timeout"]
        if "worker_timeout" in self.options:
            lines += ["[osloxide]", f"worker_timeout = {self.options['worker_timeout']}"]
        self.config.write_text("\n".join(["[DEFAULT]", *lines, ""]))

    def launch(self, log: Path | None = None, **options: object) -> RunningService:
        """Start the service without waiting for anything."""
        self.write(**options)
        self.port_file.unlink(missing_ok=True)
        log = log or self.directory / "small.log"
        command = small_service_command(self.config)
        return self._start(command, log, self.environment, self._prefix)

    def start(self, log: Path | None = None, **options: object) -> RunningService:
        """Start the service and wait until every worker serves."""
        service = self.launch(log, **options)
        workers = int(str(self.options["workers"]))
        if service.log.is_file():
            service.wait_log("worker serves", times=workers)
        self.wait_port(service)
        service.wait_workers(workers)
        return service

    def wait_port(self, service: RunningService) -> None:
        def bound() -> bool:
            service.assert_running()
            return self.port_file.exists()

        wait_until(bound, "the small service is bound", 30)

    @property
    def port(self) -> int:
        return int(self.port_file.read_text())


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A RabbitMQ of our own; see infra.py."""
    yield from running(Broker)


@pytest.fixture(scope="module")
def durable_broker() -> Iterator[Broker]:
    """One for durable queues; on the shared one other tests declare the same as transient ones."""
    yield from running(Broker)


@pytest.fixture(
    scope="module",
    params=RELEASES if IS_LONG else RELEASES[:1],
    ids=lambda release: release or "host",
)
def release(request: pytest.FixtureRequest) -> str:
    """Of Debian, whose RabbitMQ a module's tests have; with OSLOXIDE_LONG=1 each in its turn."""
    chosen: str = request.param
    return chosen


def broker_of(release: str, *configuration: str) -> Iterator[Broker]:
    """A RabbitMQ of that release, with further lines of ``rabbitmq.conf``."""
    yield from running(partial(Broker, release, *configuration))


@pytest.fixture(scope="session")
def database() -> Iterator[Database]:
    """A MariaDB of our own; see infra.py."""
    yield from running(Database)


Server = TypeVar("Server", Broker, Database, Ovn)


def running(server: Callable[[], Server]) -> Iterator[Server]:
    """*server*, started; stopped when the iterator goes on. Without its release here: a skip."""
    try:
        running = retried(server)
    except MissingProgramError as error:
        pytest.fail(str(error), pytrace=False)
    except MissingTreeError as error:
        pytest.skip(str(error))
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def small(start: Start, tmp_path: Path) -> SmallService:
    return SmallService(start, tmp_path)
