"""``eventlet.debug``: a look at what runs and waits. Rules: eventlet.debug."""

from __future__ import annotations

import inspect
import linecache
import os
import re
import sys
from typing import Any

from osloxide.green import hubs
from osloxide.green._core import timers

__all__ = [
    "format_asyncio_info",
    "format_hub_listeners",
    "format_hub_timers",
    "format_threads_info",
    "hub_blocking_detection",
    "hub_exceptions",
    "hub_listener_stacks",
    "hub_prevent_multiple_readers",
    "hub_timer_stacks",
    "spew",
    "tpool_exceptions",
    "unspew",
]

_token_splitter = re.compile(r"\W+")


class Spew:
    """A trace function that prints each line with the values of its names.

    :param trace_names: modules whose lines are printed; None: all.
    """

    def __init__(self, trace_names: Any = None, show_values: bool = True) -> None:
        self.trace_names = trace_names
        self.show_values = show_values

    def __call__(self, frame: Any, event: str, arg: object) -> Any:
        del arg
        if event != "line":
            return self
        lineno = frame.f_lineno
        if "__file__" in frame.f_globals:
            filename = frame.f_globals["__file__"]
            if filename.endswith((".pyc", ".pyo")):
                filename = filename[:-1]
            name = frame.f_globals["__name__"]
            line = linecache.getline(filename, lineno)
        else:
            name = "[unknown]"
            try:
                source, offset = inspect.getsourcelines(frame)
                line = source[lineno - (offset or 1)]
            except OSError:
                line = (
                    f"Unknown code named [{frame.f_code.co_name}].  VM instruction #{frame.f_lasti}"
                )
        if self.trace_names is None or name in self.trace_names:
            print(f"{name}:{lineno}: {line.rstrip()}")
            if self.show_values:
                details = [
                    f"{token}={names[token]!r}"
                    for token in _token_splitter.split(line)
                    for names in (frame.f_globals, frame.f_locals)
                    if token in names
                ]
                if details:
                    print(f"\t{' '.join(details)}")
        return self


def spew(trace_names: Any = None, show_values: bool = False) -> None:
    """Print every line that the calling thread executes."""
    sys.settrace(Spew(trace_names, show_values))


def unspew() -> None:
    """End :func:`spew`."""
    sys.settrace(None)


def format_hub_listeners() -> str:
    """Who waits for descriptors, as text."""
    hub = hubs.get_hub()
    lines = ["READERS:", *map(repr, hub.get_readers()), "WRITERS:", *map(repr, hub.get_writers())]
    return os.linesep.join(lines)


def format_hub_timers() -> str:
    """Which timers wait, as text."""
    return os.linesep.join(["TIMERS:", *map(repr, hubs.get_hub().timers)])


def format_asyncio_info() -> str:
    """The tasks and the loop of asyncio, as text."""
    import asyncio

    return os.linesep.join(
        ["TASKS:", repr(asyncio.all_tasks()), f"EVENTLOOP: {asyncio.events.get_event_loop()}"]
    )


def format_threads_info() -> str:
    """The threads of this process, as text."""
    import threading

    return os.linesep.join(["THREADS:", repr(threading._active)])  # type: ignore[attr-defined]


def hub_listener_stacks(state: bool = False) -> None:
    """Let those that wait for descriptors remember where they began to."""
    hubs.get_hub().set_debug_listeners(state)


def hub_timer_stacks(state: bool = False) -> None:
    """Let timers remember where they were made."""
    timers._g_debug = state


def hub_prevent_multiple_readers(state: bool = True) -> None:
    """Whether two greenthreads that wait for the same descriptor are an error."""
    from osloxide.green.hubs import hub

    hub.g_prevent_multiple_readers = state


def hub_exceptions(state: bool = True) -> None:
    """Whether what greenthreads and callbacks raise is printed."""
    hubs.get_hub().set_timer_exceptions(state)
    from osloxide.green import greenpool

    greenpool.DEBUG = state


def tpool_exceptions(state: bool = False) -> None:
    """Whether what functions on the thread pool raise is printed."""
    from osloxide.green import tpool

    tpool.QUIET = not state


def hub_blocking_detection(state: bool = False, resolution: float = 1) -> None:
    """Accepted without effect: a greenthread that blocks holds no other up here.

    :param resolution: seconds that a greenthread may run without waiting.
    """
    hub = hubs.get_hub()
    assert resolution > 0
    hub.debug_blocking = state
    hub.debug_blocking_resolution = resolution
