"""What clients that take nothing of their answers cost others: ``python benches/slow_readers.py``.

Opens *N* connections with the receive buffer of a narrow line; each asks for a whole answer of
100 kB and reads no byte of it. Before and meanwhile, one client asks for a short answer again and
again. Prints its latency, and what the server holds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import socket
import statistics
import sys
import time
from pathlib import Path

from measure import machine
from measure.peers import BENCHES, Serving

WHOLE = b"GET /whole HTTP/1.1\r\nHost: bench\r\n\r\n"
#: Seconds that the other client waits for an answer.
PATIENCE = 300
SHORT = b"GET /short HTTP/1.1\r\nHost: bench\r\n\r\n"


def slow(port: int) -> socket.socket:
    """A client whose kernel takes 2 KiB, in segments of Ethernet."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1448)
    client.connect(("127.0.0.1", port))
    client.sendall(WHOLE)
    return client


def latencies(port: int, seconds: float) -> list[float]:
    """Milliseconds of requests that one client makes, one after the other."""
    found = []
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until = time.monotonic() + seconds
        while (began := time.monotonic()) < until:
            client.sendall(SHORT)
            if not client.recv(4096).endswith(b"hello"):
                raise RuntimeError("the server did not answer")
            found.append((time.monotonic() - began) * 1e3)
    return found


def line(what: str, found: list[float]) -> str:
    p99 = statistics.quantiles(found, n=100)[98] if len(found) > 1 else found[0]
    return (
        f"{what:28} {len(found):7} requests, p50 {statistics.median(found):.2f} ms, "
        f"p99 {p99:.2f} ms, worst {max(found):.1f} ms"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("options", nargs="*", help="of osloxide serve, behind --")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        *("sh", "-c", 'echo "listening $0"; exec "$@"', str(port)),
        *(sys.executable, "-m", "osloxide", "serve", "bench_app:large", "--no-access-log"),
        *("--bind", f"127.0.0.1:{port}", "--log-level", "warning", *args.options),
    ]
    environment = dict(os.environ, PYTHONPATH=str(BENCHES / "programs"))
    server_cores, _ = machine.cores(1)
    with (
        Serving("osloxide", command, server_cores, environment) as serving,
        contextlib.ExitStack() as stack,
    ):
        print(line("alone", latencies(port, args.seconds)), flush=True)
        began = time.monotonic()
        for _ in range(args.readers):
            stack.enter_context(slow(port))
        print(f"{args.readers} slow readers came in {time.monotonic() - began:.1f} s", flush=True)
        print(line(f"beside {args.readers} slow readers", latencies(port, args.seconds)))
        print(f"PSS {machine.pss(serving.pids()) / 1024:.0f} MiB")
        if said := Path(serving.log_path).read_text().splitlines()[1:]:
            print(*said[-3:], sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
