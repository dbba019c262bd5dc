"""What idle connections cost a server: ``python benches/idle_connections.py``.

Opens *N* connections, each of which has had one answer and says nothing more, to one server after
the other. Prints how much its memory has grown for each of them, its CPU in a few quiet seconds,
and how many it has kept. Judges nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import select
import socket
import sys
import time

from measure import machine, peers

REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
#: Seconds that a client waits for its answer before the server counts as one that holds no more.
PATIENCE = 10
#: Seconds in which clients come in altogether: some servers let one in each second at their bound.
OPENING = 60
#: Fewer connections than these say nothing of what one costs.
FEW = 100
#: Clients have addresses of their own, since one has 28,000 ports: 127.0.0.2 and on.
ADDRESSES = 8
SERVERS = ("osloxide", "eventlet", "gunicorn", "granian", "waitress", "cheroot")
#: Options of serve.py for servers that would end idle connections meanwhile.
OPTIONS = {"gunicorn": ("--keep-alive", "600"), "cheroot": ("--timeout", "600")}


def idle(port: int, number: int) -> socket.socket | None:
    """A client that has had one answer; None where the server gives none."""
    client = socket.socket()
    client.settimeout(PATIENCE)
    client.bind((f"127.0.0.{2 + number % ADDRESSES}", 0))
    try:
        client.connect(("127.0.0.1", port))
        client.sendall(REQUEST)
        if client.recv(4096).startswith(b"HTTP/1.1 200"):
            return client
    except OSError:
        pass
    client.close()
    return None


def kept(clients: list[socket.socket]) -> int:
    """How many of *clients* the server has neither closed nor spoken to."""
    poll = select.poll()
    for client in clients:
        poll.register(client, select.POLLIN | select.POLLRDHUP)
    return len(clients) - len(poll.poll(0))


def measured(server: str, python: str, count: int, seconds: float) -> str:
    """A row of the table for *server*."""
    command = peers.command_of(server, "bench_app:trivial", python, *OPTIONS.get(server, ()))
    path = os.pathsep.join([str(peers.BENCHES / "programs"), os.environ.get("PYTHONPATH", "")])
    environment = dict(os.environ, PYTHONPATH=path.rstrip(os.pathsep))
    server_cores, _ = machine.cores(1)
    with (
        peers.Serving(server, command, server_cores, environment) as serving,
        contextlib.ExitStack() as stack,
    ):
        for number in range(100):  # what the first requests load and make is not theirs
            if client := idle(serving.port, number):
                client.close()
        before = machine.pss(serving.pids())
        clients: list[socket.socket] = []
        until = time.monotonic() + OPENING
        while len(clients) < count and time.monotonic() < until:
            if not (client := idle(serving.port, len(clients))):
                break
            clients.append(stack.enter_context(client))
        began = machine.cpu(serving.pids())
        time.sleep(seconds)
        used = (machine.cpu(serving.pids()) - began).total
        held = kept(clients)
        grown = machine.pss(serving.pids()) - before
        each = f"{grown / held:.2f}" if held >= FEW else "-"
        return f"| {server} | {len(clients):,} | {held:,} | {each} | {100 * used / seconds:.1f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5, help="how long nothing is said")
    parser.add_argument("--servers", default=",".join(SERVERS))
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print("| server | opened | kept | KiB each | % of a CPU while idle |\n|---|---|---|---|---|")
    python = ""
    for server in args.servers.split(","):
        if server != "osloxide":
            python = python or peers.python()
        interpreter = sys.executable if server == "osloxide" else python
        print(measured(server, interpreter, args.connections, args.seconds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
