"""``python -m conformance SERVER...``: run rows against servers and print what held.

With ``--markdown FILE`` the table is written there: that is how docs/conformance.md is made.
Peers run under ``--python``, an interpreter that has them installed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from conformance import ALL_ROWS
from conformance.report import markdown
from conformance.target import Target
from conformance.verdict import SHORT, SHORT_TIMEOUT_ROWS, judge

Verdicts = dict[str, tuple[bool, str]]


def run(server: str, python: str, names: list[str], *, verbose: bool) -> Verdicts:
    """Judge *names* on one server, those that need a short client timeout on a second one."""
    verdicts: Verdicts = {}
    for short in (False, True):
        chosen = [name for name in names if (name in SHORT_TIMEOUT_ROWS) == short]
        if not chosen:
            continue
        options = ["--access-log", *(["--timeout", str(SHORT)] if short else [])]
        target = Target(server, *options, python=python)
        try:
            for name in chosen:
                began = time.monotonic()
                verdicts[name] = judge(ALL_ROWS[name], target)
                held, note = verdicts[name]
                if verbose or not held:
                    took = time.monotonic() - began
                    print(f"{server:10} {'ok' if held else 'X ':3} {name:30} {took:5.1f} s  {note}")
                if not target.is_alive():
                    target.stop()
                    target = Target(server, *options, python=python)
        finally:
            target.stop()
    return {name: verdicts[name] for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("servers", nargs="+", help="names of serve.py")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the peers")
    parser.add_argument("--rows", default="", help="comma-separated beginnings of row names")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("-v", "--verbose", action="store_true")
    args = parser.parse_args()
    names = [name for name in ALL_ROWS if name.startswith(tuple(args.rows.split(",")))]
    results: dict[str, Verdicts] = {}
    for server in args.servers:
        python = sys.executable if server in ("osloxide", "native") else args.python
        results[server] = run(server, python, names, verbose=args.verbose)
        held = sum(ok for ok, _ in results[server].values())
        print(f"{server}: {held} of {len(names)} rows hold", flush=True)
    if args.markdown:
        args.markdown.write_text(markdown(results, {n: ALL_ROWS[n].__doc__ or "" for n in names}))
    return 0 if all(ok for ok, _ in results[args.servers[0]].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
