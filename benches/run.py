"""Measure osloxide beside its peers: ``python benches/run.py`` (what ``make bench`` calls).

Ends with status 1 when a request failed in any round. See README.md for what the figures mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import time
from typing import Any

from measure import cinder, executor, launchers, machine, peers, report, rpc, wsgi

PARTS = ("wsgi", "launchers", "cinder", "executor", "rpc")


class Record:
    """JSON lines of one run, written as they come."""

    def __init__(self) -> None:
        directory = peers.ROOT / ".cache" / "bench"
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / time.strftime("%Y%m%dT%H%M%SZ.jsonl", time.gmtime())

    def line(self, **fields: Any) -> None:
        with self.path.open("a") as out:
            out.write(json.dumps(fields) + "\n")


def run_wsgi(args: argparse.Namespace, record: Record, python: str) -> tuple[str, bool]:
    """Every chosen workload on every chosen server; the tables, and whether nothing failed."""
    servers = {report.SUBJECT: sys.executable}
    servers |= {name: python for name in args.peers if name != report.SUBJECT}
    text, sound = "## WSGI server\n\n", True
    for name in args.workloads:
        workload = wsgi.WORKLOADS[name]
        found: dict[str, list[wsgi.Round]] = {}
        for server, measured in wsgi.side_by_side(workload, servers, args.rounds, args.seconds):
            found.setdefault(server, []).append(measured)
            fields = dataclasses.asdict(measured)
            record.line(part="wsgi", workload=name, server=server, **fields)
        summaries = [report.summarise(server, rounds) for server, rounds in found.items()]
        table = report.wsgi_table(workload, summaries)
        print(table, flush=True)
        text += table
        sound = sound and not any(item.failed for item in summaries)
    return text, sound


def parse(arguments: list[str]) -> argparse.Namespace:
    def names(known: Any) -> Any:
        def split(value: str) -> list[str]:
            chosen = list(known) if value == "all" else [v for v in value.split(",") if v]
            if unknown := [v for v in chosen if v not in known]:
                raise argparse.ArgumentTypeError(f"{unknown} is none of {', '.join(known)}")
            return chosen

        return split

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=names(PARTS), default=list(PARTS))
    parser.add_argument(
        "--peers",
        type=names([*peers.DISTRIBUTIONS, "native"]),
        default=["eventlet"],
        help=f"'all' or any of {', '.join(peers.DISTRIBUTIONS)} (default: eventlet)",
    )
    parser.add_argument(
        "--workloads",
        type=names(wsgi.WORKLOADS),
        default=list(wsgi.WORKLOADS),
        help=f"any of {', '.join(wsgi.WORKLOADS)} (default: all)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each workload")
    parser.add_argument("--seconds", type=int, default=3, help="length of a round, at least 1")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    needs_peers = args.parts != ["rpc"] and (bool(args.peers) or args.parts != ["wsgi"])
    python = peers.python() if needs_peers else sys.executable
    record = Record()
    facts = machine.description()
    record.line(part="machine", command=["benches/run.py", *arguments], **facts)
    text, sound = "", True
    if "wsgi" in args.parts:
        wsgi_tables, sound = run_wsgi(args, record, python)
        text += wsgi_tables
    runs = {
        "launchers": lambda: launchers.run(python, args.rounds),
        "cinder": lambda: cinder.run(args.rounds),
        "executor": lambda: executor.run(python, args.rounds),
        "rpc": lambda: rpc.run(args.rounds, args.seconds),
    }
    for part, tables in runs.items():
        if part in args.parts:
            for title, note, rows in tables():
                for row in rows:
                    record.line(part=part, title=title, **row)
                table = report.plain_table(title, note, rows)
                print(table, flush=True)
                text += table
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
        name = "benchmarks-rpc.md" if "wsgi" not in args.parts else "benchmarks.md"
        target = peers.ROOT / "docs" / name
        target.write_text(report.document(command, facts, used, text))
        print(f"wrote {target}")
    print(f"every measurement: {record.path}")
    if not sound:
        print("requests failed: see the last column", file=sys.stderr)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
