"""Where slow requests are: their tracebacks, on demand, while they run.

``kill -WINCH PID`` of a worker (or of a single process) logs, for each WSGI request that has run
for longer than ``OSLOXIDE_SLOW_REQUEST`` seconds (default 1; 0 for all), its age, its request line
and where its thread is. SIGWINCH because nothing happens to a process that does not know it. Only
looks: no request is touched. docs/operating.md is for operators.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from types import FrameType

from osloxide import _native

LOG = logging.getLogger("osloxide.wsgi")
SIGNAL = signal.SIGWINCH
VARIABLE = "OSLOXIDE_SLOW_REQUEST"
DEFAULT_SECONDS = 1.0


def threshold() -> float:
    """Seconds from which on a request counts as slow; what cannot be read counts as the default."""
    try:
        return float(os.environ.get(VARIABLE, DEFAULT_SECONDS))
    except ValueError:
        LOG.warning(
            "%s=%r is no number of seconds; using %s", VARIABLE, os.environ[VARIABLE],
            DEFAULT_SECONDS,
        )  # fmt: skip
        return DEFAULT_SECONDS


def tracebacks(older_than: float = 0.0) -> list[str]:
    """What requests in flight are doing, the oldest first.

    :param older_than: seconds that a request must have run to be told of; 0 tells of all.
    """
    frames = sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = []
    for thread, age in sorted(_native.requests_in_flight(), key=lambda item: -item[1]):
        frame = frames.get(thread)
        if age < older_than or frame is None:  # without a frame it is not inside the application
            continue
        stack = "".join(traceback.format_stack(frame))
        name = names.get(thread, str(thread))
        found.append(f"{_request(frame)} has run for {age:.1f} s on {name}:\n{stack}")
    return found


def log_tracebacks(*_: object) -> None:
    """Log those older than :func:`threshold`; a signal handler."""
    older_than = threshold()
    found = tracebacks(older_than)
    if not found:
        LOG.warning("No request has run for longer than %s s.", older_than)
    for text in found:
        LOG.warning("%s", text.rstrip())


def install() -> None:
    """Answer SIGWINCH, unless the application does so itself. On another thread: do nothing."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(SIGNAL) is signal.SIG_DFL:
        signal.signal(SIGNAL, log_tracebacks)


def _request(innermost: FrameType) -> str:
    """Method and path, as the outermost frame that has an environ knows them."""
    line = "a request"
    frame: FrameType | None = innermost
    while frame is not None:
        for value in frame.f_locals.values():
            if type(value) is dict and "REQUEST_METHOD" in value:
                method, path = value["REQUEST_METHOD"], value.get("PATH_INFO")
                line = f"{method} {value.get('SCRIPT_NAME', '')}{path}"
        frame = frame.f_back
    # Decoded from the wire: a line break in it would forge lines of the log.
    return line.encode("unicode_escape").decode("ascii")
