"""How ``osloxide serve`` without a parent loads new code on SIGHUP: it executes itself again.

Owns that nothing is lost between the two programs: the process, its listening sockets and the
connections that wait on them stay, and a signal that arrives in between waits until the next
program has handlers. Called when every request was answered.

Rules: execve(2), signal(7).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from osloxide.cli import listeners, operator_signals
from osloxide.cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from osloxide.cli.preparation import Preparation
    from osloxide.wsgi import Server

LOG = logging.getLogger("osloxide.serve")

_was_told_to_stop = False


def execute_again(
    preparation: Preparation, servers: Sequence[Server], check: Callable[[], None]
) -> None:
    """Become the same command, started where and as it was.

    Returns, with the reason in the log, where the next program could not start, and where a stop
    was asked for since.

    :param check: raises CommandError where the options cannot work any more.
    """
    if not (preparation.apply_again() and _can_encrypt(servers) and _passes(check)):
        LOG.error("SIGHUP: this program goes on with the code and the files that it has")
        return
    here = os.getcwd()
    environ = {**preparation.environ, **listeners.keep(servers)}
    os.chdir(preparation.directory)
    hold_signals()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    words = [sys.executable, *sys.orig_argv[1:]]
    if _was_told_to_stop:
        _go_on(here, servers)
        return
    try:
        os.execve(sys.executable, words, environ)  # noqa: S606 - itself
    except OSError as error:
        _go_on(here, servers)
        LOG.error(
            "SIGHUP: %s cannot be executed: %s; this program goes on with the code that it has",
            sys.executable,
            error.strerror,
        )


def _go_on(here: str, servers: Sequence[Server]) -> None:
    """Take back what was set up for a next program."""
    listeners.release(servers)
    os.chdir(here)
    take_signals()


def _passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except CommandError as error:
        LOG.error("%s", error)
        return False
    return True


def note_stops() -> None:
    """Know at once of a stop that comes while this program is about to execute itself: the next one
    would hear nothing of it (main thread, when the launcher has its handlers)."""
    # Not at module level: osloxide.cli is imported where oslo.service need not be.
    from osloxide.signals.signal_handler import SignalHandler

    SignalHandler().add_handler("SIGTERM", _note_stop)


def _note_stop(_signo: int, _frame: object) -> None:
    global _was_told_to_stop
    _was_told_to_stop = True


def _can_encrypt(servers: Sequence[Server]) -> bool:
    for server in servers:
        try:
            server.check_tls()
        except (OSError, ValueError, RuntimeError) as error:
            LOG.error("%s", server.explain(error))
            return False
    return True


def _handled() -> frozenset[signal.Signals]:
    """Signals that this command has handlers for, once it serves."""
    # Not at module level: see note_stops().
    from osloxide.signals import signal_handler

    return signal_handler.OF_LAUNCHERS | operator_signals.HANDLED


def hold_signals() -> None:
    """Have signals wait from the first bind on: their defaults would end the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _handled())


@contextlib.contextmanager
def stops_heard() -> Iterator[None]:
    """Let a stop end a process that loads an application before it has handlers.

    One that has executed itself holds all signals until then.
    """
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def take_signals() -> None:
    """Let them in, once there are handlers."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _handled())
