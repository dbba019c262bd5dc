"""One process on two CPUs, with and without an interpreter lock.

Owns one table: requests per second where each request computes for about a millisecond of Python,
and where it does nothing, of osloxide on a default build of CPython, on a free-threaded one, and of
granian where it is installed there. Each interpreter is that of an environment with osloxide in it;
both should be the same version, built with the same flags (tools/free_threaded.py, ``--with-gil``).
Servers take turns, round by round: what else the machine does hits them alike. The client shares
the two CPUs, so the free-threaded server has less than two of them for itself.

On a machine with other work the requests per second say little, unless the bench goes first
(chrt(1), with a pause for the others before each round). Two columns hold there too: CPU per
request, and how many of the server's threads are at work at once on average, which run or would run
if a CPU were free. One means that they take turns, by the interpreter's lock or by another one.

    python benches/free_threading.py --default PYTHON --free PYTHON
    chrt -r 1 python benches/free_threading.py --default PYTHON --free PYTHON --seconds 1 --pause 2
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys

from measure import machine, wsgi
from measure.peers import Serving, command_of

#: Of each request: what it does, by the name of an application of bench_app.
WORKLOADS = {
    "1 ms of Python": wsgi.Workload("millisecond", "", "millisecond", connections=16, workers=1),
    "hello": wsgi.Workload("trivial", "", connections=16, workers=1),
}
HAS_LOCK = "import sys, osloxide._native; print(getattr(sys, '_is_gil_enabled', lambda: True)())"


def has_lock(interpreter: str) -> bool:
    """Whether the interpreter's lock is on once osloxide is imported."""
    done = subprocess.run([interpreter, "-c", HAS_LOCK], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


def can_import(interpreter: str, module: str) -> bool:
    return not subprocess.run(
        [interpreter, "-c", f"import {module}"], capture_output=True
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--default", required=True, metavar="PYTHON", help="with its lock")
    parser.add_argument("--free", required=True, metavar="PYTHON", help="without")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of each round")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds before each round")
    arguments = parser.parse_args()
    if not has_lock(arguments.default) or has_lock(arguments.free):
        sys.exit("--default must have its lock on, and --free must not, with osloxide imported")
    servers = [
        (f"{server}, {kind}", server, interpreter)
        for server in ("osloxide", "granian")
        for kind, interpreter in (("default", arguments.default), ("free", arguments.free))
        if can_import(interpreter, server)
    ]
    both, _ = machine.cores(2)
    is_sound = True
    for title, workload in WORKLOADS.items():
        rates: dict[str, list[float]] = {name: [] for name, _, _ in servers}
        costs: dict[str, list[float]] = {name: [] for name, _, _ in servers}
        threads: dict[str, list[float]] = {name: [] for name, _, _ in servers}
        with contextlib.ExitStack() as stack:
            up = []
            for name, server, interpreter in servers:
                app = f"bench_app:{workload.app}"
                options = wsgi.options_for(workload)
                command = command_of(server, app, interpreter, *options)
                up.append(stack.enter_context(Serving(name, command, both)))
            for name, measured in wsgi.in_turn(
                up, workload, both, arguments.rounds, arguments.seconds, arguments.pause
            ):
                rates[name].append(measured.rate)
                costs[name].append(measured.cpu_us)
                threads[name].append(measured.at_work)
                is_sound &= not measured.failed
        base = rates[servers[0][0]]
        print(f"\n{title}, {arguments.rounds} rounds of {arguments.seconds} s")
        head = "requests/s (least to most)   CPU us   threads   to the default build"
        print(f"{'server':<20} {head}")
        for name, seen in rates.items():
            # Round by round: both halves of a ratio were measured beside the same neighbours.
            ratio = statistics.median(
                ours / theirs for ours, theirs in zip(seen, base, strict=True)
            )
            span = f"{statistics.median(seen):8.0f} ({min(seen):.0f} to {max(seen):.0f})"
            cost, at_work = statistics.median(costs[name]), statistics.median(threads[name])
            print(f"{name:<20} {span:<28} {cost:7.0f} {at_work:9.2f}   {ratio:.2f}")
    return 0 if is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
