"""The fork of workers, in the parent of one launcher: directly, or by a template.

Owns what surrounds a fork (blocked signals, the pause of logging, the record of the child), what
the supervisor is told of it, and which processes are workers of this launcher. Always forks through
``os.fork()`` on the main thread. Which worker is forked when is the native supervisor's decision;
what holds before a fork is osloxide.launch.forking's part, and what the child does
osloxide.launch.worker's. Sends no signal.

Rules: oslo_service.service.ProcessLauncher._start_child (oslo.service 4.8); docs/signals.md.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

from osloxide import _native
from osloxide.launch import fault_dump, forking, service_name, template, worker, worker_log
from osloxide.signals import careful_log, policy

LOG = careful_log.logger(careful_log.OF_PROCESS_LAUNCHER)

_NOT_FORKED = "Worker %d of %s could not be forked: %s; it is tried again"


class ServiceWrapper:
    """The parent's record of one service and its workers.

    :param service: the service; the parent never starts or stops it.
    :param workers: how many workers it is to have.
    """

    def __init__(self, service: Any, workers: int) -> None:
        self.service = service
        self.workers = workers
        self.children: set[int] = set()
        self.forktimes: list[float] = []


Assign = Callable[[ServiceWrapper, int, int, Any, fault_dump.FaultDump], worker.Assignment]
"""Says what a worker is to do: its service, slot and generation, the signal mask to return to, and
where it writes its fault dump."""


class WorkerFork:
    """Forks the workers of one launcher (main thread only).

    :param supervisor: whose commands are carried out, and which hears what became of them.
    :param start: forks a worker and returns its pid, None where that is refused. It calls
        :meth:`start_child`, unless a subclass of the launcher does it by itself.
    :param children: all processes that the launcher has forked, by pid; kept up to date.
    :param log: hears of each worker.
    :param assign: called in the child.
    :param enter_child: called in the child before; it drops what is the parent's.
    :param pulse: called when a template has refused a fork.
    """

    def __init__(
        self,
        supervisor: Callable[[], _native.Supervisor],
        start: Callable[[ServiceWrapper], int | None],
        children: Callable[[], dict[int, ServiceWrapper]],
        log: worker_log.WorkerLog,
        assign: Assign,
        enter_child: Callable[[], object],
        pulse: Callable[[], object],
    ) -> None:
        self._supervisor = supervisor
        self._start = start
        self._children = children
        self._log = log
        self._assign = assign
        self._enter_child = enter_child
        self._pulse = pulse
        self._pid = os.getpid()
        self._wanted: tuple[int, int, int] | None = None
        """Group, slot and generation of the worker that is to be forked next."""
        self.pids: set[int] = set()
        """Workers that live, or that nobody has reaped yet."""
        self.has_forked = False
        """Whether a fork has succeeded, ever."""
        self.templates: template.Templates | None = None
        """Forks in place of this process, where the application is loaded in advance."""

    def fork_or_put_off(self, group: int, wrap: ServiceWrapper, slot: int, generation: int) -> None:
        """A fork that is not possible for any reason is tried again, once one was possible.

        The application may have started threads in this process since then, for one.

        :param group: the number of *wrap*, which a template knows it by.
        """
        self._wanted = group, slot, generation
        try:
            pid = self._start(wrap)
            if self._wanted is not None:
                self._adopt(wrap, slot, pid)
        except Exception as error:
            with contextlib.suppress(RuntimeError):  # it was answered
                self._supervisor().fork_failed(slot, getattr(error, "errno", 0) or 0)
            if not self.has_forked:
                raise
            LOG.error(_NOT_FORKED, slot, service_name.of(wrap.service), error)
        finally:
            self._wanted = None

    def _adopt(self, wrap: ServiceWrapper, slot: int, pid: object) -> None:
        """Take over what a launcher has started that forks by itself: *pid*, or nothing."""
        if isinstance(pid, int) and pid > 0:
            self._note_child(wrap, slot, pid, fault_dump.FaultDump())
        else:
            self._supervisor().fork_failed(slot, 0)

    def start_child(self, wrap: ServiceWrapper) -> int | None:
        """Fork the worker that the supervisor asks for.

        :returns: its pid; None when the system, or a template, refused.
        :raises RuntimeError: none is asked for now.
        """
        if self._wanted is None:
            raise RuntimeError("a worker is forked only where the supervisor asks for it")
        (group, slot, generation), self._wanted = self._wanted, None
        if self.templates is not None:
            return self._start_from_template(self.templates, group, wrap, slot, generation)
        forking.prepare()
        dump = fault_dump.FaultDump()
        # A signal that reaches the child before it has handlers of its own must wait for them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, policy.held_in_fork())
        try:
            try:
                with forking.logging_paused(), forking.of_worker():
                    pid = os.fork()
            except OSError as exc:
                self._refused(wrap, slot, dump, exc)
                return None
            if pid == 0:
                self.run_child(wrap, slot, generation, mask, dump)
            self._note_child(wrap, slot, pid, dump)
        finally:
            if os.getpid() == self._pid:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return pid

    def _start_from_template(
        self,
        templates: template.Templates,
        group: int,
        wrap: ServiceWrapper,
        slot: int,
        generation: int,
    ) -> int | None:
        dump = fault_dump.FaultDump()
        try:
            started = templates.fork(group, slot, generation, dump)
        except OSError as exc:
            self._refused(wrap, slot, dump, exc)
            self._pulse()
            return None
        self._note_child(wrap, slot, started.pid, dump)
        started.begin()
        return started.pid

    def _refused(
        self, wrap: ServiceWrapper, slot: int, dump: fault_dump.FaultDump, error: OSError
    ) -> None:
        LOG.warning(_NOT_FORKED, slot, service_name.of(wrap.service), error)
        dump.close()
        self._supervisor().fork_failed(slot, error.errno or 0)

    def _note_child(
        self, wrap: ServiceWrapper, slot: int, pid: int, dump: fault_dump.FaultDump
    ) -> None:
        self._supervisor().forked(slot, pid)
        self.pids.add(pid)
        self.has_forked = True
        self._log.forked(pid, dump)
        wrap.children.add(pid)
        self._children()[pid] = wrap

    def run_child(
        self,
        wrap: ServiceWrapper,
        slot: int,
        generation: int,
        mask: Any,
        dump: fault_dump.FaultDump,
    ) -> None:
        """In the child: be a worker, and end. A template calls it as well."""
        try:
            self._enter_child()
            worker.run(self._assign(wrap, slot, generation, mask, dump))
        finally:
            os._exit(1)  # never into the code that launched, whatever happened above

    def forget(self, pid: int) -> None:
        """A worker was reaped."""
        self.pids.discard(pid)
        wrap = self._children().pop(pid, None)
        if wrap is not None:
            wrap.children.discard(pid)
