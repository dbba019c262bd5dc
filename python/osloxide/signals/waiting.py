"""Waiting for something on the main thread without missing a signal.

A main thread that waits for a Python lock hears of a signal only when the kernel happens to
deliver it to that thread and at that moment. Parked in the native core it always does. Owns that
difference, and the way out of a thread group's wait after the configuration was mutated; knows
neither thread groups nor runners.

Rules: signal(7); Python's documentation of signal.set_wakeup_fd.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from osloxide import _native

interruption: Callable[[], None] | None = None
"""Called on the main thread each time it wakes up in an interruptible wait; raises to end it."""

_waits_of_main_thread = 0
"""How many waits of the main thread are under way, one inside a signal handler of the other."""


def fire(event: threading.Event) -> None:
    """Set *event*, and wake the main thread in case it waits for it in here."""
    event.set()
    if _waits_of_main_thread:
        _native.wake()


def wait_for(event: threading.Event, *, interruptible: bool = False) -> None:
    """Wait until *event* was set by :func:`fire`, on any thread.

    A signal handler that runs during the wait may wait in here as well.

    :param interruptible: whether :data:`interruption` may end the wait with an exception.
    """
    global _waits_of_main_thread
    if threading.current_thread() is not threading.main_thread():
        event.wait()
        return
    # Counted before the event is looked at: a thread that fires it later sees that, and wakes.
    _waits_of_main_thread += 1
    try:
        while not event.is_set():
            if interruptible and interruption is not None:
                interruption()
            _native.park()
    finally:
        _waits_of_main_thread -= 1
        if _waits_of_main_thread:
            _native.wake()  # this wait may have taken the wake-up of the one around it
