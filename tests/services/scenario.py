"""What every API goes through, whichever way it was started: work, reload, kill, stop, under load.

Owns the clients that ask all the time, and what counts as a loss. Knows no API and no way of
starting one. Decides nothing about right and wrong either: :class:`Outcome` says what happened, and
test_real_apis.py compares.
"""

from __future__ import annotations

import http.client
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from waiting import wait_until

from osloxide._native import Scoreboard
from services.apis import Api, WrongStatusError, ask
from services.calls import Call
from services.processes import RunningService

CLIENTS = 3
_ANSWERS = 20
"""How many answers make a load, before and after each signal."""
_PATIENCE = 180.0
"""Seconds for one step, on a machine that does other things as well."""
_LOADING = 120.0
"""Seconds for a worker to load its application there."""


@dataclass
class Outcome:
    """What happened to one API that was started in one way; counts are of requests.

    :ivar workers: that were there after the start.
    :ivar worked: requests of the API's own work, before and after the signals.
    :ivar reload_lost, kill_lost, stop_lost: what became of requests that were not answered well.
    :ivar stop_refused: connections that were refused after the stop had begun.
    :ivar status: the exit status after SIGTERM.
    :ivar left: processes that had to be killed.
    """

    workers: int = 0
    worked: int = 0
    reload_answered: int = 0
    reload_lost: list[str] = field(default_factory=list)
    kill_answered: int = 0
    kill_lost: list[str] = field(default_factory=list)
    stop_answered: int = 0
    stop_lost: list[str] = field(default_factory=list)
    stop_refused: int = 0
    status: int | None = None
    left: list[int] = field(default_factory=list)


class Clients:
    """Threads that send the same request again and again, each time on a new connection.

    A client ends when its connection is refused.

    :param behind_proxy: 502 is what a proxy answers when it was refused, once a stop has begun.
    :ivar stopping: set it when the stop begins; before that, a refusal is a loss.
    """

    def __init__(self, call: Call, api: Api, behind_proxy: bool) -> None:
        self._call, self._request, self._names = call, api.load, api.names
        self._behind_proxy = behind_proxy
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._lost: list[str] = []
        self._taken = 0
        self.answered = self.refused = 0
        self.stopping = False
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._ends.is_set():
            try:
                ask(self._call, self._request, self._names)
            except WrongStatusError as error:
                if error.status == 502 and self._behind_proxy and self.stopping:
                    self._end_refused()
                    return
                self._lose(str(error)[:300])
            except (OSError, http.client.HTTPException) as error:
                is_refusal = isinstance(error, ConnectionRefusedError | FileNotFoundError)
                if is_refusal and self.stopping:
                    self._end_refused()
                    return
                self._lose(repr(error))
            else:
                with self._lock:
                    self.answered += 1

    def _end_refused(self) -> None:
        with self._lock:
            self.refused += 1

    def _lose(self, what: str) -> None:
        with self._lock:
            self._lost.append(what)

    def wait_more(self, count: int) -> None:
        """Wait for so many further answers."""
        wanted = self.answered + count
        wait_until(lambda: self.answered >= wanted, "answers", _PATIENCE)

    def wait_refused(self) -> None:
        """Wait until every client was refused."""
        wait_until(lambda: self.refused == CLIENTS, "every client is refused", _PATIENCE)

    def end(self) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(_PATIENCE)

    def take(self) -> tuple[int, list[str]]:
        """Answered and lost since the last time."""
        with self._lock:
            taken = self.answered - self._taken, self._lost
            self._taken, self._lost = self.answered, []
            return taken


def ready(service: RunningService) -> list[int]:
    """Workers that serve, as the service's scoreboard has them."""
    rows = Scoreboard.attach(service.pid).read()
    return [row["pid"] for row in rows if row["state"] == "running"]


def go_through(
    api: Api,
    service: RunningService,
    call: Call,
    workers: int,
    is_up: Callable[[], bool],
    proxy_log: Path | None = None,
) -> Outcome:
    """Let *service*, which was started just now, do its work and lose nothing.

    :param workers: how many it has to have.
    :param is_up: whether it listens.
    :param proxy_log: the errors of the proxy in front. It answers 502 where the service refused and
        where it lost a request; only its log tells which.
    """
    outcome = Outcome()

    def up() -> bool:
        service.assert_running()
        return is_up()

    wait_until(up, f"{api.name}: it listens", _PATIENCE)
    outcome.workers = len(service.wait_workers(workers, _PATIENCE))
    outcome.worked = api.use(call)
    clients = Clients(call, api, proxy_log is not None)
    try:
        clients.wait_more(_ANSWERS)
        clients.take()

        before = set(service.workers())
        service.signal(signal.SIGHUP)
        wait_until(
            lambda: len(now := set(service.workers())) == workers and not before & now,
            # One after the other, and each imports the whole application.
            f"{api.name}: new workers", _PATIENCE + _LOADING * workers,
        )  # fmt: skip
        clients.wait_more(_ANSWERS)
        outcome.reload_answered, outcome.reload_lost = clients.take()

        victim = service.workers()[0]
        os.kill(victim, signal.SIGKILL)
        clients.wait_more(_ANSWERS)
        wait_until(
            lambda: victim not in (now := ready(service)) and len(now) == workers,
            f"{api.name}: another worker serves", _PATIENCE,
        )  # fmt: skip
        outcome.worked += api.use(call)
        outcome.kill_answered, outcome.kill_lost = clients.take()

        mark = 0 if proxy_log is None else proxy_log.stat().st_size
        clients.stopping = True
        service.signal(signal.SIGTERM)
        outcome.status = service.wait_exit(_PATIENCE)
        clients.wait_refused()
    finally:
        clients.end()
    outcome.stop_answered, outcome.stop_lost = clients.take()
    outcome.stop_refused = clients.refused
    if proxy_log is not None:
        told = proxy_log.read_bytes()[mark:].decode(errors="replace").splitlines()
        outcome.stop_lost += [line for line in told if "Connection refused" not in line]
    outcome.left = service.kill()
    return outcome
