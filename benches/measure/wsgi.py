"""CPU per request, rate and latency of WSGI servers under wrk, round by round side by side."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from measure import machine
from measure.peers import (
    BEFORE,
    BENCHES,
    CERTIFICATES,
    CLIENT,
    Serving,
    command_of,
    obstacle,
)

#: Headers as python-novaclient sends them, through a proxy.
REALISTIC = {
    "User-Agent": "python-novaclient",
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "X-Auth-Token": "gAAAAABm" + "k7Zq" * 45,
    "X-OpenStack-Request-ID": "req-3c2b1a90-1111-2222-3333-444455556666",
    "OpenStack-API-Version": "compute 2.93",
    "X-Forwarded-For": "203.0.113.7",
    "X-Forwarded-Proto": "https",
}


@dataclass(frozen=True)
class Workload:
    """What is served and how it is asked for."""

    name: str
    says: str
    app: str = "trivial"
    path: str = "/"
    connections: int = 64
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "GET"
    body_bytes: int = 0
    threads: int | None = None
    access_log: bool = False
    #: osloxide's is written by the server itself, as ``osloxide serve --access-log`` does.
    native_log: bool = False
    tls: bool = False
    workers: int = 1
    #: Who can do it; ``None`` is everybody.
    servers: frozenset[str] | None = None


#: Servers of serve.py that write an access log when asked.
LOGGING = frozenset({"osloxide", "eventlet", "gunicorn", "granian"})
#: osloxide's server without a log, beside the one that writes it.
UNLOGGED = "unlogged"
#: That keep encrypted connections open (uWSGI's https-socket closes after each answer).
ENCRYPTING = frozenset({"osloxide", "eventlet", "gunicorn", "granian", "cheroot"})
#: That run several processes on one address.
PREFORKING = frozenset({"osloxide", "eventlet", "gunicorn", "granian", "uwsgi", "bjoern"})
#: The Rust program knows one answer only.
FLOOR = "floor"
FLOOR_WORKLOADS = frozenset({"trivial", "one", "headers", "close"})
#: By design: 100 requests a second of 10 ms each, whoever asks.
ONE_AT_A_TIME = frozenset({"bjoern", "fastwsgi", "fastpysgi"})
#: Where it says something that granian with its own choice of threads does not.
GRANIAN4_WORKLOADS = frozenset({"trivial", "one", "headers", "burning"})

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("trivial", "`hello`, 64 keep-alive connections"),
        Workload("one", "`hello`, 1 keep-alive connection", connections=1),
        Workload(
            "headers",
            "`hello` with the headers of a real client, 64 connections",
            path="/v2.1/servers/detail?limit=1000&marker=abc",
            headers=REALISTIC,
        ),
        Workload("blocking", "10 ms wait, 100 connections", "blocking", connections=100,
                 threads=100),
        Workload("mixed", "of 20 requests 16 trivial, 3 wait 5 ms, 1 computes 1 ms, 64 connections",
                 "mixed", threads=100),
        Workload("burning", "about 70 µs of Python, 64 connections", "burning"),
        Workload("post", "POST of 64 KiB, 64 connections", "reading", method="POST",
                 body_bytes=65536),
        Workload("mebibyte", "answer of 1 MiB, 16 connections", "mebibyte", connections=16),
        Workload("close", "a new connection for every request, 64 at a time",
                 headers={"Connection": "close"}),
        Workload("tls", "`hello`, 64 encrypted keep-alive connections", tls=True,
                 servers=ENCRYPTING),
        Workload("access-log", "`hello`, each request logged to a file", access_log=True,
                 servers=LOGGING),
        Workload("native-log", "`hello`, each request logged by the server itself to a file; "
                 "`unlogged` is osloxide without a log", access_log=True, native_log=True,
                 servers=frozenset({"osloxide", UNLOGGED, "uwsgi", "gunicorn", "granian"})),
        Workload("two-trivial", "as `trivial`, two workers on two cores", workers=2,
                 servers=PREFORKING),
        Workload("two-blocking", "as `blocking`, two workers on two cores", "blocking",
                 connections=100, threads=100, workers=2, servers=PREFORKING),
        Workload("two-mixed", "as `mixed`, two workers on two cores", "mixed", threads=100,
                 workers=2, servers=PREFORKING),
    )
}  # fmt: skip

DISTURBED = 0.15


@dataclass(frozen=True)
class Round:
    """One measurement of one server."""

    requests: int
    rate: float
    cpu_us: float
    user_us: float
    p50_us: float
    p99_us: float
    #: How many threads of the server ran, or would have if a CPU had been free, on average.
    at_work: float
    failed: int
    others: float
    pss_kib: int

    @property
    def is_disturbed(self) -> bool:
        return self.others > DISTURBED


def measure(serving: Serving, workload: Workload, cores: Sequence[int], seconds: int) -> Round:
    """Load *serving* for *seconds* and read what it cost."""
    environment = dict(
        os.environ,
        METHOD=workload.method,
        BODY_BYTES=str(workload.body_bytes),
        HEADERS="|".join(f"{name}={value}" for name, value in workload.headers.items()),
    )
    command = [
        "taskset", "-c", ",".join(map(str, cores)), CLIENT, "-t1", f"-c{workload.connections}",
        f"-d{seconds}s", "--timeout", "10s", "-s", str(BENCHES / "programs" / "report.lua"),
        serving.url + workload.path,
    ]  # fmt: skip
    busy, own, began = machine.busy(), machine.own_children(), time.monotonic()
    pids = serving.pids()
    before, before_partners = machine.cpu(pids), machine.cpu(serving.partners)
    ready = machine.ready(pids)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    # Workers forked during the round would be missed by *pids*; none of these servers forks then.
    ready = machine.ready(pids) - ready
    used = machine.cpu(pids) - before
    used_partners = machine.cpu(serving.partners) - before_partners
    passed = time.monotonic() - began
    known = used.total + used_partners.total + (machine.own_children() - own)
    others = machine.busy() - busy - known
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        raise RuntimeError(f"wrk failed on {serving.server}: {done.stdout}{done.stderr}")
    seen: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    count, duration = max(int(seen["requests"]), 1), seen["duration_us"] / 1e6
    return Round(
        requests=int(seen["requests"]),
        rate=count / duration,
        cpu_us=used.total / count * 1e6,
        user_us=used.user / count * 1e6,
        p50_us=float(seen["p50"]),
        p99_us=float(seen["p99"]),
        at_work=ready / duration,
        failed=sum(seen["failed"].values()) + (0 if seen["requests"] else 1),
        others=max(0.0, others / passed),
        pss_kib=machine.pss(serving.pids()),
    )


def options_for(workload: Workload) -> list[str]:
    """serve.py's options for *workload*."""
    options = ["--workers", str(workload.workers)]
    if workload.threads is not None:
        options += ["--threads", str(workload.threads)]
    if workload.headers.get("Connection") == "close":
        options += ["--keep-alive", "0"]
    if workload.access_log:
        options.append("--access-log")
    if workload.native_log:
        options.append("--native-log")
    if workload.tls:
        options += ["--certfile", str(CERTIFICATES / "server.crt")]
        options += ["--keyfile", str(CERTIFICATES / "server.key")]
    return options


