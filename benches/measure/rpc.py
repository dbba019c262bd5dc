"""RPC servers beside each other: oslo.messaging's eventlet and threading executors, and osloxide.

Over RabbitMQ every server is called by the same unchanged client (oslo.messaging on threads);
within one process each flavour has both ends. All of them are up at once, and each round measures
every one of them, in rotating order.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from services.infra import CERTIFICATES, Broker, retried, tls_listeners
from services.processes import free_port

from measure import machine
from measure.peers import BEFORE, BENCHES, beside

FLAVOURS = ("osloxide", "threading", "eventlet")
OVER_TLS = " over TLS"
"""Ends the name of an executor whose server and client speak TLS to the broker."""
CLIENTS = ("native-client", "osloxide", "threading")
"""Who calls one and the same server: osloxide without kombu, osloxide, and stock."""
ENDS = (
    ("native-client", "native-client"),
    (f"native-client{OVER_TLS}", f"native-client{OVER_TLS}"),
    ("threading", "native-client"),
    ("native-client", "osloxide"),
    ("osloxide", "osloxide"),
    ("threading", "threading"),
    ("eventlet", "eventlet"),
)
"""Clients and servers that are beside each other: both without kombu, one of them, neither."""
CALLERS = (1, 16, 64)
IDLE_SECONDS = 5
#: Longer than osloxide's threads (15 s) and connections (60 s, looked after every 30 s) stay idle.
SHRINK_SECONDS = 100
MEMORY = {"osloxide": "osloxide+memory://", "threading": "fake://", "eventlet": "fake://"}


class Peer:
    """rpc_peer.py, running.

    :param interpreter: that of the other checkout, for the flavour :data:`peers.BEFORE`.
    """

    def __init__(
        self, role: str, flavour: str, url: str, topic: str, interpreter: str = sys.executable
    ) -> None:
        self.flavour = flavour
        flavour = flavour.removesuffix(OVER_TLS)
        program = str(BENCHES / "programs" / "rpc_peer.py")
        if flavour == BEFORE:
            # Its own program knows the names of its own modules.
            flavour, program = "osloxide", beside(interpreter, program)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by stop())
        self.process = subprocess.Popen(
            [interpreter, program, role, flavour, url, topic],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        if self._line(60).strip() != "READY":
            self.stop()
            raise RuntimeError(f"{role} on {flavour} did not start")

    def _line(self, seconds: float) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"{self.flavour} says nothing:\n{self._errors.read()[-2000:]}")
        return line

    def measure(self, callers: int, seconds: float, pause: float = 0.0) -> dict[str, Any]:
        """Have *callers* call for *seconds*; each call waits *pause* seconds in the endpoint."""
        assert self.process.stdin is not None
        print(callers, seconds, pause, file=self.process.stdin, flush=True)
        measured: dict[str, Any] = json.loads(self._line(seconds + 120))
        return measured

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def sockets(self) -> int:
        # By inode: osloxide writes through a second descriptor of the same socket.
        found = set()
        for fd in os.scandir(f"/proc/{self.process.pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(fd.path))
        return sum(name.startswith("socket:") for name in found)

    def stop(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Peak:
    """The most threads that a process had while this was open."""

    def __init__(self, peer: Peer) -> None:
        self.most = 0
        self._peer = peer
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._ending.wait(0.05):
            self.most = max(self.most, self._peer.threads())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()


def _measure(caller: Peer, server: Peer, callers: int, seconds: float) -> dict[str, float]:
    pids = [server.process.pid]
    before = machine.cpu(pids)
    with _Peak(server) as peak:
        done = caller.measure(callers, seconds)
    used = machine.cpu(pids) - before
    if done["failed"]:
        raise RuntimeError(f"{server.flavour}: {done['failed']} calls failed")
    return {
        "calls/s": done["calls"] / done["seconds"],
        "p50 ms": done["p50"] * 1e3,
        "p99 ms": done["p99"] * 1e3,
        "CPU µs/call": used.total / done["calls"] * 1e6,
        "threads": float(peak.most),
        "PSS MiB": machine.pss(pids) / 1024,
    }


Pairs = dict[str, tuple[Peer, Peer]]
Tables = Iterator[tuple[str, str, list[dict[str, Any]]]]


def _rounds(pairs: Pairs, rounds: int, seconds: float) -> list[dict[str, Any]]:
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for caller, server in pairs.values():
        _measure(caller, server, 16, 1)  # connections, caches
    for number in range(rounds):
        for callers in CALLERS:
            order = list(pairs)
            for flavour in order[number % len(order) :] + order[: number % len(order)]:
                measured = _measure(*pairs[flavour], callers, seconds)
                found.setdefault((callers, flavour), []).append(measured)
    rows: list[dict[str, Any]] = []
    for (callers, flavour), measured_rows in sorted(found.items(), key=lambda it: it[0][0]):
        keys = measured_rows[0]
        medians = {key: statistics.median(row[key] for row in measured_rows) for key in keys}
        rows.append({"callers": callers, "executor": flavour, **medians})
    return rows


def _ends(
    plain_url: str, tls_url: str, broker: Broker, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Pairs of clients and servers beside each other: who uses how much."""
    with contextlib.ExitStack() as stack:
        pairs: Pairs = {}
        for client, server in ENDS:
            topic = f"bench-{client}-{server}".replace(" ", "-")
            url = tls_url if server.endswith(OVER_TLS) else plain_url
            served = stack.enter_context(Peer("server", server, url, topic))
            calling = stack.enter_context(Peer("client", client, url, topic))
            pairs[f"{client} → {server}"] = (calling, served)
        return _sides(pairs, broker, rounds, seconds)


