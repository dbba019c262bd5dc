"""cinder 29's scheduler and volume under load, counted: what was asked for and what became of it.

Users create volumes through cinder-api, which takes a cast to the scheduler and one from there to
cinder-volume, and ask both for something in calls. Meanwhile the services get signals, are killed,
and their broker crashes. The database says what became of each volume, the log of cinder-volume how
often it was created. Queues are durable, as in production: the broker's memory is no excuse. With
OSLOXIDE_LONG=1 all of it on each release of RabbitMQ that there is.
"""

from __future__ import annotations

import functools
import http.client
import itertools
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from waiting import wait_until

from services.cinder import DATABASE, LOCK, PROJECT, Cinder, Client, Environment, stop_politely
from services.conftest import Figure, Start, broker_of
from services.infra import Broker, Database
from services.processes import RunningService

pytestmark = pytest.mark.timeout(300)

CREATORS = 2
CREATOR_PAUSE = 0.2
CALLERS = 2
"""Threads of users that make calls, for the scheduler and for cinder-volume each."""
CALLER_PAUSE = 0.05
LOST_AFTER = 5.0
"""Seconds without any progress, after which what is not created never will be."""
BASE = f"/v3/{PROJECT}"
CALLS = {
    "scheduler": f"{BASE}/scheduler-stats/get_pools",
    "volume": f"{BASE}/capabilities/osloxide-test@fake",
}
# Neither space nor quotas limit the users; a call's timeout is long enough for a restart. A
# scheduler that has just started lets requests wait in its threads until a backend has announced
# itself, for which it needs one more thread.
SETTINGS = """\
[DEFAULT]
scheduler_default_filters = CapabilitiesFilter
executor_thread_pool_size = 200
scheduler_driver_init_wait_time = 60
rpc_response_timeout = 30
[oslo_messaging_rabbit]
amqp_durable_queues = True
"""


class Users:
    """Requests to cinder-api without a pause until they are stopped."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self.volumes: list[str] = []
        """Ids of the volumes whose creation was accepted."""
        self.calls: Counter[str] = Counter()
        """Answered calls, by service."""
        self.failures: Counter[str] = Counter()
        steps = [(self._create, CREATOR_PAUSE)] * CREATORS
        for service in CALLS:
            steps += [(functools.partial(self._call, service), CALLER_PAUSE)] * CALLERS
        self._threads = [threading.Thread(target=self._go_on, args=step) for step in steps]
        for thread in self._threads:
            thread.start()

    def _go_on(self, step: Callable[[Client], None], pause: float) -> None:
        client = Client(self._port)
        while not self._ending.wait(pause):
            try:
                step(client)
            except (AssertionError, OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.failures[str(error).partition("{")[0][:80]] += 1
                client.close()
        client.close()

    def _create(self, client: Client) -> None:
        body = {"volume": {"size": 1, "name": "counted"}}
        volume = client.call("POST", f"{BASE}/volumes", body, 202)["volume"]
        with self._lock:
            self.volumes.append(volume["id"])

    def _call(self, service: str, client: Client) -> None:
        client.call("GET", CALLS[service], expected=200)
        with self._lock:
            self.calls[service] += 1

    def stop(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()


@dataclass
class Counted:
    """What became of the volumes and calls of one run."""

    sent: int
    calls: int
    failures: Counter[str]
    created: int
    told: list[str]
    """Not created, and the user sees it: the volume's status is ``error``."""
    lost: list[str]
    """Neither created nor given up."""
    doubled: list[str]
    """Created more than once."""

    def summary(self) -> str:
        return (
            f"{self.sent} volumes asked for, {self.created} created, {len(self.told)} in error, "
            f"{len(self.lost)} lost, {len(self.doubled)} doubled; {self.calls} calls answered, "
            f"failed {dict(self.failures)}"
        )


