"""The nudge: a signal by which another thread has the main thread run its signal handlers.

Owns the disposition of SIGURG while it is needed; by default that signal is ignored, so one that
comes late does no harm. The main thread runs handlers between two instructions and where a system
call of its own is interrupted: neither happens where it waits for a lock. Starts no thread, and
leaves the signal alone where the application has a handler for it.

Rules: signal(7), pthread_kill(3), Python's documentation of signal.signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNAL = signal.SIGURG
FIRST_PATIENCE = 0.005
"""Seconds until the main thread is nudged again, which may have begun to wait just as the first
nudge came; doubled each time up to the next constant."""
LONGEST_PATIENCE = 1.0

UNHANDLED = (signal.SIG_DFL, signal.SIG_IGN)


class Nudge:
    """A nudge of the main thread.

    :param on_nudge: called on the main thread at each nudge; what it raises is raised there.
    """

    def __init__(self, on_nudge: Callable[[], object]) -> None:
        self._on_nudge = on_nudge
        self._main_thread = 0
        self._displaced: Any = None
        self._was_blocked = False
        self.is_taken = False
        """Whether :meth:`send` has an effect."""

    def take(self) -> bool:
        """Handle the signal from now on, unless it has a handler (main thread only).

        :returns: :attr:`is_taken`.
        """
        global _taken
        displaced = signal.getsignal(SIGNAL)
        if displaced in UNHANDLED:
            self._main_thread, self._displaced = threading.get_ident(), displaced
            # Before the handler is there: give_back() has to undo what another one interrupts here.
            self.is_taken, _taken = True, self
            self._was_blocked = SIGNAL in signal.pthread_sigmask(signal.SIG_BLOCK, ())
            signal.signal(SIGNAL, self._hear)
            # A process may be started with it blocked: no nudge would be heard, ever.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {SIGNAL})
        return self.is_taken

    def give_back(self) -> None:
        """Undo :meth:`take`, once or again (main thread only).

        One that a handler leaves by an exception is to be called again.
        """
        global _taken
        if self.is_taken:
            signal.signal(SIGNAL, self._displaced)
            # Not in a child of another thread: that one has a mask of its own.
            if self._was_blocked and threading.get_ident() == self._main_thread:
                signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
            self.is_taken, _taken = False, None

    @staticmethod
    def next_patience(patience: float) -> float:
        """Seconds until the nudge after the next one, where *patience* was that until the next."""
        return min(patience * 2, LONGEST_PATIENCE)

    def send(self) -> None:
        """Nudge the main thread, from any thread. Does nothing unless the signal is taken."""
        if self.is_taken:
            signal.pthread_kill(self._main_thread, SIGNAL)

    def _hear(self, _signo: int, _frame: FrameType | None) -> None:
        self._on_nudge()


_taken: Nudge | None = None


def _forget() -> None:
    """In a child: who nudged is a thread of its parent, and the child may need a nudge itself."""
    if _taken is not None:
        with contextlib.suppress(ValueError):
            _taken.give_back()


os.register_at_fork(after_in_child=_forget)
