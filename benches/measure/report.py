"""Medians, ratios and tables of what was measured. Formats; measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure.wsgi import DISTURBED, FLOOR, UNLOGGED, Round, Workload

SUBJECT = "osloxide"
#: Beside docs/benchmarks.md.
PLOT = "benchmarks.svg"
BY_HAND = "<!-- Written by hand from here on. -->"


@dataclass(frozen=True)
class Summary:
    """One server's rounds on one workload, as medians."""

    server: str
    cpu_us: float
    user_us: float
    best_rate: float
    p50_us: float
    p99_us: float
    pss_mib: float
    failed: int
    counted: int
    rounds: int
    others: float

    @property
    def mark(self) -> str:
        """What to say beside the number of rounds."""
        return " (disturbed)" if self.others > DISTURBED else ""


def summarise(server: str, rounds: Sequence[Round]) -> Summary:
    """Medians over the quiet rounds, or over all when fewer than three were quiet."""
    quiet = [item for item in rounds if not item.is_disturbed]
    counted = quiet if len(quiet) >= 3 else list(rounds)

    def median(name: str) -> float:
        return statistics.median(float(getattr(item, name)) for item in counted)

    return Summary(
        server=server,
        cpu_us=median("cpu_us"),
        user_us=median("user_us"),
        best_rate=max(item.rate for item in counted),
        p50_us=median("p50_us"),
        p99_us=median("p99_us"),
        pss_mib=median("pss_kib") / 1024,
        failed=sum(item.failed for item in rounds),
        counted=len(counted),
        rounds=len(rounds),
        others=median("others"),
    )


#: Summaries by workload.
Found = Mapping[str, Sequence[Summary]]


def wsgi_table(workload: Workload, summaries: Sequence[Summary]) -> str:
    """A Markdown table, cheapest first, with each server's CPU as a multiple of osloxide's."""
    subject = next((item for item in summaries if item.server == SUBJECT), None)
    text = f"### {workload.name}: {workload.says}\n\n"
    text += (
        "| server | CPU µs a request (user) | x osloxide | best requests/s | p50 / p99 µs "
        "| PSS MiB | rounds counted | others' CPU | failed |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    for item in sorted(summaries, key=lambda item: item.cpu_us):
        ratio = f"{item.cpu_us / subject.cpu_us:.2f}" if subject else "-"
        text += (
            f"| {item.server} | {item.cpu_us:.1f} ({item.user_us:.1f}) | {ratio} "
            f"| {item.best_rate:,.0f} | {item.p50_us:,.0f} / {item.p99_us:,.0f} "
            f"| {item.pss_mib:.0f} | {item.counted} of {item.rounds}{item.mark} "
            f"| {item.others:.0%} | {item.failed} |\n"
        )
    return text + "\n"


@dataclass(frozen=True)
class Target:
    """A promise about two servers' figures on one workload, as a quotient."""

    says: str
    workload: str
    over: tuple[str, str]
    under: tuple[str, str] | float
    at_most: float | None = None
    at_least: float | None = None

    def measured(self, found: Found) -> float | None:
        """The quotient, if this run has both figures."""

        def figure(which: tuple[str, str] | float) -> float | None:
            if isinstance(which, float):
                return which
            server, name = which
            for item in found.get(self.workload, ()):
                if item.server == server:
                    return float(getattr(item, name))
            return None

        over, under = figure(self.over), figure(self.under)
        return None if over is None or not under else over / under

    def holds(self, value: float) -> bool:
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )


