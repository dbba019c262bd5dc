"""Measure osloxide beside its peers: ``python benches/run.py`` (what ``make bench`` calls).

Ends with status 1 when a request failed in any round. See README.md for what the figures mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from measure import (
    apis,
    cinder,
    executor,
    launchers,
    machine,
    peers,
    report,
    rpc,
    volumes,
    warm,
    wsgi,
)

#: osloxide's server without the oslo surface above it: for development.
NATIVE = "native"
PARTS = ("wsgi", "volumes", "apis", "launchers", "warm", "cinder", "executor", "rpc")


class Record:
    """JSON lines of one run, written as they come."""

    def __init__(self) -> None:
        directory = peers.ROOT / ".cache" / "bench"
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / time.strftime("%Y%m%dT%H%M%SZ.jsonl", time.gmtime())

    def line(self, **fields: Any) -> None:
        with self.path.open("a") as out:
            out.write(json.dumps(fields) + "\n")


Found = dict[str, list[report.Summary]]


def servers(args: argparse.Namespace, python: str) -> dict[str, str]:
    """Who is measured beside osloxide, and how each is started."""
    chosen = {report.SUBJECT: sys.executable}
    if wsgi.FLOOR in args.peers and wsgi.FLOOR_WORKLOADS & set(args.workloads):
        try:
            chosen[wsgi.FLOOR] = peers.floor()
        except (OSError, RuntimeError) as exc:
            print(f"left out {wsgi.FLOOR}: {exc}")
    if any(wsgi.WORKLOADS[name].native_log for name in args.workloads):
        chosen[wsgi.UNLOGGED] = sys.executable
    if args.against is not None:
        chosen[peers.BEFORE] = args.against
    return chosen | {name: python for name in args.peers if name != wsgi.FLOOR}


def run_wsgi(args: argparse.Namespace, record: Record, python: str, found: Found) -> str:
    """Every chosen workload on every chosen server; their tables."""
    text = "## WSGI server\n\n"
    chosen = servers(args, python)
    for name in args.workloads:
        workload = wsgi.WORKLOADS[name]
        rounds = wsgi.side_by_side(workload, chosen, args.rounds, args.seconds)
        text += summed_up(workload, rounds, record, found)
    return text


def summed_up(
    workload: wsgi.Workload,
    rounds: Iterable[tuple[str, wsgi.Round]],
    record: Record,
    found: Found,
) -> str:
    """One workload's table; puts its summaries into *found*."""
    by_server: dict[str, list[wsgi.Round]] = {}
    for server, measured in rounds:
        by_server.setdefault(server, []).append(measured)
        fields = dataclasses.asdict(measured)
        record.line(part="wsgi", workload=workload.name, server=server, **fields)
    found[workload.name] = [report.summarise(*item) for item in by_server.items()]
    table = report.wsgi_table(workload, found[workload.name])
    print(table, flush=True)
    return table


def run_volumes(args: argparse.Namespace, record: Record, found: Found) -> str:
    """cinder-api's tables for its list of volumes."""
    text = "## A real service\n\n"
    runs = volumes.run(args.rounds, max(args.seconds, 5))
    for workload, items in itertools.groupby(runs, key=lambda item: item[0]):
        rounds = [(server, measured) for _, server, measured in items]
        text += summed_up(workload, rounds, record, found)
    return text


def run_apis(args: argparse.Namespace, record: Record, python: str, found: Found) -> str:
    """Tables of real APIs beside uWSGI, on the same ini file."""
    text = "## Real APIs beside uWSGI\n\n"
    runs = apis.run(python, args.rounds, max(args.seconds, 5))
    for workload, items in itertools.groupby(runs, key=lambda item: item[0]):
        rounds = [(server, measured) for _, server, measured in items]
        text += summed_up(workload, rounds, record, found)
    return text


def draw(found: Found, python: str) -> None:
    """docs/benchmarks.svg, by the interpreter that has matplotlib."""
    figures = {
        name: {item.server: item.cpu_us for item in summaries if item.cpu_us}
        for name, summaries in found.items()
    }
    target = peers.ROOT / "docs" / report.PLOT
    program = peers.BENCHES / "measure" / "plot.py"
    subprocess.run(
        [python, str(program), str(target)], input=json.dumps(figures), text=True, check=True
    )
    print(f"wrote {target}")