def _clients(url: str, broker: Broker, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Clients beside each other, on one server: who uses how much."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Peer("server", "osloxide", url, "bench-clients"))
        pairs = {
            name: (stack.enter_context(Peer("client", name, url, "bench-clients")), server)
            for name in CLIENTS
        }
        return _sides(pairs, broker, rounds, seconds)


def _sides(pairs: Pairs, broker: Broker, rounds: int, seconds: float) -> list[dict[str, Any]]:
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for client, server in pairs.values():
        _measure(client, server, 16, 1)  # connections, caches
    for number in range(rounds):
        for callers in CALLERS:
            order = list(pairs)
            for name in order[number % len(order) :] + order[: number % len(order)]:
                client, server = pairs[name]
                sides = {
                    "client": [client.process.pid],
                    "server": [server.process.pid],
                    "broker": broker.pids(),
                }
                before = {side: machine.cpu(pids) for side, pids in sides.items()}
                measured = _measure(client, server, callers, seconds)
                calls = measured["calls/s"] * seconds
                row = {key: measured[key] for key in ("calls/s", "p50 ms", "p99 ms")}
                for side, pids in sides.items():
                    used = machine.cpu(pids) - before[side]
                    row[f"{side} CPU µs/call"] = used.total / calls * 1e6
                found.setdefault((callers, name), []).append(row)
    rows: list[dict[str, Any]] = []
    for (callers, name), measured_rows in sorted(found.items(), key=lambda it: it[0][0]):
        keys = measured_rows[0]
        medians = {key: statistics.median(row[key] for row in measured_rows) for key in keys}
        rows.append({"callers": callers, "client": name, **medians})
    return rows


def _after_a_burst(pairs: Pairs) -> list[dict[str, Any]]:
    """64 calls that wait at once; then nothing."""
    rows: dict[str, dict[str, Any]] = {}
    for flavour, (caller, server) in pairs.items():
        with _Peak(server) as peak:
            caller.measure(64, 2, 0.2)
        rows[flavour] = {"executor": flavour, "threads in a burst of 64": peak.most}
    time.sleep(SHRINK_SECONDS)  # the thing measured: what goes away by itself
    before = {}
    for flavour, (_, server) in pairs.items():
        pid = server.process.pid
        before[flavour] = machine.switches(pid), machine.cpu([pid])
    time.sleep(IDLE_SECONDS)  # the thing measured: what idling costs
    for flavour, (_, server) in pairs.items():
        switches, cpu = before[flavour]
        used = machine.cpu([server.process.pid]) - cpu
        woken = machine.switches(server.process.pid) - switches
        rows[flavour] |= {
            f"threads {SHRINK_SECONDS} s later": server.threads(),
            "sockets": server.sockets(),
            "idle wake-ups/s": woken / IDLE_SECONDS,
            "idle CPU ms/s": used.total / IDLE_SECONDS * 1e3,
        }
    return list(rows.values())


def run(rounds: int, seconds: float, against: str | None = None) -> Tables:
    """Tables of calls over RabbitMQ, of what a burst leaves behind, and of calls in one process.

    :param against: the interpreter of another checkout, measured as one more executor.
    :raises RuntimeError: a call failed, or RabbitMQ is not installed.
    """
    note = (
        f"Echo with a context of about 500 bytes, medians of {rounds} rounds of {seconds:g} s, "
        "each executor in each round. "
    )
    flavours = dict.fromkeys(FLAVOURS, sys.executable)
    memory = dict(MEMORY)
    if against is not None:
        flavours[BEFORE] = against
        memory[BEFORE] = MEMORY["osloxide"]
    both_ways = flavours | {f"{name}{OVER_TLS}": flavours[name] for name in FLAVOURS[:2]}
    with contextlib.ExitStack() as stack:
        tls_port = free_port()
        broker = retried(lambda: Broker("", *tls_listeners(tls_port)))
        stack.callback(broker.stop)
        query = urllib.parse.urlencode({"ssl": 1, "ssl_ca_file": CERTIFICATES / "ca.crt"})
        tls_url = f"{broker.url.replace(str(broker.port), str(tls_port))}?{query}"
        pairs: Pairs = {}
        for flavour, python in both_ways.items():
            topic = f"bench-{flavour.replace(' ', '-')}"
            url = tls_url if flavour.endswith(OVER_TLS) else broker.url
            server = stack.enter_context(Peer("server", flavour, url, topic, python))
            client = Peer("client", "threading", url, topic)
            pairs[flavour] = (stack.enter_context(client), server)
        yield (
            "RPC over RabbitMQ",
            note + "The client is the same for all: oslo.messaging on threads. CPU, threads and "
            "memory are the server's.",
            _rounds(pairs, rounds, seconds),
        )
        yield (
            "RPC clients over RabbitMQ",
            note + "The server is osloxide's for all.",
            _clients(broker.url, broker, rounds, seconds),
        )
        yield (
            "RPC with and without kombu at either end",
            note + "`client → server`; `native-client` is osloxide without kombu, whichever end.",
            _ends(broker.url, tls_url, broker, rounds, seconds),
        )
        yield (
            "What a burst leaves behind",
            "An RPC server on RabbitMQ after 64 concurrent calls that wait 0.2 s each.",
            _after_a_burst(pairs),
        )
    with contextlib.ExitStack() as stack:
        pairs = {}
        for flavour, python in flavours.items():
            both = stack.enter_context(Peer("both", flavour, memory[flavour], "bench", python))
            pairs[flavour] = (both, both)
        yield (
            "RPC within one process",
            note + "`osloxide+memory://` beside `fake://`. CPU, threads and memory are those of "
            "server and callers together.",
            _rounds(pairs, rounds, seconds),
        )


def check_broker() -> str | None:
    """Why there can be no measurement here; None when there can."""
    server = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return None if server.exists() else f"{server} is missing; `make services-setup` installs it"
