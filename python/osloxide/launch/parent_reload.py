"""A reload in the parent of workers, which a stop may leave in the middle.

Owns how code of the application that runs then, a reset() of the parent's copies or a hook of the
options, is ended by a signal, by a handler and by another thread: an exception is raised in it on
the main thread, once. Any of it may hang, and the parent's copies serve nothing. Reads no file and
decides nothing: what is done in a reload is the launcher's part.

Rules: docs/signals.md, "TERM while HUP is handled".
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from osloxide.launch import service_name
from osloxide.launch.runner import reset
from osloxide.signals import careful_log, nudge, signal_handler

LOG = careful_log.logger(careful_log.OF_PROCESS_LAUNCHER)


class ParentReload:
    """The reload of one launcher, again and again (main thread, except where noted).

    :param is_stopping: whether the launcher was told to stop.
    :param bound_stop: called before a stop that is no signal ends it; arms a deadline, for the
        exception may be swallowed.
    """

    def __init__(self, is_stopping: Callable[[], bool], bound_stop: Callable[[], object]) -> None:
        self._is_stopping = is_stopping
        self._bound_stop = bound_stop
        self._resetting: Any = None
        self._nudge = nudge.Nudge(self.leave_by_stop)
        self.is_under_way = False
        """Whether a stop ends it."""

    def run_unless_stopped(self, work: Callable[[], object]) -> None:
        """Call *work*, which a stop ends.

        One that came before it is seen, one that comes from then on raises: none is forgotten.
        """
        try:
            self.is_under_way = True
            try:
                if not self._is_stopping():
                    work()
            finally:
                self.is_under_way = False
        except signal_handler.SignalExit:
            if not self._is_stopping():
                raise
        finally:
            self._resetting = None

    def call_beside_threads(self, work: Callable[[], bool]) -> bool:
        """What *work* returns, in which a stop by another thread is heard as well."""
        try:
            self._nudge.take()
            return work()
        finally:
            self._nudge.give_back()

    def give_back(self) -> None:
        """At the end of the launcher: what a handler has kept :meth:`call_beside_threads` from."""
        self._nudge.give_back()

    def reset(self, service: Any) -> None:
        """Call reset() of *service*."""
        self._resetting = service
        reset(service)

    def leave_if_stopped(self, signo: int, what: str) -> None:
        """In a handler: end what it has interrupted.

        :param what: ended it, for the log.
        :raises SignalExit: a reload is under way, and the launcher stops.
        """
        if self._is_stopping() and self.is_under_way:
            self.is_under_way = False  # once: what it ends is not left a second time
            service = self._resetting
            name = "a reload" if service is None else f"{service_name.of(service)}.reset()"
            LOG.info("%s ends %s in the parent", what, name)
            raise signal_handler.SignalExit(signo, 0)

    def leave_by_stop(self) -> None:
        """In a handler that has called stop(), or that another thread's stop() has had called.

        :raises SignalExit: as :meth:`leave_if_stopped`.
        """
        if self._is_stopping() and self.is_under_way:
            self._bound_stop()
            self.leave_if_stopped(signal.SIGTERM, "stop()")

    def leave_from_thread(self, has_ended: threading.Event) -> None:
        """On another thread: have the main thread leave it; returns when it has."""
        patience = nudge.FIRST_PATIENCE
        while self.is_under_way and not has_ended.wait(patience):
            self._nudge.send()
            patience = self._nudge.next_patience(patience)
