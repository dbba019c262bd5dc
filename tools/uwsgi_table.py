"""Prints the table of docs/uwsgi.md from the table of options that the command uses."""

from __future__ import annotations

from osloxide.cli.uwsgi.options import FAMILIES, TABLE, Verdict


def rows() -> list[str]:
    """The lines of the table, heading included; the vertical bar is escaped."""
    found = ["| option | verdict | what osloxide does |", "|---|---|---|"]
    for verdict in Verdict:
        for option in TABLE:
            if option.verdict is verdict:
                names = ", ".join(f"`{name}`" for name in option.names)
                found.append(f"| {names} | {verdict.value} | {_escaped(option.text)} |")
    for beginning, remedy in FAMILIES:
        found.append(f"| `{beginning}...` | {Verdict.REFUSED.value} | {_escaped(remedy)} |")
    return found


def _escaped(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


if __name__ == "__main__":
    print("\n".join(rows()))
