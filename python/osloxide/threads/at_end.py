"""The end of threads that enter Python, in order, before the interpreter is finalised.

Owns the order and the two moments: exit functions of a program, and the end of a forked worker,
which forgets the exit functions of its parent and not these. Owns as well what is told where a
process is cut off, so that neither moment comes. Holds what is to be done, and so what it is done
to, by strong references. Knows neither servers nor executors.

A native thread that wants the interpreter back after its finalisation has begun would end the
process with SIGABRT or SIGSEGV. Those who feed others go first: a request that is in flight may
hand a job to an executor.

Rules: atexit (Python library reference); PEP 788 on threads at finalisation.
"""

from __future__ import annotations

import atexit
import contextlib
import enum
import logging
from collections.abc import Callable

LOG = logging.getLogger(__name__)


class Turn(enum.IntEnum):
    """Whose turn it is; those with the lower number go first."""

    SERVERS = 1
    EXECUTORS = 2
    SIGNALS = 3
    """Until then another SIGTERM may cut the end short."""


_ends: dict[Turn, list[Callable[[], object]]] = {turn: [] for turn in Turn}


def call(turn: Turn, end: Callable[[], object]) -> None:
    """Have *end* called once threads have to leave; it returns when they have.

    What it raises is logged, unless it ends the program, and the others still have their turn.
    """
    _ends[turn].append(end)


_tellers: list[Callable[[], object]] = []


def when_cut_off(tell: Callable[[], object]) -> None:
    """Have *tell* called in a process that ends at once: it logs what is lost with it.

    It runs where a signal may have interrupted anything, and must not wait.
    """
    _tellers.append(tell)


def tell_cut_off() -> None:
    """This process ends at once, whatever was to be done in it. Raises nothing."""
    for tell in _tellers:
        with contextlib.suppress(BaseException):
            tell()


@atexit.register
def end_all() -> None:
    """Call everything, in its turn. May be called again, which finds nothing left to do."""
    for turn in Turn:
        for end in _ends[turn]:
            try:
                end()
            except Exception:
                # A log filter of the application may raise as well.
                with contextlib.suppress(Exception):
                    LOG.exception("Threads may be left at the end of this process: %s", end)
