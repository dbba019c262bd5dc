"""The tables of docs/conformance.md, from the verdicts of one run. Formats; judges nothing."""

from __future__ import annotations

from collections.abc import Mapping

from conformance.manner import MANNERS
from conformance.rules import rule

HEADING = """\
# HTTP conformance

Written in `tests/python` by one run, or by several that share a `--store FILE`:

    python -m conformance {servers} \\
        --manners {manners} --markdown docs/conformance.md

The last such run was on {about}. Rows with hundreds of clients
(`slow_*`, `idle_keepalive`) depend on the machine: on a busy one a server may miss what it
holds on an idle one.

Peers run under `--python`, an interpreter that has them; `--rows` judges some rows again, such as
those that a peer missed because the machine was busy.

Every row sends raw bytes to a running server and judges strictly what comes back
and what the application saw; the rules are RFC 9110, RFC 9112 and PEP 3333.
`tests/python/conformance/` holds the rows, `test_http_conformance.py` runs them as tests, in every
manner.

| manner | what clients do |
|---|---|
{promises}

| rows that hold | {columns} |
|---|{rule}
{scores}

In the table below a cell says **x** for a row that does not hold, in the order of the manners in
which the server was judged, and `-` where the row says nothing in a manner, or the server has no
TLS of its own.

"""

#: What no row judges, since the rules say SHOULD or MAY: rule, what it says, what is done.
CHOICES = (
    (
        "RFC 9112 section 3.2",
        "an invalid request line SHOULD be answered 400",
        "characters that clients leave unescaped in a target are handed on (`line_unescaped`)",
    ),
    (
        "RFC 9110 section 9.1",
        "a method that is not known SHOULD be answered 501",
        "the application decides; `CONNECT` is answered 501",
    ),
    ("RFC 9112 section 2.2", "a bare LF MAY end a line", "refused"),
    ("RFC 9112 section 5.2", "a folded line may be unfolded", "refused"),
    ("RFC 9110 section 8.6", "equal values of `Content-Length` may count as one", "refused"),
    ("RFC 9112 section 6.3", "`Transfer-Encoding` may override `Content-Length`", "refused"),
    (
        "RFC 9112 section 7.1.2",
        "trailers may be kept",
        "checked and dropped: PEP 3333 has no place for them",
    ),
    ("RFC 9110 section 10.1.1", "an unknown expectation MAY be answered 417", "ignored"),
    (
        "RFC 9110 section 14.2",
        "`Range` MAY be ignored",
        "ignored for files of `--static-map`; else the application's",
    ),
)

Verdicts = Mapping[str, tuple[bool, str]]


def markdown(
    results: Mapping[tuple[str, str], Verdicts], promises: Mapping[str, str], about: str
) -> str:
    """*results* by server, manner and row, the first server being the one whose notes are shown.

    :param about: when the run was, and with what.
    """
    servers = list(dict.fromkeys(server for server, _ in results))
    manners = list(dict.fromkeys(manner for _, manner in results))
    subject = servers[0]

    def score(server: str, manner: str) -> str:
        rows = results.get((server, manner))
        return "-" if rows is None else f"{sum(ok for ok, _ in rows.values())} of {len(rows)}"

    scores = "\n".join(
        f"| {manner} | {' | '.join(score(server, manner) for server in servers)} |"
        for manner in manners
    )
    text = HEADING.format(
        about=about,
        servers=" ".join(servers),
        manners=",".join(manners),
        promises="\n".join(f"| {name} | {MANNERS[name].promise} |" for name in manners),
        columns=" | ".join(servers),
        rule="---|" * len(servers),
        scores=scores,
    )
    judged = {
        server: [manner for manner in manners if server == subject or manner in manners[:2]]
        for server in servers
    }

    def cell(server: str, name: str) -> str:
        marks = []
        for manner in judged[server]:
            verdict = results.get((server, manner), {}).get(name)
            marks.append("-" if verdict is None else "ok" if verdict[0] else "**x**")
        return marks[0] if len(set(marks)) == 1 else " ".join(marks)

    text += f"| row | promise | rule | {' | '.join(servers)} | what {subject} did |\n"
    text += "|---|---|---|" + "---|" * (len(servers) + 1) + "\n"
    for name, promise in promises.items():
        cells = " | ".join(cell(server, name) for server in servers)
        note = next(
            (results[subject, manner][name][1] for manner in manners
             if name in results[subject, manner]), ""
        ).replace("|", "\\|")  # fmt: skip
        summary = promise.split("\n", maxsplit=1)[0]
        text += f"| `{name}` | {summary} | {rule(name)} | {cells} | {note} |\n"
    failing = [
        (name, manner)
        for manner in manners
        for name, (holds, _) in results[subject, manner].items()
        if not holds
    ]
    text += f"\n## Deviations of {subject}\n\n"
    if failing:
        text += "".join(
            f"- `{name}` ({manner}; {rule(name)}): {results[subject, manner][name][1]}\n"
            for name, manner in failing
        )
    else:
        text += "None: every row holds, in every manner.\n"
    text += f"\nWhere the rules leave a choice, or say SHOULD, {subject} does this:\n\n"
    text += f"| rule | it says | {subject} |\n|---|---|---|\n"
    return text + "".join(f"| {' | '.join(choice)} |\n" for choice in CHOICES)
