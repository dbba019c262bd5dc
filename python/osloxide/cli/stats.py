"""The statistics of ``osloxide serve --stats``: uWSGI's JSON, for uwsgitop and exporters.

Owns the socket, shared by all workers, and the thread of each worker that answers on it; the parent
starts no thread. What is told is read from the scoreboard.

Rules: uWSGI's stats server: the document goes to each client that connects, nothing is asked.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from osloxide.cli import address, snapshot
from osloxide.cli.errors import CommandError
from osloxide.cli.uwsgi.reader import VERSION
from osloxide.threads import own

if TYPE_CHECKING:
    from collections.abc import Sequence

    from osloxide.cli.snapshot import Launcher, Worker

LOG = logging.getLogger("osloxide.serve")

_BACKLOG = 16
_CLIENT_TIMEOUT = 5.0
_HEAD = (
    "HTTP/1.0 200 OK\r\nConnection: close\r\nAccess-Control-Allow-Origin: *\r\n"
    "Content-Type: application/json\r\n\r\n"
)


class Place(NamedTuple):
    """Where one server listens.

    :param address: as :class:`~osloxide.cli.listen_queues.ListenQueue` has it.
    :param most: connections that can wait there to be accepted; 0 where it is not known.
    """

    address: str
    protocol: str
    most: int


class Stats:
    """Listens from the start; answers in workers.

    :param where: as :func:`osloxide.cli.address.parse` returns it.
    :param speaks_http: whether an HTTP head comes before the document.
    :raises CommandError: the address is taken.
    """

    def __init__(self, where: tuple[str, int] | str, speaks_http: bool) -> None:
        from osloxide.server.listener import address_of, listen_tcp, listen_unix

        try:
            if isinstance(where, str):
                self._listener = listen_unix("--stats", where, None, _BACKLOG)
            else:
                self._listener = listen_tcp("--stats", where[0], where[1], _BACKLOG)
        except OSError as error:
            raise CommandError(error.strerror or str(error)) from error
        self._head = _HEAD if speaks_http else ""
        self._places: list[Place] = []
        LOG.info("stats on %s", address.shown(*address_of(self._listener)))

    def answer(self, servers: Sequence[Any]) -> None:
        """Answer on a thread of this process, which serves *servers*."""
        most = _most_waiting()
        self._places = [
            Place(address.shown(it.host, it.port), it.wire_protocol, min(it.backlog, most))
            for it in servers
        ]
        own.start("stats", self._serve)

    def _serve(self) -> None:
        # A worker's launcher is its parent's; alone it is its own.
        view: snapshot.View | None = None
        self._listener.setblocking(True)
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                try:
                    view = view or snapshot.View(os.getpid())
                    client.settimeout(_CLIENT_TIMEOUT)
                    text = json.dumps(document(view.read(), self._places), indent=1)
                    client.sendall((self._head + text + "\n").encode())
                    if self._head:
                        client.shutdown(socket.SHUT_WR)
                        while client.recv(4096):
                            pass
                except (OSError, CommandError) as error:
                    LOG.debug("stats were not told: %s", error)


def _most_waiting() -> int:
    """More do not wait at any socket, whatever it was told (listen(2)); 0 where it is not known."""
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def document(launcher: Launcher, places: Sequence[Place]) -> dict[str, Any]:
    """What uWSGI's stats server would say of *launcher*."""
    started = time.time() - launcher.uptime
    waiting = {queue.address: queue.waiting for queue in launcher.listening}
    return {
        "version": VERSION,
        "listen_queue": sum(waiting.get(place.address, 0) for place in places),
        "listen_queue_errors": 0,
        "signal_queue": 0,
        "load": sum(worker.in_flight for worker in launcher.workers),
        "pid": launcher.pid,
        "uid": os.getuid(),
        "gid": os.getgid(),
        "cwd": os.getcwd(),
        "locks": [],
        "sockets": [
            {"name": place.address, "proto": place.protocol,
             "queue": waiting.get(place.address, 0), "max_queue": place.most, "shared": 0,
             "can_offload": 0}
            for place in places
        ],
        "workers": [_worker(worker, started) for worker in launcher.workers],
    }  # fmt: skip


def _worker(worker: Worker, started: float) -> dict[str, Any]:
    status = "busy" if worker.in_flight else "idle"
    if worker.state != "running":
        status = "cheap" if worker.pid is None else worker.state
    spawned = started if worker.uptime is None else time.time() - worker.uptime
    return {
        "id": worker.slot + 1,
        "pid": worker.pid or 0,
        "accepting": int(worker.state == "running"),
        "requests": worker.served,
        "delta_requests": worker.served,
        "exceptions": worker.figures.exceptions,
        "harakiri_count": worker.figures.timed_out,
        "signals": 0,
        "signal_queue": 0,
        "status": status,
        "rss": worker.rss_bytes or 0,
        "vsz": 0,
        "running_time": int(worker.figures.seconds * 1e6),
        "last_spawn": int(spawned),
        "respawn_count": worker.respawns + 1,
        "tx": worker.figures.sent_bytes,
        "avg_rt": _average_us(worker),
        "apps": [
            {"id": 0, "modifier1": 0, "mountpoint": "", "startup_time": 0,
             "requests": worker.served, "exceptions": worker.figures.exceptions, "chdir": ""}
        ],
        "cores": [
            {"id": number, "requests": worker.served if number == 0 else 0, "static_requests": 0,
             "routed_requests": 0, "offloaded_requests": 0, "write_errors": 0, "read_errors": 0,
             "in_request": int(number < worker.in_flight), "vars": [], "req_info": {}}
            for number in range(max(worker.threads, worker.in_flight, 1))
        ],
    }  # fmt: skip


def _average_us(worker: Worker) -> int:
    """Microseconds that a request of the slot took on average."""
    requests = sum(worker.figures.times.values())
    return int(worker.figures.seconds * 1e6 / requests) if requests else 0
