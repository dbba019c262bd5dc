"""What a forked worker runs, from the instruction after the fork to its exit.

Owns the clean cut between parent and child: own signal handlers, own random numbers, no
NOTIFY_SOCKET, and an exit that never returns into the code that forked. Serving itself is
osloxide.launch.runner's part. Called by osloxide.launch.process_launcher only, in the child.

Rules: oslo_service.service.ProcessLauncher._child_process (oslo.service 4.8).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import signal
from collections.abc import Iterable
from types import FrameType
from typing import Any, NoReturn

from osloxide import _native
from osloxide.launch import fault_dump, process_title, systemd
from osloxide.launch.runner import Runner, leave
from osloxide.signals import shutdown, signal_handler

LOG = logging.getLogger(__name__)

slot: int | None = None
"""The slot of this process; None in a process that is no worker."""

GRACE_MARGIN = 1.0
"""Seconds that a worker leaves its parent to enforce the deadline which both know."""


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What a worker is to do.

    :param service: the service to run.
    :param slot: the worker's place, stable across respawns.
    :param generation: counts the reloads of its launcher.
    :param hup_needs_daemon: whether SIGHUP stops a worker in the foreground of a terminal.
    :param inherited: the parent's signal handlers, to be replaced.
    :param signal_mask: the mask to return to; launchers fork with their signals blocked.
    :param dump: where faulthandler writes when this worker is ended by force.
    """

    conf: Any
    service: Any
    restart_method: str
    supervisor: _native.Supervisor
    scoreboard: _native.Scoreboard
    slot: int
    generation: int
    hup_needs_daemon: bool
    inherited: Iterable[signal_handler.Handler]
    signal_mask: Iterable[int]
    dump: fault_dump.FaultDump


def run(assignment: Assignment) -> NoReturn:
    """Serve, then end this process. Called in the child, right after the fork."""
    status = 1
    try:
        status = _serve(assignment)
    except BaseException:
        LOG.exception("Unhandled exception")
        status = 2
    finally:
        leave(status)


def _serve(assignment: Assignment) -> int:
    global slot
    slot = assignment.slot
    _native.enter_worker(
        assignment.supervisor, assignment.scoreboard, assignment.slot, assignment.generation
    )
    assignment.dump.keep()
    shutdown.begin_serving()
    systemd.forget()
    process_title.of_worker(assignment.slot)
    random.seed()
    runner = Runner(
        assignment.conf,
        [assignment.service],
        restart_method=assignment.restart_method,
        on_ready=_native.worker_ready,
        on_reconfigured=_native.worker_reconfigured,
        beats=True,
        grace_margin=GRACE_MARGIN,
    )

    def on_term(_signo: int, _frame: FrameType | None) -> None:
        if _native.parent_died():
            runner.request_stop("Parent process has died unexpectedly, exiting")
        else:
            runner.request_stop("Child caught SIGTERM, stopping")

    def on_hup(_signo: int, _frame: FrameType | None) -> None:
        if assignment.hup_needs_daemon and not signal_handler.is_daemon():
            runner.request_stop("Child caught SIGHUP, stopping")
        else:
            runner.request_reconfigure("Child caught SIGHUP, handling")

    signal_handler.SignalHandler().replace(
        assignment.inherited,
        {"SIGTERM": on_term, "SIGHUP": on_hup, "SIGINT": _on_int, "SIGALRM": _on_alarm},
    )
    # From here on a signal that came since the fork is ours, and so are the next ones.
    signal.pthread_sigmask(signal.SIG_SETMASK, assignment.signal_mask)
    status = runner.run()
    return (status or 1) if _native.parent_died() else status


def _on_int(_signo: int, _frame: FrameType | None) -> None:
    LOG.info("Caught SIGINT signal, instantaneous exiting")
    os._exit(1)


def _on_alarm(_signo: int, _frame: FrameType | None) -> None:
    LOG.info("Graceful shutdown timeout exceeded, instantaneous exiting")
    os._exit(1)
