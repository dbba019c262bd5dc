"""Waiting for something that nothing announces."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

DEADLINE = 20.0


def until(is_so: Callable[[], bool], deadline: float = DEADLINE) -> bool:
    """Look again and again until *is_so*, for at most *deadline* seconds."""
    end = time.monotonic() + deadline
    pause = threading.Event()
    while not is_so():
        if time.monotonic() > end:
            return False
        pause.wait(0.005)
    return True
