"""The table of docs/conformance.md, from the verdicts of one run. Formats; judges nothing."""

from __future__ import annotations

from collections.abc import Mapping

HEADING = """\
# HTTP conformance

Written by `python -m conformance {servers} --markdown docs/conformance.md` (in `tests/python`).
Every row sends raw bytes to a running server and judges strictly what comes back and what the
application saw; the rules are RFC 9110, RFC 9112 and PEP 3333. `tests/python/conformance/` holds
the rows, `test_http_conformance.py` runs them as tests. A row that does not hold is marked **x**.

| | {columns} |
|---|{rule}
| rows that hold | {scores} |

"""


def markdown(
    results: Mapping[str, Mapping[str, tuple[bool, str]]], promises: Mapping[str, str]
) -> str:
    """*results* by server and row, the first server being the one whose notes are shown."""
    servers = list(results)
    subject = servers[0]
    scores = [f"{sum(ok for ok, _ in rows.values())} of {len(rows)}" for rows in results.values()]
    text = HEADING.format(
        servers=" ".join(servers),
        columns=" | ".join(servers),
        rule="---|" * len(servers),
        scores=" | ".join(scores),
    )
    text += f"| row | promise | {' | '.join(servers)} | what {subject} did |\n"
    text += "|---|---|" + "---|" * (len(servers) + 1) + "\n"
    for name, promise in promises.items():
        marks = ["ok" if results[server][name][0] else "**x**" for server in servers]
        note = results[subject][name][1].replace("|", "\\|")
        summary = promise.split("\n", maxsplit=1)[0]
        text += f"| `{name}` | {summary} | {' | '.join(marks)} | {note} |\n"
    failing = [name for name in promises if not results[subject][name][0]]
    text += f"\n## Deviations of {subject}\n\n"
    if failing:
        text += "".join(f"- `{name}`: {results[subject][name][1]}\n" for name in failing)
    else:
        text += "None: every row holds.\n"
    return text
