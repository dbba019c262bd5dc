"""The launcher that runs services in worker processes.

Owns what a signal means to the parent of workers. Which worker is forked, signalled or killed when
is decided by the native supervisor; how one is forked is osloxide.launch.worker_fork's part, what
it does osloxide.launch.worker's, and what the log says of its life osloxide.launch.worker_log's.
How a stop leaves a reload is osloxide.launch.parent_reload's part. With *no_fork*
osloxide.launch.unforked takes its place. Starts no thread and never starts or stops a service.

Rules: oslo_service.service.ProcessLauncher (oslo.service 4.8); docs/signals.md, docs/lifecycle.md.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, ClassVar, assert_never

from osloxide import _native
from osloxide.activation import import_hook
from osloxide.launch import (
    configuration,
    ending,
    fault_dump,
    orphans,
    parent_reload,
    process_title,
    scoreboard,
    service_name,
    services,
    standard_streams,
    systemd,
    template,
    unforked,
    worker,
    worker_fork,
    worker_groups,
    worker_log,
)
from osloxide.launch.runner import DEADLINE_OF_START
from osloxide.launch.worker_fork import ServiceWrapper
from osloxide.signals import careful_log, policy, shutdown, signal_handler
from osloxide.signals.signal_names import signal_name
from osloxide.threads import identity, main_thread, stopping

LOG = careful_log.logger(__name__)

STOP_MARGIN = 1.0
"""Seconds after the grace period at which a parent ends that could not say that it was over."""

_launchers: identity.WeakIdentitySet[ProcessLauncher] = identity.WeakIdentitySet()
"""Those of this process: its signals and its end concern all of them."""

_waited_for: dict[int, ProcessLauncher] = {}
"""By pid, the launcher that the main thread supervises, or was asked to."""


def _kill_all_workers() -> None:
    for launcher in tuple(_launchers):
        if launcher._pid == os.getpid() and launcher._supervisor is not None:
            launcher._supervisor.kill_all(signal.SIGKILL)


def _close_inherited() -> None:
    for launcher in _launchers:
        launcher._log.close_inherited()


class ProcessLauncher:
    """Runs services in worker processes and replaces those that die.

    :param conf: configuration.
    :param wait_interval: accepted for compatibility: the end of a worker is noticed at once.
    :param restart_method: what SIGHUP does: ``"reload"`` reads the configuration files again and
        replaces the workers one by one; ``"mutate"`` reads them again and calls reset() in the
        parent and in every worker, and no process is replaced.
    :param no_fork: run the service in this process, inside :meth:`launch_service`.
    :param start_method: None or ``"fork"``.
    :raises ValueError: *restart_method* or *start_method* is unknown.
    """

    FORKS_AT_LAUNCH: ClassVar[bool] = False
    """Whether launch_service() forks; otherwise wait() does."""
    HUP_NEEDS_DAEMON: ClassVar[bool] = False
    """Whether SIGHUP is a SIGTERM for a process in the foreground of a terminal."""

    def __init__(
        self,
        conf: Any,
        wait_interval: float | None = None,
        restart_method: str = "reload",
        no_fork: bool = False,
        start_method: str | None = None,
    ) -> None:
        services.check_restart_method(restart_method)
        self.conf = conf
        configuration.register_options(conf)
        self.children: dict[int, ServiceWrapper] = {}
        self.sigcaught: int | None = None
        self.running = True
        self.wait_interval = wait_interval
        self.launcher: Any = None
        self.restart_method = restart_method
        self.no_fork = no_fork
        self.start_method = start_method
        self.service: Any = None
        self.signal_handler: signal_handler.SignalHandler | None = None
        self._signals = signal_handler.SignalHandler()
        self._notifier = systemd.Notifier()
        self._unforked = unforked.Unforked(conf, restart_method, self._notifier, self._signals)
        self._groups = worker_groups.WorkerGroups(self._supervisor_of_this_process)
        self._making = threading.RLock()
        self._driving = threading.RLock()
        """Held by the thread that carries out the supervisor's commands."""
        self._scoreboard: _native.Scoreboard | None = None
        self._supervisor: _native.Supervisor | None = None
        self._pid = os.getpid()
        self._due: str | None = None
        self._was_told_to_stop = False
        self._is_stopping = False
        self._is_supervising = False
        self._is_in_rounds = False
        self._reload = parent_reload.ParentReload(lambda: self._is_stopping, self._bound_stop)
        self._has_ended = threading.Event()
        self._log = worker_log.WorkerLog()
        self._fork = worker_fork.WorkerFork(
            self._supervisor_of_this_process,
            lambda wrap: self._start_child(wrap),
            lambda: self.children,
            self._log,
            self._assign,
            _close_inherited,
            self._pulse,
        )
        _launchers.add(self)
        orphans.own_children.add(self)
        shutdown.begin_serving()
        standard_streams.fill()
        ending.take_back()
        self._policy = policy.Policy(
            self._request_stop,
            self._request_reload,
            hup_needs_daemon=self.HUP_NEEDS_DAEMON,
            before_exit=_kill_all_workers,
        )
        if no_fork:
            self.signal_handler = self._signals
            self.add_signal_handlers()

    # ---- launching

    def launch_service(self, service: Any, workers: int | None = 1) -> None:
        """Have *service* run in workers.

        :param workers: how many; None means 1, 0 none.
        :raises TypeError: *service* is no ServiceBase.
        :raises ValueError: *workers* is negative.
        :raises ForkAfterThreadsError: native threads run in this process already.
        """
        services.check_service_base(service)
        import_hook.refuse_if_monkey_patched()
        if self.no_fork:
            self.service = service
            self._unforked.run(service)
            return
        services.refuse_spawn(self.start_method, service)
        count = 1 if workers is None else workers
        if count < 0:
            raise ValueError(f"Number of workers should be positive! (got {workers!r})")
        service.backdoor_port = None
        self._handle_signals_on_main_thread()
        LOG.info("Starting %d workers", count)
        self._set_timeouts()
        group = self._groups.add(service, count)
        # The main thread forks: at once where it supervises, else in wait().
        is_main = threading.current_thread() is threading.main_thread()
        if self.FORKS_AT_LAUNCH and is_main and _waited_for.get(os.getpid()) is not self:
            self._fork_at_launch(group)

    def _fork_at_launch(self, group: int) -> None:
        supervisor = self._supervisor_of_this_process()
        self._is_in_rounds = True  # a handler's stop() must not come between a fork and its answer
        try:
            with self._driving:
                while self._due is None and (command := supervisor.due()) is not None:
                    self._obey(command)
        except BaseException:
            self._groups.give_up(group)
            raise
        finally:
            self._is_in_rounds = False

    def change_workers(self, difference: int) -> None:
        """Have more or fewer workers of the first service that has any; one stays.

        Workers that are not wanted any more drain as they do when they are stopped. Signal handlers
        may call it; it holds from the next look of the supervisor on.
        """
        self._groups.change(difference)

    def use_template(self, prepare: Callable[[], object]) -> None:
        """Fork workers from a process that has loaded the application (before any is launched).

        :param prepare: loads it, called in that process, again for each reload; reports by itself
            what keeps it from doing so, and raises it.
        :raises ValueError: the launcher mutates its configuration in place, of which a template
            would not hear, or forks no workers.
        """
        if self.no_fork or self.restart_method != "reload":
            raise ValueError("a template needs workers, and restart_method='reload'")
        self._fork.templates = template.Templates(
            self._supervisor_of_this_process(),
            prepare,
            self._run_from_template,
            self._inherited,
            lambda: self._is_stopping,
        )

    def template_pids(self) -> list[int]:
        """Pids of the template and of one that is to follow it."""
        return [] if self._fork.templates is None else self._fork.templates.pids()

    def _supervisor_of_this_process(self) -> _native.Supervisor:
        if self._supervisor is None:
            with self._making:  # threads may launch at the same time
                if self._supervisor is None:
                    self._scoreboard = scoreboard.make()
                    self._supervisor = _native.Supervisor(self._scoreboard)
        return self._supervisor

    def _set_timeouts(self) -> None:
        """Take the timeouts over from the configuration, at the start and whenever it is read."""
        supervisor = self._supervisor_of_this_process()
        supervisor.set_graceful_timeout(configuration.grace_seconds(self.conf))
        supervisor.set_worker_timeout(self.conf[configuration.GROUP].worker_timeout)

    # ---- signals

    def handle_signal(self) -> None:
        """Install the launcher's signal handlers, behind those of the application."""
        # Before any handler: one that comes while it is made would make another, and ask that one.
        self._supervisor_of_this_process()
        self._signals.add_last(self._handlers())
        policy.bound_handlers(configuration.grace_seconds(self.conf), STOP_MARGIN)
        policy.unblock()

    def _handle_signals_on_main_thread(self) -> None:
        # Asked here and not in handle_signal(), which applications replace.
        if threading.current_thread() is threading.main_thread():
            self.handle_signal()

    def _handlers(self) -> dict[str, signal_handler.Handler]:
        return {
            "SIGTERM": self._handle_term,
            "SIGHUP": self._handle_hup,
            "SIGINT": self._fast_exit,
            "SIGALRM": self._on_alarm_exit,
        }

    def _handle_term(self, signo: int, frame: FrameType | None) -> None:
        self._policy.graceful_stop(signo, frame)
        self._reload.leave_if_stopped(signo, f"Caught {signal_name(signo)}, which")

    def _handle_hup(self, signo: int, frame: FrameType | None) -> None:
        self._policy.reload(signo, frame)
        self._reload.leave_if_stopped(signo, f"Caught {signal_name(signo)}, which")

    def _fast_exit(self, signo: int, frame: FrameType | None) -> None:
        self._policy.fast_exit(signo, frame)

    def _on_alarm_exit(self, signo: int, frame: FrameType | None) -> None:
        self._policy.timeout_exit(signo, frame)

    def _request_stop(self, signo: int) -> None:
        if self._has_ended.is_set():
            if not self._was_told_to_stop:
                # The launcher ended by itself, and is giving its handlers back.
                self._was_told_to_stop = True
                self.sigcaught = signo
                ending.begin(0, float(self.conf.graceful_shutdown_timeout or 0))
            ending.cut_short()
            return
        self._was_told_to_stop = self._is_stopping = True
        if self.sigcaught != signal.SIGTERM:
            self.sigcaught = signo
        self.running = False
        # Recorded before anything that can fail; acted upon when this handler has returned.
        self._supervisor_of_this_process().request("stop")
        self._bound_stop()
        if self._is_supervising:
            self._close_listeners()

    def _request_reload(self, signo: int) -> None:
        if self._is_stopping:
            return
        self.sigcaught = signo
        self.running = False
        self._supervisor_of_this_process().request(self.restart_method)

    def _bound_stop(self) -> None:
        """Arm a deadline of this process, beyond that of its workers.

        What the main thread waits for may be a log that takes no line. Workers notice the end of
        their parent.
        """
        grace = float(self.conf.graceful_shutdown_timeout or 0)
        if grace <= 0 and self._reload.is_under_way:
            grace = DEADLINE_OF_START
        if grace > 0 and self._pid == os.getpid():
            with contextlib.suppress(OSError):
                _native.arm_deadline(grace + STOP_MARGIN)

    def _asks_for_reload(self, signo: int) -> bool:
        if self.HUP_NEEDS_DAEMON:
            return signal_handler.is_sighup_and_daemon(signo, self._signals)
        return signo == signal.SIGHUP

    # ---- supervising

    def wait(self) -> int | None:
        """Keep the workers running until the launcher is stopped.

        :returns: 0; the caller goes on.
        :raises SystemExit: 1, when a worker had to be killed at the deadline. Most callers drop
            what wait() returns, and a stop that lost work must not look like a clean one.
        :raises RuntimeError: not called on the main thread, nor on a greenthread while the main
            thread waits in something of eventlet's; or another launcher is waited for.
        """
        if self.no_fork:
            return 0
        if not self._groups and not self.children:
            if threading.current_thread() is threading.main_thread():
                self._signals.replace(self._handlers().values(), {})
            return 0
        if threading.current_thread() is not threading.main_thread():
            return self._wait_on_main_thread()
        import_hook.announce()
        configuration.log_options(self.conf, LOG)
        _native.install_wakeup()
        self._set_timeouts()
        process_title.of_supervisor()
        self._claim_main_thread()
        with self._driving:
            status = self._wait_here()
        if status != 0:
            raise SystemExit(status)
        return 0

    def _wait_here(self) -> int:
        """Supervise until the launcher is stopped; returns the exit status."""
        is_over = False
        try:
            if self._fork.templates is not None and self.running:
                self._fork.templates.begin()
                self._pulse()
            with self._until_green_thread_is_killed():
                self._supervise()
            self.stop()
            is_over = True
        finally:
            status = 0 if self._supervisor is None else self._supervisor.exit_status()
            _native.uninstall_wakeup()
            ended = self._has_ended
            if not is_over and not self._fork.has_forked:
                # Nothing has begun: the launcher may be used again.
                self._has_ended = threading.Event()
            ended.set()
            self._reload.give_back()
            self._release_main_thread()
            _native.disarm_deadline()
            if self._was_told_to_stop:
                ending.begin(status, float(self.conf.graceful_shutdown_timeout or 0))
            else:
                self._signals.replace(self._handlers().values(), {})
        return status

    def _wait_on_main_thread(self) -> int:
        """:meth:`wait` of another thread: the main thread does it, which waits for that one.

        neutron calls it on two greenthreads, and waits for both.
        """
        if self._has_ended.is_set():
            return 0
        if self._claim_main_thread() is not self:
            raise RuntimeError(
                "another ProcessLauncher is waited for on the main thread already; launch both "
                "services with one"
            )
        status: int = 0
        try:
            with self._until_green_thread_is_killed():
                status = main_thread.run(lambda: 0 if self._has_ended.is_set() else self.wait())
        except main_thread.NotLentError as exc:
            self._release_main_thread()
            raise RuntimeError(
                "ProcessLauncher.wait() was called on thread "
                f"{threading.current_thread().name}; workers can only be forked and signals only "
                f"be handled on the main thread, {exc}"
            ) from exc
        if not self._has_ended.is_set():
            self.stop()
            status = 0 if self._supervisor is None else self._supervisor.exit_status()
        if status != 0:
            raise SystemExit(status)
        return status

    def _claim_main_thread(self) -> ProcessLauncher:
        """The launcher that the main thread supervises until it has ended: this one, if it is free.

        It supervises one at a time; a second would silently get no worker replaced.
        """
        first = _waited_for.setdefault(os.getpid(), self)
        if first._has_ended.is_set():
            _waited_for[os.getpid()] = first = self
        return first

    def _release_main_thread(self) -> None:
        if _waited_for.get(os.getpid()) is self:
            _waited_for.pop(os.getpid(), None)

    def _supervise(self) -> None:
        """Rounds of supervising, each ended by a signal, until one asks to stop."""
        self._is_in_rounds = True
        try:
            while (due := self._supervise_until_due()) in services.RESTART_METHODS:
                self._reconfigure_unless_stopped(due)
        finally:
            self._is_in_rounds = False

    def _supervise_until_due(self) -> str | None:
        """One round; returns what ended it: a restart method, or a stop."""
        self.handle_signal()
        self._respawn_children()
        due, self._due = self._due, None
        signo = self.sigcaught
        if due is None and signo is not None and self._asks_for_reload(signo):
            due = self.restart_method
        if signo is not None:
            what = "handling" if due == "mutate" else "stopping children"
            LOG.info("Caught %s, %s", signal_name(signo), what)
        return due

    def _respawn_children(self) -> None:
        """Supervise until a request asks for more than forking and reaping."""
        while self._due is None:
            self._is_supervising = True
            try:
                if self._is_stopping:
                    self._close_listeners()
                self._groups.settle()
                command = self._supervisor_of_this_process().next()
            finally:
                self._is_supervising = False
            if command is None:
                self._due = "stopping"
                self.running = False
            else:
                self._obey(command)

    def _reconfigure_unless_stopped(self, restart_method: str) -> None:
        self._reload.run_unless_stopped(lambda: self._reconfigure(restart_method))
        if self._is_stopping and not self.conf.graceful_shutdown_timeout:
            _native.disarm_deadline()  # it was only for the reset()

    def _reconfigure(self, restart_method: str) -> None:
        self.sigcaught = None
        self._notifier.reloading()
        self._pulse()
        is_read = self._reload.call_beside_threads(lambda: self._read_and_reset(restart_method))
        if not self._is_stopping:
            self._go_on_with(is_read)
        self.running = self.sigcaught is None

    def _go_on_with(self, is_read: bool) -> None:
        """Have the workers follow what was read, or tell systemd that nothing has changed.

        :param is_read: whether the files could be read.
        """
        if not is_read:
            self._notifier.reloaded()
            self._pulse()
        elif self._fork.templates is None:
            self._supervisor_of_this_process().configured()
        else:
            self._fork.templates.reload()
            self._pulse()

    def _read_and_reset(self, restart_method: str) -> bool:
        """Read the configuration files again and reset the parent's copies of the services.

        :returns: False when the files could not be read, and nothing changes.
        """
        if not configuration.reload(self.conf, restart_method):
            return False
        self._set_timeouts()
        known = [*self._groups.with_workers(), *self.children.values()]
        for service in {id(wrapper.service): wrapper.service for wrapper in known}.values():
            if self._is_stopping:
                break  # the exception was swallowed
            self._reload.reset(service)
        return True

    def stop(self) -> None:
        """Stop all workers and wait until they have left.

        Called in a signal handler while wait() runs, or while workers are forked, it only asks for
        that, and ends a reset() that it has interrupted. Called on another thread, it ends a
        reset() on the main thread likewise, unless the application has a handler for SIGURG, and
        waits for the workers itself where the main thread is not in wait().
        """
        self.running = False
        LOG.debug("Stop services.")
        self._stop_foreign_children()
        if self._supervisor is None:
            return
        LOG.debug("Killing children.")
        has_ended = self._has_ended
        self._is_stopping = True
        self._supervisor.request("stop")
        if threading.current_thread() is not threading.main_thread():
            _native.wake()
            self._reload.leave_from_thread(has_ended)
            with self._driving:
                if not has_ended.is_set():
                    self._drain()
        elif self._is_in_rounds:
            self._reload.leave_by_stop()
        else:
            with self._driving:
                self._drain()

    def _drain(self) -> None:
        if self._fork.pids:
            LOG.info("Waiting on %d children to exit", len(self._fork.pids))
        self._begin_shutdown()
        assert self._supervisor is not None
        while (command := self._supervisor.next()) is not None:
            self._obey(command)

    def _begin_shutdown(self) -> None:
        shutdown.begin_shutdown()
        self._notifier.stopping()
        self._pulse()
        self._close_listeners()

    def _close_listeners(self) -> None:
        """Close this process's copies, before the workers are told to stop and close theirs.

        The last close resets connections that the kernel has queued, and workers serve these first.
        Called only where no worker is forked any more: it would need them. A template has copies
        as well, and ends.
        """
        if self._fork.templates is not None:
            self._fork.templates.end()
        if not any(other._fork.pids for other in _launchers if other is not self):
            shutdown.close_listeners()

    def _stop_foreign_children(self) -> None:
        """Stop children that a subclass forked by itself and entered into ``children``."""
        foreign = {pid: wrap for pid, wrap in self.children.items() if pid not in self._fork.pids}
        for service in {id(wrap.service): wrap.service for wrap in foreign.values()}.values():
            try:
                services.call_service(service.stop)
            except Exception:
                LOG.exception("Error stopping %s", service_name.of(service))
        for pid in foreign:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        while any(pid not in self._fork.pids for pid in self.children):
            self._wait_child()

    def _start_child(self, wrap: ServiceWrapper) -> int | None:
        """Fork the worker that the supervisor asks for: what a subclass replaces or adds to.

        :returns: its pid; None when the system, or a template, refused.
        """
        return self._fork.start_child(wrap)

    def _wait_child(self) -> ServiceWrapper | None:
        """Wait for one child that a subclass forked; others are the native supervisor's."""
        pid = next((pid for pid in self.children if pid not in self._fork.pids), None)
        if pid is None:
            return None
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        wrap = self.children.pop(pid)
        wrap.children.discard(pid)
        return wrap

    # ---- the supervisor's commands

    def _obey(self, command: _native._Command) -> None:
        """Carry out *command*. What fails here may be the log, memory or descriptors: it costs this
        command, and neither the parent nor its workers."""
        try:
            self._carry_out(command)
        except Exception:
            if not self._fork.has_forked:
                raise  # nothing serves yet: the start has failed
            LOG.exception("The parent goes on after a failure at %r", command[0])

    def _carry_out(self, command: _native._Command) -> None:
        match command:
            case ("fork", group, slot, generation):
                self._fork.fork_or_put_off(group, self._groups[group], slot, generation)
            case ("exited", pid, group, slot, status, lifetime):
                self._fork.forget(pid)
                self._log.exited(pid, self._groups.name_of(group), slot, status, lifetime)
            case ("backoff", group, slot, seconds, failures):
                others = len(self._fork.pids)
                self._log.put_off(self._groups.name_of(group), slot, seconds, failures, others)
            case ("late", slot, pid, waited):
                self._log.late(slot, pid, waited, self._scoreboard)
            case ("hung", slot, pid, seconds):
                self._log.hung(slot, pid, seconds, self._scoreboard)
            case ("worn", group, slot, pid, why, number):
                self._log.worn(pid, self._groups.name_of(group), slot, why, number)
            case ("leaves_first", group, slot, pid, waited):
                self._log.leaves_first(pid, self._groups.name_of(group), slot, waited)
            case ("all_ready",):
                self._notifier.ready()
                self._pulse()
            case ("reloaded",):
                self._notifier.reloaded()
                self._pulse()
            case ("tick",):
                self._pulse()
            case ("template",):
                assert self._fork.templates is not None
                self._fork.templates.listen()
                self._pulse()
            case ("orphan", pid):
                self._reap_orphan(pid)
            case ("reload",) | ("mutate",) | ("stopping", _):
                self._due = command[0]
            case ("interrupted",):
                pass
            case _:
                assert_never(command)

    def _pulse(self) -> None:
        """Tell systemd what is due, and have the supervisor come back when there is more."""
        due = [self._notifier.pulse()]
        if self._fork.templates is not None:
            due.append(self._fork.templates.pulse(self.conf[configuration.GROUP].worker_timeout))
        seconds = min((each for each in due if each), default=0.0)
        self._supervisor_of_this_process().set_tick(seconds)

    def _run_from_template(
        self, group: int, slot: int, generation: int, mask: Any, dump: fault_dump.FaultDump
    ) -> None:
        self._fork.run_child(self._groups[group], slot, generation, mask, dump)

    def _inherited(self) -> list[signal_handler.Handler]:
        """Handlers of this process that a child of it is to replace."""
        return [
            template.ignore,
            *(handler for launcher in _launchers for handler in launcher._handlers().values()),
        ]

    def _assign(
        self,
        wrap: ServiceWrapper,
        slot: int,
        generation: int,
        mask: Any,
        dump: fault_dump.FaultDump,
    ) -> worker.Assignment:
        assert self._supervisor is not None
        assert self._scoreboard is not None
        return worker.Assignment(
            conf=self.conf,
            service=wrap.service,
            restart_method=self.restart_method,
            supervisor=self._supervisor,
            scoreboard=self._scoreboard,
            slot=slot,
            generation=generation,
            hup_needs_daemon=self.HUP_NEEDS_DAEMON,
            inherited=self._inherited(),
            signal_mask=mask,
            dump=dump,
            has_template=self._fork.templates is not None,
        )

    def _reap_orphan(self, pid: int) -> None:
        """Reap an orphan of the container, for which this is process 1."""
        if orphans.belongs_to_application(pid):
            return
        status = self._supervisor_of_this_process().reap_orphan(pid)
        if status is not None:
            orphans.log_reaped(pid, status)

    # ---- no_fork

    def add_signal_handlers(self) -> None:
        """Install the handlers of a launcher that does not fork, instead of all others."""
        self._signals.clear()
        self._signals.add_last(
            {
                "SIGTERM": self._graceful_shutdown,
                "SIGINT": self._fast_exit,
                "SIGHUP": self._reload_service,
                "SIGALRM": self._on_alarm_exit,
            }
        )

    def _graceful_shutdown(self, signo: int, frame: FrameType | None) -> None:
        self._unforked.graceful_shutdown(signo, frame)

    def _reload_service(self, signo: int, frame: FrameType | None) -> None:
        self._unforked.reload(signo, frame)

    def restart(self) -> None:
        """Do what SIGHUP does."""
        if self.no_fork:
            self._unforked.reconfigure()
        elif self._supervisor is not None:
            self._supervisor.request(self.restart_method)

    # ---- callers that use green threads themselves

    @contextlib.contextmanager
    def _until_green_thread_is_killed(self) -> Iterator[None]:
        """Treat greenlet's GreenletExit as a request to stop, without ever importing greenlet."""
        try:
            yield
        except BaseException as exc:
            if not stopping.is_kill(exc):
                raise
            LOG.info("Wait called after thread killed. Cleaning up.")
