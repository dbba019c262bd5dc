"""``python -m conformance SERVER...``: run rows against servers and print what held.

With ``--markdown FILE`` the table is written there: that is how docs/conformance.md is made, by one
run or by several that share a ``--store FILE``, of which a later one judges some ``--rows`` anew.
Peers run under ``--python``, an interpreter that has them installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from conformance import ALL_ROWS
from conformance.manner import MANNERS, PLAIN, Manner
from conformance.report import markdown
from conformance.target import Target
from conformance.verdict import SHORT, SHORT_TIMEOUT_ROWS, judge, not_for

Verdicts = dict[str, tuple[bool, str]]
Results = dict[tuple[str, str], Verdicts]

#: Peers are judged in the first manners of a run, the subject in all of them.
PEER_MANNERS = 2
#: Servers that leave TLS to a proxy.
WITHOUT_TLS = ("waitress", "bjoern", "fastwsgi", "wsgiref", "native")
#: Servers that are distributions of that name.
PEERS = ("eventlet", "gunicorn", "granian", "waitress", "cheroot", "bjoern", "fastwsgi")


def run(server: str, python: str, names: list[str], manner: Manner, *, verbose: bool) -> Verdicts:
    """Judge *names* on one server, those that need a short client timeout on a second one."""
    verdicts: Verdicts = {}
    for short in (False, True):
        chosen = [
            name
            for name in names
            if (name in SHORT_TIMEOUT_ROWS) == short and name not in not_for(manner)
        ]
        if not chosen:
            continue
        options = ["--access-log", *(["--timeout", str(SHORT)] if short else [])]
        target = Target(server, *options, python=python, manner=manner)
        try:
            for name in chosen:
                began = time.monotonic()
                verdicts[name] = judge(ALL_ROWS[name], target)
                held, note = verdicts[name]
                if verbose or not held:
                    took = time.monotonic() - began
                    mark = "ok" if held else "X"
                    print(f"{server:10} {manner.name:11} {mark:3} {name:30} {took:5.1f} s  {note}")
                if not target.is_alive():
                    target.stop()
                    target = Target(server, *options, python=python, manner=manner)
        finally:
            target.stop()
    return {name: verdicts[name] for name in names if name in verdicts}


def about(interpreter: str, results: Results) -> str:
    """The date, the machine, and the peers of *results* with the versions of their interpreter."""
    code = "import importlib.metadata as m, sys\nfor n in sys.argv[1:]: print(n, m.version(n))"
    peers = [name for name in dict.fromkeys(server for server, _ in results) if name in PEERS]
    listed = subprocess.run(
        [interpreter, "-c", code, *peers], capture_output=True, text=True, check=True
    )
    versions = ", ".join(listed.stdout.splitlines())
    machine = f"{os.cpu_count()} CPUs with a load of {os.getloadavg()[2]:.0f}"
    python = f"CPython {platform.python_version()}"
    return f"{time.strftime('%Y-%m-%d')}: {python}, {machine};\n{versions}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("servers", nargs="+", help="names of serve.py")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the peers")
    parser.add_argument("--rows", default="", help="comma-separated beginnings of row names")
    parser.add_argument("--manners", default="", help=f"of {', '.join(MANNERS)} (default: plain)")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument(
        "--store", type=Path, help="JSON: earlier verdicts are read from it, these are added"
    )
    parser.add_argument("-v", "--verbose", action="store_true")
    args = parser.parse_args()
    names = [name for name in ALL_ROWS if name.startswith(tuple(args.rows.split(",")))]
    manners = [MANNERS[name] for name in args.manners.split(",")] if args.manners else [PLAIN]
    results: Results = {}
    if args.store and args.store.exists():
        for server, manner_name, verdicts in json.loads(args.store.read_text()):
            results[server, manner_name] = {name: tuple(v) for name, v in verdicts.items()}
    for server in args.servers:
        python = sys.executable if server in ("osloxide", "native") else args.python
        for manner in manners if server == args.servers[0] else manners[:PEER_MANNERS]:
            if manner.is_tls and server in WITHOUT_TLS:
                continue
            verdicts = run(server, python, names, manner, verbose=args.verbose)
            # Rows that were judged earlier keep their verdicts where --rows leaves them out.
            results[server, manner.name] = results.get((server, manner.name), {}) | verdicts
            held = sum(ok for ok, _ in verdicts.values())
            print(f"{server}, {manner.name}: {held} of {len(verdicts)} rows hold", flush=True)
    if args.store:
        args.store.write_text(json.dumps([[*key, verdicts] for key, verdicts in results.items()]))
    if args.markdown:
        promises = {name: ALL_ROWS[name].__doc__ or "" for name in names}
        args.markdown.write_text(markdown(results, promises, about(args.python, results)))
    subject = [verdicts for (server, _), verdicts in results.items() if server == args.servers[0]]
    return 0 if all(ok for verdicts in subject for ok, _ in verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
