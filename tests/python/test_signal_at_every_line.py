"""A signal at any line of a launcher's Python code ends what it has to end, and leaves nothing.

Owns which launchers, signals and places are tried; apps/interrupted.py sends the signal and judges.
A run of all places takes hours, so it is for OSLOXIDE_LONG=1; else some are drawn, the same each
time, and those are always tried where a signal was lost once.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _children import environment

IS_LONG = os.environ.get("OSLOXIDE_LONG") == "1"
DRAWN = 1
"""Places of each case that are tried in an everyday run, and of those where it was lost once..."""
KNOWN = 3
"""... so many more."""
SEED = 20
LONGEST = 45.0
"""Seconds after which a process counts as hung, and again those that it has left behind."""
START = 30.0
"""Seconds in which a program has imported everything."""
TIMEOUT = 0 if IS_LONG else START + 2 * LONGEST * (1 + DRAWN + KNOWN)
"""Seconds of one case: the run without a signal and those at its places come to a judgement of
their own, however they end. 0, which is none, where there are hundreds of places."""

Run = Callable[[str, dict[str, Any]], dict[str, Any]]

TERM = {"signal": "TERM"}
HUP = {"signal": "HUP"}
MUTATE = {"method": "mutate"}
AFTER_HUP = {"outside": ["HUP"], "since": "outside"}
HTTP = {"serves_http": True}
IN_WORKER = {"workers": 2, "in_worker": True}
EXIT = {"signal": "USR1", "handler": "exit"}
STOP = {"signal": "USR1", "handler": "stop", "since": "launched"}
STOP_FROM_START = {**STOP, "since": "made"}
IDLE_THREAD = {"has_idle_thread": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a stop, single process, threading": ("THREADING", {"workers": 1, **TERM}),
    "a stop, single process, eventlet": ("EVENTLET", {"workers": 1, **TERM}),
    "a stop, parent, threading": ("THREADING", {"workers": 2, **TERM}),
    "a stop, parent, eventlet": ("EVENTLET", {"workers": 2, **TERM}),
    "a stop, no_fork": ("THREADING", {"workers": 0, **TERM}),
    "a stop, worker": ("THREADING", {**IN_WORKER, **TERM}),
    "a stop, worker that serves HTTP": ("THREADING", {**IN_WORKER, **TERM, **HTTP}),
    "a stop, single process that serves HTTP": ("EVENTLET", {"workers": 1, **TERM, **HTTP}),
    "a stop, parent of workers that serve HTTP": ("EVENTLET", {"workers": 2, **TERM, **HTTP}),
    "a stop in a reload, single process": ("EVENTLET", {"workers": 1, **TERM, **AFTER_HUP}),
    "a stop in a reload, parent": ("THREADING", {"workers": 2, **TERM, **AFTER_HUP}),
    "a stop in a mutate, parent": ("EVENTLET", {"workers": 2, **TERM, **AFTER_HUP, **MUTATE}),
    "a stop as the launcher ends, single process": (
        "THREADING",
        {"workers": 1, **TERM, "stops_itself": True, "since": "stop"},
    ),
    "a stop as the launcher ends, parent": (
        "EVENTLET",
        {"workers": 2, **TERM, "stops_itself": True, "since": "stop"},
    ),
    "a hangup, single process": ("EVENTLET", {"workers": 1, **HUP}),
    "a hangup, parent": ("THREADING", {"workers": 2, **HUP}),
    "a hangup, worker": ("THREADING", {**IN_WORKER, **HUP, **MUTATE}),
    "an interrupt, parent": ("EVENTLET", {"workers": 2, "signal": "INT"}),
    "a handler that exits, single process": ("THREADING", {"workers": 1, **EXIT}),
    "a handler that exits, parent": ("EVENTLET", {"workers": 2, **EXIT}),
    "a handler that exits, worker": ("EVENTLET", {**IN_WORKER, **EXIT}),
    "a handler that stops, parent": ("THREADING", {"workers": 2, **STOP}),
    "a handler that stops, parent that forks": ("EVENTLET", {"workers": 2, **STOP_FROM_START}),
    "a handler that stops, parent that forks beside an idle thread": (
        "EVENTLET",
        {"workers": 2, **STOP_FROM_START, **IDLE_THREAD},
    ),
    "a stop, parent beside an idle thread": ("EVENTLET", {"workers": 2, **TERM, **IDLE_THREAD}),
}

LOST_ONCE = {
    "a stop, single process, threading": r" take line",
    "a stop, single process, eventlet": r" callHandlers line",
    "a stop, no_fork": r"control_thread\.py:\d+ close call|launch/runner\.py:\d+ __init__ call",
    "a stop in a mutate, parent": r"configuration\.py:\d+ reload line",
    "a stop as the launcher ends, parent": r"signal_handler\.py:\d+ _give_back line",
    "a handler that exits, worker": r" run_child call",
    "a handler that stops, parent": r"_note_child line",
    "a handler that stops, parent that forks": r" _obey call| _start_child call| prepare call",
    "a handler that stops, parent that forks beside an idle thread": r" _await_rest line",
}
"""By case, places where the signal was lost, or did what it must not do."""


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Has a job done by the program of its flavour, which imports everything once."""
    programs: dict[str, subprocess.Popen[str]] = {}
    app = Path(__file__).parent / "apps" / "interrupted.py"

    def run(flavour: str, job: dict[str, Any]) -> dict[str, Any]:
        if flavour not in programs:
            programs[flavour] = subprocess.Popen(
                [sys.executable, str(app), flavour, str(LONGEST)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment(),
                text=True,
            )
        program = programs[flavour]
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(json.dumps(job) + "\n")
        program.stdin.flush()
        result: dict[str, Any] = json.loads(program.stdout.readline())
        return result

    yield run
    for program in programs.values():
        program.communicate()


def chosen(case: str, places: list[str]) -> list[str]:
    """The places to try, of all that a run without a signal has come to."""
    if IS_LONG:
        return places
    drawn = random.Random(f"{SEED} {case}").sample(places, min(DRAWN, len(places)))
    known = LOST_ONCE.get(case)
    if known is not None:
        lost = [place for place in places if re.search(known, place)]
        assert lost, f"no place of {known}: name the code that took its place"
        drawn += lost[:KNOWN]
    return drawn


@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("case", CASES)
def test_a_signal_at_any_line_ends_what_it_has_to_end_and_leaves_nothing(
    run: Run, case: str
) -> None:
    flavour, job = CASES[case]
    whole = run(flavour, {**job, "at": ""})
    assert not whole["problems"], whole
    assert whole["places"]

    for at in chosen(case, whole["places"]):
        result = run(flavour, {**job, "at": at})
        assert not result["problems"], f"{result['problems']} at {at}: {result}"
