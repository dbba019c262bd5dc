"""What the tests' own loop promises that waits for something (tests/waiting.py)."""

from __future__ import annotations

import pytest
from waiting import wait_until


def test_a_wait_in_vain_tells_what_there_is_when_it_ends() -> None:
    log: list[str] = []

    def look() -> None:
        log.append("looked")

    with pytest.raises(AssertionError, match=r"^an event \['looked', .*: not within 0.02 s"):
        wait_until(look, lambda: f"an event {log}", deadline=0.02, pause=0.005)
