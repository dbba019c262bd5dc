"""What a forked worker runs, from the instruction after the fork to its exit.

Owns the clean cut between parent and child: own signal handlers, own random numbers, no
NOTIFY_SOCKET, and an exit that never returns into the code that forked. Serving itself is
osloxide.launch.runner's part. Called by osloxide.launch.worker_fork only, in the child.

Rules: oslo_service.service.ProcessLauncher._child_process (oslo.service 4.8).
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
from collections.abc import Iterable
from typing import Any, NoReturn

from osloxide import _native
from osloxide.launch import ending, fault_dump, process_title, systemd
from osloxide.launch.runner import Runner, exit_status
from osloxide.signals import policy, shutdown, signal_handler
from osloxide.signals.signal_names import signal_name

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
    :param has_template: whether it was forked by a template, whose exit functions are its own: they
        came with the application.
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
    has_template: bool = False


def run(assignment: Assignment) -> NoReturn:
    """Serve, then end this process. Called in the child, right after the fork.

    What a handler of the application raises in the last lines changes the status no more.
    """
    status = 1
    try:
        try:
            status = _serve(assignment)
        except BaseException as exc:  # noqa: BLE001  # it becomes the exit status
            status = exit_status(exc, 2, "Unhandled exception")
        finally:
            ending.leave(status)
    finally:
        os._exit(status & 0xFF)


def _serve(assignment: Assignment) -> int:
    global slot
    slot = assignment.slot
    _native.enter_worker(
        assignment.supervisor, assignment.scoreboard, assignment.slot, assignment.generation
    )
    assignment.dump.keep()
    if not assignment.has_template:
        ending.enter_worker()
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

    def stop(signo: int) -> None:
        if _native.parent_died():
            runner.request_stop("Parent process has died unexpectedly, exiting")
        else:
            name = signal_name(signo)
            runner.request_stop(f"Child caught {name}, stopping")

    def reload(_signo: int) -> None:
        runner.request_reconfigure("Child caught SIGHUP, handling")

    handlers = policy.Policy(stop, reload, hup_needs_daemon=assignment.hup_needs_daemon)
    signal_handler.SignalHandler().replace(assignment.inherited, handlers.handlers())
    # From here on a signal that came since the fork is ours, and so are the next ones.
    signal.pthread_sigmask(signal.SIG_SETMASK, {*assignment.signal_mask} - fault_dump.SIGNALS)
    status = runner.run()
    runner.bound_end()
    ending.run_exit_functions()
    return (status or 1) if _native.parent_died() else status
