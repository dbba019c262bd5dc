"""Requests that took too long: what the log says of their threads.

Called by the native server, which has answered the client already and interrupts the thread.
docs/operating.md is for operators.
"""

from __future__ import annotations

import sys
import threading
import traceback


def describe(thread: int, line: str, seconds: float) -> str:
    """A request that was given up, and where its thread is.

    :param thread: ``threading.get_ident()``.
    :param line: the request line, escaped.
    :param seconds: how long it has run.
    """
    name = next((t.name for t in threading.enumerate() if t.ident == thread), str(thread))
    frame = sys._current_frames().get(thread)
    where = "it is outside of Python\n" if frame is None else "".join(traceback.format_stack(frame))
    return (
        f"{line} has run for {seconds:.1f} s and is given up: its client has an answer (504, or a "
        f"cut where one had begun), its thread {name} is interrupted and replaced. It is here:\n"
        f"{where.rstrip()}"
    )