@dataclass
class Deployment:
    """All three services, running, with what users do to them."""

    cinder: Cinder
    broker: Broker
    database: Database
    start: Start
    api: RunningService
    scheduler: RunningService
    volume: RunningService
    _logs: list[RunningService] = field(default_factory=list)
    _users: list[Users] = field(default_factory=list)

    def restart(self, name: str) -> None:
        """Start *name* again after its end, as systemd would."""
        if name == "scheduler":
            self.scheduler = self.cinder.start_scheduler(self.start)
            return
        self._logs.append(self.volume)
        self.volume = self.cinder.start_volume(self.start)

    def users(self) -> Users:
        """Put users to work and wait until every part of the work has been seen."""
        users = Users(self.cinder.port)
        self._users.append(users)
        self.await_progress(users)
        return users

    def await_progress(self, users: Users, more: int = 6) -> None:
        """Wait until *more* volumes have been created without a request, and calls too."""
        seen, calls = len(users.volumes), users.calls.copy()

        def progressed() -> bool:
            fresh = users.volumes[seen:]
            return (
                len(fresh) >= more
                and all(users.calls[name] >= calls[name] + more for name in CALLS)
                and sum(status == "available" for status in self._status(fresh).values()) >= more
            )

        wait_until(progressed, f"{more} more volumes and calls", 90, pause=0.1)

    def count(self, users: Users) -> Counted:
        """End the users, let everything settle, and count."""
        users.stop()

        seen, since = -1, 0.0

        def settled() -> bool:
            nonlocal seen, since
            open_ = sum(state == "creating" for state in self._status(users.volumes).values())
            if open_ != seen:
                seen, since = open_, time.monotonic()
            return open_ == 0 or time.monotonic() > since + LOST_AFTER

        wait_until(settled, "every volume has settled", 120, pause=0.1)
        status = self._status(users.volumes)
        runs = Counter(
            itertools.chain.from_iterable(
                re.findall(r"Volume (\S+): being created as", service.text())
                for service in [*self._logs, self.volume]
            )
        )
        counted = Counted(
            sent=len(users.volumes),
            calls=users.calls.total(),
            failures=users.failures,
            created=sum(status[volume] == "available" for volume in users.volumes),
            told=[volume for volume in users.volumes if status[volume] == "error"],
            lost=[volume for volume in users.volumes if status[volume] == "creating"],
            doubled=[volume for volume in users.volumes if runs[volume] > 1],
        )
        assert all(runs[volume] for volume in users.volumes if status[volume] == "available")
        return counted

    def _status(self, volumes: list[str]) -> dict[str, str]:
        rows = self.database.sql("SELECT id, status FROM volumes", DATABASE).splitlines()
        wanted = set(volumes)
        found = dict(row.split("\t") for row in rows)
        return {volume: found[volume] for volume in wanted}

    def end_users(self) -> None:
        for users in self._users:
            users.stop()
        self._users.clear()


@pytest.fixture(scope="module")
def durable_broker(release: str) -> Iterator[Broker]:
    yield from broker_of(release)


