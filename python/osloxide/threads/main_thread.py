"""What has to run on the main thread, asked for by another one.

Owns one hook. Workers are forked and signals handled on the main thread alone; one that waits in
something of osloxide.green can do that meanwhile, and osloxide.green says here how. Knows neither
what runs nor how the main thread waits. Rules: docs/eventlet.md, "Threads and launchers".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Lender = Callable[[Callable[[], Any]], Any]
"""Runs a function on the main thread, and gives what it returns or raises."""

_lender: Lender | None = None


class NotLentError(RuntimeError):
    """The main thread waits in nothing that would let it run something."""


def serve(lender: Lender) -> None:
    """*lender* runs functions on the main thread from now on."""
    global _lender
    _lender = lender


def run(function: Callable[[], Any]) -> Any:
    """Run *function* on the main thread, as soon as that waits; wait for it.

    :raises NotLentError: nothing here can ask the main thread, or it has not waited for a while.
    """
    if _lender is None:
        raise NotLentError("which does not wait in anything of eventlet's")
    return _lender(function)
