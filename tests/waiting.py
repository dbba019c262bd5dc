"""Waiting for what nothing announces: one loop for all tests, with a deadline and a name.

Owns the deadline that tests use unless they name another, generous because it is never a
measurement: on a loaded machine everything takes longer. A test that can wait for an event, a line
or the end of a process does that instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 60.0
"""Seconds after which something that must happen counts as missing."""


def wait_until(
    condition: Callable[[], T | None],
    what: str | Callable[[], str],
    deadline: float = DEADLINE,
    pause: float = 0.01,
) -> T:
    """Poll *condition* until it is true and return its value.

    :param what: the event waited for, for the failure message; called then where it is to say what
        there is at that moment, as a log does.
    :param deadline: seconds.
    :param pause: seconds between two looks.
    :raises AssertionError: the event did not come; names it and the value seen last.
    """
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            what = what() if callable(what) else what
            raise AssertionError(f"{what}: not within {deadline} s (last seen: {value!r})")
        time.sleep(pause)


def until(
    condition: Callable[[], object], deadline: float = DEADLINE, pause: float = 0.005
) -> bool:
    """Whether *condition* comes true within *deadline* seconds, for tests that go on if not."""
    try:
        wait_until(condition, "", deadline, pause)
    except AssertionError:
        return False
    return True


def whole_lines(path: Path, since: int = 0) -> list[str]:
    """The lines of *path* from byte *since* on that are complete.

    A file that another process is writing may end in a part of a line: a reader sees one write(2)
    that crosses the end of a page in two steps.
    """
    with path.open("rb") as source:
        source.seek(since)
        text = source.read().decode(errors="replace")
    return text[: text.rfind("\n") + 1].split("\n")[:-1]
