"""Medians, ratios and tables of what was measured. Formats; measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from measure.wsgi import DISTURBED, Round, Workload

SUBJECT = "osloxide"


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
        return statistics.median(getattr(item, name) for item in counted)

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


def document(command: str, facts: dict[str, Any], versions: dict[str, str], tables: str) -> str:
    """docs/benchmarks.md."""
    peers = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"""\
# Benchmarks

Written by `{command}`; what the figures mean and the rules of a run are in `benches/README.md`.
Both sides of every ratio come from this one run.

- commit {facts["commit"]}, {facts["date"]}
- {facts["cpu"]}, {facts["cores"]} cores, Linux {facts["kernel"]}, CPython {facts["python"]}
- peers: {peers}

{tables}"""
