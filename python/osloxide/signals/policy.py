"""What the four signals of a launcher mean: stop, end at once, reload, time is up.

Owns the handlers that a launcher, a worker and a process without workers install, written once,
and the rule for SIGHUP in the foreground of a terminal. What a stop or a reload does is handed in.
Never installs anything: osloxide.signals.signal_handler does.

Rules: docs/signals.md; oslo_service.service.Launcher (oslo.service 4.8).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from osloxide import _native
from osloxide.signals import careful_log, signal_handler
from osloxide.threads import at_end

LOG = careful_log.logger(__name__)

HANDLED = signal_handler.OF_LAUNCHERS

# A thread cannot wait for these: the kernel ends a process that has blocked the one that it causes.
_OF_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}

_LOG_SECONDS = 0.5
"""Seconds that the last log line may take before the process ends without it."""


def held_in_fork() -> set[signal.Signals]:
    """Signals that wait until a fork is over: those of launchers, and those that the application
    has handlers for in Python, which may raise. In a child that would run the code of its parent.
    """
    handled = {signo for signo in signal.valid_signals() if callable(signal.getsignal(signo))}
    return {*HANDLED, *handled} - _OF_FAULTS


def unblock() -> None:
    """Take the signals of this room out of the mask of the calling thread: a process may be started
    with them blocked, and would never hear of them.

    Called when they have handlers: one that waits is delivered now.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def bound_handlers(grace: float, margin: float) -> None:
    """Have the kernel end this process where none of its handlers has run in the grace period.

    For a process without a thread that could notice: one that forks workers, and one that has not
    begun to serve. Called when the handlers are installed.

    :param grace: seconds; 0 is for ever.
    :param margin: seconds more.
    """
    try:
        _native.guard_signals(grace + margin if grace > 0 else 0.0)
    except OSError as error:
        LOG.warning(
            "Process %d has no bound on its end where no signal handler can run: %s; "
            "raise RLIMIT_SIGPENDING, of which a timer takes one",
            os.getpid(),
            error,
        )


def leave_at_once(message: str, before: Callable[[], object] = lambda: None) -> NoReturn:
    """End this process with status 1, whatever its log does.

    :param before: called first; what it raises is ignored.
    """
    try:
        with contextlib.suppress(BaseException):
            before()
        with contextlib.suppress(BaseException):
            _native.arm_deadline(_LOG_SECONDS)
        at_end.tell_cut_off()
        LOG.info("%s", message)
    finally:
        os._exit(1)


class Policy:
    """The handlers of one process.

    :param stop: called with the signal's number when the process is to end gracefully.
    :param reload: called with the signal's number when the configuration is to be read again.
    :param hup_needs_daemon: whether SIGHUP is a SIGTERM in the foreground of a terminal.
    :param before_exit: called before the process ends at once.
    """

    def __init__(
        self,
        stop: Callable[[int], object],
        reload: Callable[[int], object],
        *,
        hup_needs_daemon: bool,
        before_exit: Callable[[], object] = lambda: None,
    ) -> None:
        self._stop = stop
        self._reload = reload
        self._hup_needs_daemon = hup_needs_daemon
        self._before_exit = before_exit

    def graceful_stop(self, signo: int, _frame: FrameType | None = None) -> None:
        """SIGTERM."""
        self._stop(signo)
        _native.guard_heard()

    def reload(self, signo: int, _frame: FrameType | None = None) -> None:
        """SIGHUP."""
        if self._hup_needs_daemon and not signal_handler.is_daemon():
            self._stop(signo)
        else:
            self._reload(signo)

    def fast_exit(self, _signo: int = signal.SIGINT, _frame: FrameType | None = None) -> None:
        """SIGINT."""
        leave_at_once("Caught SIGINT signal, instantaneous exiting", self._before_exit)

    def timeout_exit(self, _signo: int = signal.SIGALRM, _frame: FrameType | None = None) -> None:
        """SIGALRM."""
        message = "Graceful shutdown timeout exceeded, instantaneous exiting"
        leave_at_once(message, self._before_exit)

    def handlers(self) -> dict[str, signal_handler.Handler]:
        """Signal name to handler."""
        return {
            "SIGTERM": self.graceful_stop,
            "SIGINT": self.fast_exit,
            "SIGHUP": self.reload,
            "SIGALRM": self.timeout_exit,
        }