def parse(arguments: list[str]) -> argparse.Namespace:
    def names(known: Any) -> Any:
        def split(value: str) -> list[str]:
            everybody = [name for name in known if name != NATIVE]
            chosen = everybody if value == "all" else [v for v in value.split(",") if v]
            if unknown := [v for v in chosen if v not in known]:
                raise argparse.ArgumentTypeError(f"{unknown} is none of {', '.join(known)}")
            return chosen

        return split

    def checkout(value: str) -> str:
        try:
            return peers.checkout(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=names(PARTS), default=list(PARTS))
    parser.add_argument(
        "--peers",
        type=names([wsgi.FLOOR, *peers.DISTRIBUTIONS, NATIVE]),
        default=[wsgi.FLOOR, "eventlet"],
        help=f"'all' or any of {', '.join([wsgi.FLOOR, *peers.DISTRIBUTIONS])} "
        "(default: floor,eventlet)",
    )
    parser.add_argument(
        "--workloads",
        type=names(wsgi.WORKLOADS),
        default=list(wsgi.WORKLOADS),
        help=f"any of {', '.join(wsgi.WORKLOADS)} (default: all)",
    )
    parser.add_argument(
        "--against",
        type=checkout,
        metavar="DIR",
        help="another checkout of osloxide, set up with 'make setup', as the server 'before' of "
        "the parts wsgi and rpc: what a change or a release costs",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each workload")
    parser.add_argument("--seconds", type=int, default=1, help="length of a round, at least 1")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    needs_peers = args.parts != ["rpc"] and (
        bool(args.peers) or args.parts != ["wsgi"] or args.write
    )
    python = peers.python() if needs_peers else sys.executable
    record = Record()
    absent = peers.absent(args.peers, peers.versions(python)) if "wsgi" in args.parts else []
    args.peers = [name for name in args.peers if name not in absent]
    if absent:
        print(f"left out, not installed in {peers.PEERS}: {', '.join(absent)}", file=sys.stderr)
    facts = machine.description()
    record.line(part="machine", command=["benches/run.py", *arguments], left_out=absent, **facts)
    text = ""
    found: Found = {}
    if "wsgi" in args.parts:
        text += run_wsgi(args, record, python, found)
    if "volumes" in args.parts:
        text += run_volumes(args, record, found)
    if "apis" in args.parts:
        text += run_apis(args, record, python, found)
    runs: dict[str, Callable[[], rpc.Tables]] = {
        "launchers": lambda: launchers.run(python, args.rounds),
        "warm": lambda: iter([warm.run(python)]),
        # Minutes each: a third of the rounds, and one at least.
        "cinder": lambda: cinder.run(max(1, args.rounds // 3)),
        "executor": lambda: executor.run(python, args.rounds),
        "rpc": lambda: rpc.run(args.rounds, args.seconds, args.against),
    }
    for part, tables in runs.items():
        if part in args.parts:
            for title, note, rows in tables():
                for row in rows:
                    record.line(part=part, title=title, **row)
                table = report.plain_table(title, note, rows)
                print(table, flush=True)
                text += table
    targets = report.targets_table(found)
    print(targets)
    sound = not any(item.failed for summaries in found.values() for item in summaries)
    # A subject that does not even start must not pass for one that did not fail.
    sound = sound and all(
        any(item.server == report.SUBJECT for item in summaries) for summaries in found.values()
    )
    installed = peers.versions(python)
    if "rpc" in args.parts:
        installed |= peers.versions(sys.executable)
    wanted = dict.fromkeys(["oslo.service", "eventlet", "cotyledon", "futurist"])
    if "rpc" in args.parts:
        wanted |= dict.fromkeys(["oslo.messaging", "kombu", "amqp"])
    wanted |= dict.fromkeys(
        peers.DISTRIBUTIONS[p].lower() for p in args.peers if p in peers.DISTRIBUTIONS
    )
    used = {name: installed[name] for name in wanted if name in installed}
    if args.write:
        command = shlex.join(["python", "benches/run.py", *arguments])
        # RPC needs a broker and takes as long as all the rest: it may be measured by itself.
        has_server = "wsgi" in args.parts
        # The parent of workers likewise: real cinder takes minutes.
        alone = "benchmarks-rpc.md" if "rpc" in args.parts else "benchmarks-launchers.md"
        name = "benchmarks.md" if has_server else alone
        target = peers.ROOT / "docs" / name
        by_hand = report.kept(target)
        page = report.document(command, facts, used, targets + text, has_server, absent, by_hand)
        target.write_text(page)
        if has_server:
            draw(found, python)
        print(f"wrote {target}")
    print(f"every measurement: {record.path}")
    if not sound:
        print("requests failed: see the last column", file=sys.stderr)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
