"""The table of docs/apis.md: ``python tests/services/apis_page.py`` writes it.

Owns what the table says: each API, each way, and what the last recorded run counted there. A way
that no run has recorded is in the table as such.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from services.apis import NGINX_WAY, RECORD, SERVE, ways
from services.subject import REPOSITORY

PAGE = REPOSITORY / "docs" / "apis.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"
HEAD = (
    "| API | started by | workers | starts and does its work | HUP | kill | TERM |\n"
    "|---|---|---|---|---|---|---|\n"
)
_CALLED = {SERVE: "`osloxide serve MODULE`", NGINX_WAY: "the uwsgi protocol, nginx in front"}


def table() -> str:
    record = json.loads(RECORD.read_text())
    rows = []
    for name, way in ways():
        found = record.get(f"{name}-{way}")
        cells = ["", "not run", "", "", ""]
        if found is not None:
            cells = [
                str(found["workers"]),
                f"{found['worked']} requests",
                f"{found['reload']} answered, 0 lost",
                f"{found['kill']} answered, {found['kill_lost']} lost",
                f"{found['stop']} answered, 0 lost",
            ]
        started = _CALLED.get(way, f"`{way}`")
        rows.append(f"| {name} | {started} | " + " | ".join(cells) + " |\n")
    return HEAD + "".join(rows)


def main() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