def can_serve(name: str, workload: Workload) -> bool:
    if name == FLOOR:
        return workload.name in FLOOR_WORKLOADS
    if name == UNLOGGED:
        return workload.native_log
    if name in ONE_AT_A_TIME and workload.app == "blocking":
        return False
    if name == "granian4":
        return workload.name in GRANIAN4_WORKLOADS
    return workload.servers is None or name == BEFORE or name in workload.servers


def side_by_side(
    workload: Workload, servers: dict[str, str], rounds: int, seconds: int
) -> Iterator[tuple[str, Round]]:
    """Measure *servers* in *rounds*, rotating who comes first.

    :param servers: name -> interpreter, for the floor its program.
    """
    server_cores, client_cores = machine.cores(workload.workers)
    options = options_for(workload)
    with contextlib.ExitStack() as stack:
        up: list[Serving] = []
        for name, interpreter in servers.items():
            if not can_serve(name, workload):
                continue
            app = f"bench_app:{workload.app}"
            command = [interpreter]
            if name != FLOOR:
                command = command_of(name, app, interpreter, *options)
            try:
                serving = Serving(name, command, server_cores)
            except RuntimeError as exc:
                print(f"left out {name}: {exc}")
                continue
            serving.scheme = "https" if workload.tls else "http"
            up.append(stack.enter_context(serving))
        yield from in_turn(up, workload, client_cores, rounds, seconds)


def in_turn(
    up: list[Serving],
    workload: Workload,
    cores: Sequence[int],
    rounds: int,
    seconds: int,
    pause: float = 0.0,
) -> Iterator[tuple[str, Round]]:
    """Measure servers that are up, after one round that warms them.

    :param pause: seconds before each round.
    :raises RuntimeError: the load generator is neither installed nor can be.
    """
    if shutil.which(CLIENT) is None and (reason := obstacle(CLIENT)):
        raise RuntimeError(f"{CLIENT} makes the load, and is not installed: {reason}")
    for serving in up:
        measure(serving, workload, cores, 1)
    for number in range(rounds):
        turn = number % max(len(up), 1)
        for serving in up[turn:] + up[:turn]:
            time.sleep(pause)
            yield serving.server, measure(serving, workload, cores, seconds)
