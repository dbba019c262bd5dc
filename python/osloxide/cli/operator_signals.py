"""Signals that operators of gunicorn and uWSGI send, beyond those that launchers know.

Owns SIGUSR1 (log files are opened again, in the parent and in its workers), SIGTTIN and SIGTTOU
(one worker more or less), SIGQUIT (a stop) and what is said to SIGUSR2, none of which may stop or
end a service in silence. Handlers are installed before the fork, and workers inherit them.

Rules: signal(7); gunicorn's signal handling for the names.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from logging.handlers import WatchedFileHandler
from typing import TYPE_CHECKING, Any

from osloxide.cli import log_file
from osloxide.server import access_logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

LOG = logging.getLogger("osloxide.serve")

HANDLED = frozenset(
    {signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU}
)
"""The signals that :func:`install` has handlers for."""


def install(
    workers: Callable[[], Iterable[int]],
    log_path: str | None,
    change_workers: Callable[[int], None] | None,
) -> None:
    """Install the handlers (main thread, before the fork).

    :param workers: pids of the workers, asked for in the parent only.
    :param log_path: where stdout and stderr go; None = where they went from the start.
    :param change_workers: has so many more workers; None where the process serves alone.
    """
    from osloxide.signals.signal_handler import SignalHandler

    parent = os.getpid()

    def on_usr1(signo: int, _frame: FrameType | None) -> None:
        reopen_logs(log_path)
        if os.getpid() == parent:
            for pid in tuple(workers()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signo)

    def on_size(signo: int, frame: FrameType | None) -> None:
        if change_workers is None:
            on_other(signo, frame)
        elif os.getpid() == parent:
            change_workers(1 if signo == signal.SIGTTIN else -1)

    def on_other(signo: int, _frame: FrameType | None) -> None:
        if os.getpid() == parent:
            LOG.warning(
                "%s does nothing here; %s",
                signal.Signals(signo).name,
                "send SIGHUP to replace the workers"
                if signo == signal.SIGUSR2
                else "start the service with --master, so that it has a parent of workers",
            )

    def on_quit(_signo: int, _frame: FrameType | None) -> None:
        # systemd sends KillSignal= to every process of the unit, workers included.
        os.kill(os.getpid(), signal.SIGTERM)

    handlers = {signal.SIGUSR1: on_usr1, signal.SIGQUIT: on_quit, signal.SIGUSR2: on_other}
    for signo in HANDLED:
        SignalHandler().add_handler(signo.name, handlers.get(signo, on_size))


def reopen_logs(log_path: str | None) -> None:
    """Open the log files of this process again by their names.

    The descriptors keep their numbers: a thread that writes just then writes to one file or to the
    other, and never to a closed one. A file that cannot be opened is told, and its old one kept.
    """
    files: list[tuple[str, tuple[Any, ...]]] = [
        (each.baseFilename, (each.stream,)) for each in _file_handlers()
    ]
    if log_path is not None:
        files.insert(0, (log_path, (sys.__stdout__, sys.__stderr__)))
    done = [_replace(path, streams) for path, streams in files]
    if all([*done, access_logs.reopen()]):
        LOG.info("log files opened again")


def _file_handlers() -> set[logging.FileHandler]:
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    return {
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
        # A watched file is opened again by its own handler.
        if isinstance(handler, logging.FileHandler) and not isinstance(handler, WatchedFileHandler)
    }


def _replace(path: str, streams: Iterable[Any]) -> bool:
    try:
        fresh = log_file.open_for_writing(path, os.O_APPEND)
    except OSError as error:
        LOG.error("cannot open %s again: %s; its old file is kept", path, error.strerror)
        return False
    try:
        for stream in streams:
            if stream is None:
                continue
            # A handler may find it in the middle of a write ("reentrant call"), which goes on.
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                stream.flush()
            with contextlib.suppress(OSError, ValueError):
                number = stream.fileno()
                os.dup2(fresh, number, inheritable=os.get_inheritable(number))
    finally:
        os.close(fresh)
    return True