@pytest.fixture(scope="module")
def services(
    durable_broker: Broker,
    database: Database,
    shared_start: Start,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    environment = Environment("cinder", LOCK, "cinder-api")
    directory = tmp_path_factory.mktemp("cinder")
    cinder = Cinder(environment, durable_broker.url, database, directory)
    cinder.write(workers=2, extra=SETTINGS)
    cinder.create_schema()
    database.sql("UPDATE quota_classes SET hard_limit = -1", DATABASE)
    volume = cinder.start_volume(shared_start)
    scheduler = cinder.start_scheduler(shared_start)
    api = cinder.start_api(shared_start)
    deployment = Deployment(cinder, durable_broker, database, shared_start, api, scheduler, volume)
    yield deployment
    for service in (deployment.api, deployment.scheduler, deployment.volume):
        assert stop_politely(service) == 0, service.text()[-3000:]


@pytest.fixture
def deployment(services: Deployment) -> Iterator[Deployment]:
    """The shared services; no user of one test is left to the next."""
    yield services
    services.end_users()


def nothing_lost_or_doubled(deployment: Deployment, users: Users, figure: Figure) -> Counted:
    """What became of all that *users* have sent, once they go on after a fault."""
    deployment.await_progress(users)
    counted = deployment.count(users)

    figure(counted.summary())
    assert counted.created == counted.sent
    assert not counted.doubled
    return counted


def test_sighup_loses_and_doubles_nothing(deployment: Deployment, figure: Figure) -> None:
    families = [[s.pid, *s.workers()] for s in (deployment.scheduler, deployment.volume)]
    users = deployment.users()

    for debug in (True, False):
        marks = [service.mark() for service in (deployment.scheduler, deployment.volume)]
        deployment.cinder.write(debug=debug)
        for service, mark in zip((deployment.scheduler, deployment.volume), marks, strict=True):
            service.signal(signal.SIGHUP)
            change = rf"DEFAULT.debug changed from \[{not debug}\]"
            service.wait_log(change, since=mark, times=1 + len(service.workers()))
    counted = nothing_lost_or_doubled(deployment, users, figure)
    assert not counted.failures
    assert families == [[s.pid, *s.workers()] for s in (deployment.scheduler, deployment.volume)]


def assert_harmed_at_most(asked_for: list[str], counted: Counted) -> None:
    """Nothing was doubled, and what did not get done was among what was *asked_for* in time."""
    assert {*counted.lost, *counted.told} <= set(asked_for)
    assert not counted.doubled
    # A call that was being answered ends by its timeout.
    assert sum(counted.failures.values()) <= CALLERS


def test_kill9_of_the_volume_worker_costs_at_most_what_ran(
    deployment: Deployment, figure: Figure
) -> None:
    users = deployment.users()
    (before,) = deployment.volume.workers()
    mark = deployment.volume.mark()

    os.kill(before, signal.SIGKILL)
    begun = len(users.volumes) + CREATORS  # of later ones the victim has never heard
    deployment.volume.wait_log("Driver post RPC initialization completed", 60, since=mark)
    deployment.await_progress(users)
    counted = deployment.count(users)

    figure(counted.summary())
    assert before not in deployment.volume.workers()
    assert_harmed_at_most(users.volumes[:begun], counted)


def test_kill9_of_the_scheduler_costs_at_most_what_ran(
    deployment: Deployment, figure: Figure
) -> None:
    users = deployment.users()

    deployment.scheduler.kill()
    begun = len(users.volumes) + CREATORS  # of later ones the victim has never heard
    deployment.restart("scheduler")
    deployment.await_progress(users)
    counted = deployment.count(users)

    figure(counted.summary())
    assert_harmed_at_most(users.volumes[:begun], counted)


def test_sigterm_and_a_new_start_lose_and_double_nothing(
    deployment: Deployment, figure: Figure
) -> None:
    users = deployment.users()

    for name in ("scheduler", "volume"):
        service = getattr(deployment, name)
        assert stop_politely(service) == 0, service.text()[-3000:]
        deployment.restart(name)
    counted = nothing_lost_or_doubled(deployment, users, figure)
    assert not counted.failures


def test_connections_that_the_broker_closes_lose_and_double_nothing(
    deployment: Deployment, figure: Figure
) -> None:
    users = deployment.users()

    for _ in range(2):
        deployment.broker.close_connections()
        deployment.await_progress(users)
    # What comes twice is known by its id, since one process runs all of it.
    counted = nothing_lost_or_doubled(deployment, users, figure)
    assert not counted.failures


def test_a_crash_of_the_broker_loses_and_doubles_no_cast(
    deployment: Deployment, figure: Figure
) -> None:
    families = [[s.pid, *s.workers()] for s in (deployment.scheduler, deployment.volume)]
    users = deployment.users()

    deployment.broker.kill_server()
    deployment.broker.start_server()
    # Confirmations get lost both ways; what comes twice is known by its id, since one process runs
    # all of it.
    counted = nothing_lost_or_doubled(deployment, users, figure)
    # Replies wait in transient queues: each call in flight may end by a timeout, once.
    assert sum(counted.failures.values()) <= 2 * CALLERS
    assert families == [[s.pid, *s.workers()] for s in (deployment.scheduler, deployment.volume)]