def _targets() -> list[Target]:
    ours = (SUBJECT, "cpu_us")
    return [
        Target("CPU against the same server without Python", "trivial", ours, (FLOOR, "cpu_us"),
               at_most=1.3),
        Target("CPU against bjoern", "trivial", ours, ("bjoern", "cpu_us"), at_most=1.0),
        Target("CPU against fastpysgi", "trivial", ours, ("fastpysgi", "cpu_us"), at_most=1.0),
        Target("CPU against uWSGI", "close", ours, ("uwsgi", "cpu_us"), at_most=1.0),
        Target("CPU against uWSGI", "blocking", ours, ("uwsgi", "cpu_us"), at_most=1.0),
        Target("CPU against fastwsgi", "mebibyte", ours, ("fastwsgi", "cpu_us"), at_most=1.0),
        Target("CPU against itself without a log", "native-log", ours, (UNLOGGED, "cpu_us"),
               at_most=1.15),
        Target("CPU against uWSGI, whose log is on", "native-log", ours, ("uwsgi", "cpu_us"),
               at_most=1.0),
        Target("CPU of eventlet", "trivial", ("eventlet", "cpu_us"), ours, at_least=9.0),
        Target("CPU of granian", "trivial", ("granian", "cpu_us"), ours, at_least=1.6),
        Target("requests/s of the ideal 10,000", "blocking", (SUBJECT, "best_rate"), 10_000.0,
               at_least=0.9),
        Target("p99 of eventlet", "blocking", ("eventlet", "p99_us"), (SUBJECT, "p99_us"),
               at_least=1.3),
        *(target for workload in ("volumes", "two-volumes") for target in (
            Target("CPU against eventlet", workload, ours, ("eventlet", "cpu_us"), at_most=1.0),
            Target("p99 against eventlet", workload, (SUBJECT, "p99_us"), ("eventlet", "p99_us"),
                   at_most=0.5),
        )),
    ]  # fmt: skip


def targets_table(found: Found) -> str:
    """Which promises this run keeps; empty when it can judge none."""
    rows = []
    for target in _targets():
        value = target.measured(found)
        if value is None:
            continue
        bound = f"at most {target.at_most}" if target.at_most else f"at least {target.at_least}"
        verdict = "met" if target.holds(value) else "**missed**"
        rows.append(f"| {target.workload} | {target.says} | {bound} | {value:.2f} | {verdict} |\n")
    if not rows:
        return ""
    return (
        "## Targets\n\nQuotients of this run.\n\n"
        "| workload | what | target | measured | |\n|---|---|---|---|---|\n"
    ) + "".join([*rows, "\n"])


def plain_table(title: str, note: str, rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of dictionaries with the same keys."""
    columns = list(rows[0])
    text = f"### {title}\n\n{note}\n\n"
    text += "| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|\n"
    for row in rows:
        text += "| " + " | ".join(_cell(row[column]) for column in columns) + " |\n"
    return text + "\n"


def _cell(value: Any) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def kept(page: Path) -> str:
    """What a page has that was written by hand; empty where it has none, or is new."""
    text = page.read_text() if page.exists() else ""
    _, mark, rest = text.partition(BY_HAND)
    return f"\n{mark}{rest}" if mark else ""


def document(
    command: str,
    facts: dict[str, Any],
    versions: dict[str, str],
    tables: str,
    has_server: bool = True,
    absent: Sequence[str] = (),
    by_hand: str = "",
) -> str:
    """A page below docs/; without the server's part it has no plot.

    :param absent: peers that were asked for and are not installed here.
    :param by_hand: its end, as :func:`kept` has it.
    """
    peers = ", ".join(f"{name} {version}" for name, version in versions.items())
    missing = f"- left out, not installed there: {', '.join(absent)}\n" if absent else ""
    others = ", but for the\nsections that name another one" if by_hand else ""
    plot = f"![CPU of a request as a multiple of osloxide's]({PLOT})\n\n" if has_server else ""
    return f"""\
# Benchmarks

Written by `{command}`; what the figures mean and the rules of a run are in `benches/README.md`.
Both sides of every ratio come from this one run{others}.

{plot}- commit {facts["commit"]}
- {facts["cpu"]}, {facts["cores"]} cores, Linux {facts["kernel"]}, CPython {facts["python"]}
- peers: {peers}
{missing}
{tables.rstrip()}
{by_hand}"""
