"""The template: a process that has loaded the application, serves nobody and forks workers.

Owns both ends of it: in the parent, which template there is, when a new one is made and how a
worker is asked for; in the template, loading, the fork and the wait for the next request. The
parent itself loads nothing, so a reload can load new code: into a new template, while the old one
stands ready. Which worker is forked when is the supervisor's part, and what it does
osloxide.launch.worker's.

A worker must be a child of the parent, which waits for it, and its memory the template's. So the
template forks a process that forks the worker and ends; the kernel gives the orphan to the nearest
ancestor that asks for such, and the parent asks for the length of that fork. A worker begins when
the parent knows its pid, and ends if the parent never says so.

Rules: fork(2), PR_SET_CHILD_SUBREAPER and PR_SET_PDEATHSIG (prctl(2)), SCM_RIGHTS (unix(7)).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from osloxide import _native, exceptions
from osloxide.activation import before_fork
from osloxide.launch import ending, fault_dump, forking, orphans, process_title, systemd
from osloxide.signals import careful_log, policy, shutdown, signal_handler

LOG = careful_log.logger(__name__)

ANSWER_WITHIN = 5.0
"""Seconds that a template may take for a fork; it takes milliseconds. One that is stopped, or
starved of memory, is replaced."""

_SLICE = 0.1
"""Seconds after which a stop is looked for while a template is waited for."""

_OF_THE_SYSTEM = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""What a template cannot help: there is no process, memory or descriptor to give now."""

_BACK_OFF = 1.0
_LONGEST_BACK_OFF = 30.0
"""Seconds between two attempts to load an application that cannot be loaded; doubled each time."""

_REQUEST = struct.Struct("=III")
_PID = struct.Struct("=i")
_LOADED, _FAILED = b"loaded", b"failed"

RunWorker = Callable[[int, int, int, Any, fault_dump.FaultDump], object]
"""Called in a worker with group, slot, generation, signal mask and the memory for a fault dump;
never returns."""


class Template:
    """The parent's end of one template.

    :param pid: the process.
    :param channel: where it is asked, and answers.
    """

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self.began = time.monotonic()
        self.is_loaded = False

    def news(self) -> bytes | None:
        """What it said by itself: ``loaded``, ``failed``, or nothing because it has ended (empty).

        None = it is silent.
        """
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        if not poll.poll(0):
            return None
        try:
            return self.channel.recv(64)
        except OSError:
            return b""

    def fork(
        self,
        group: int,
        slot: int,
        generation: int,
        dump: fault_dump.FaultDump,
        is_stopping: Callable[[], bool],
    ) -> Started:
        """Have it fork a worker.

        :param is_stopping: whether no worker is wanted any more, which ends the wait.
        :raises OSError: the system refused, or the template has ended; ETIMEDOUT after
            :data:`ANSWER_WITHIN` seconds, or when *is_stopping*.
        """
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            _native.adopt_descendants(True)
            try:
                request = _REQUEST.pack(group, slot, generation)
                passed = [read_end, *dump.descriptors()]
                socket.send_fds(self.channel, [request], passed)
                answer = self._answer(is_stopping)
            finally:
                _native.adopt_descendants(False)
            if len(answer) != _PID.size:
                raise OSError(errno.ECONNRESET, "the template has ended")
            (number,) = _PID.unpack(answer)
            if number <= 0:
                raise OSError(-number, os.strerror(-number))
        except BaseException as error:
            os.close(write_end)  # a worker that was forked all the same ends
            if isinstance(error, TimeoutError):
                raise OSError(errno.ETIMEDOUT, "the template does not answer") from error
            raise
        finally:
            os.close(read_end)
        return Started(number, write_end)

    def _answer(self, is_stopping: Callable[[], bool]) -> bytes:
        poll, deadline = select.poll(), time.monotonic() + ANSWER_WITHIN
        poll.register(self.channel, select.POLLIN)
        # In slices: a signal handler that runs in here does not end a system call of Python's.
        while not poll.poll(_SLICE * 1000):
            if is_stopping() or time.monotonic() >= deadline:
                raise TimeoutError
        return self.channel.recv(_PID.size)

    def end(self) -> None:
        """Kill it and reap it. It serves nobody, and its workers are no children of it."""
        self.channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # reaped as an orphan
            os.waitpid(self.pid, 0)


class Started:
    """A worker that waits until its parent knows it."""

    def __init__(self, pid: int, write_end: int) -> None:
        self.pid = pid
        self._write_end = write_end

    def begin(self) -> None:
        """Let it begin."""
        with contextlib.suppress(OSError):  # it has ended already
            os.write(self._write_end, b"\0")
        os.close(self._write_end)


class Templates:
    """The templates of one launcher: the one that forks, and the one that is to follow it.

    Used on the main thread of the parent only.

    :param supervisor: hears when forks must wait, and what to watch.
    :param prepare: called in each template, loads the application; what it raises ends the
        template, and it has reported that.
    :param run_worker: what a worker does.
    :param inherited: the parent's signal handlers, which mean nothing in a template.
    :param is_stopping: whether the launcher was told to stop.
    """

    def __init__(
        self,
        supervisor: _native.Supervisor,
        prepare: Callable[[], object],
        run_worker: RunWorker,
        inherited: Callable[[], Iterable[signal_handler.Handler]],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._is_stopping = is_stopping
        self._supervisor = supervisor
        self._prepare = prepare
        self._run_worker = run_worker
        self._inherited = inherited
        self._current: Template | None = None
        self._coming: Template | None = None
        self._is_reload = False
        self._is_wanted_again = False
        self._try_at: float | None = None
        self._failures = 0
        self._is_over = False
        self._is_blind = False
        supervisor.adopt_orphans()
        supervisor.hold_forks(True)

    def pids(self) -> list[int]:
        """Templates that live, for signals that concern every process."""
        return [each.pid for each in (self._current, self._coming) if each is not None]

    def begin(self) -> None:
        """Make the first one."""
        self._start()

    def reload(self) -> None:
        """Load the application anew; workers are replaced when that is done. One that is loading
        goes on, and another follows it: files may have changed since it began."""
        self._failures = 0
        self._is_reload = True
        if self._coming is None:
            self._start()
        else:
            self._is_wanted_again = True

    def pulse(self, load_timeout: float) -> float:
        """Do what is due; returns the seconds until the next call, 0 for never.

        :param load_timeout: seconds that loading may take; 0 = for ever.
        """
        now = time.monotonic()
        if self._is_over:
            return 0.0
        if self._is_blind:
            self._watch()
            self.listen()
        if self._try_at is not None and now >= self._try_at:
            self._start()
            now = time.monotonic()
        longest = _BACK_OFF if self._is_blind else 0.0
        if self._try_at is not None:  # not due, or refused again
            return min(self._due_in(now), longest or _LONGEST_BACK_OFF)
        if self._coming is None or not load_timeout:
            return longest
        left = self._coming.began + load_timeout - now
        if left <= 0:
            LOG.error("The application was not loaded within %g s", load_timeout)
            self._failed()
            return self._due_in(now)
        return min(left, longest or left)

    def _due_in(self, now: float) -> float:
        """Seconds until the next try; never 0, which would be never."""
        return max(0.01, (self._try_at or now) - now)

    def listen(self) -> None:
        """Act on what the templates say."""
        if self._coming is not None and (news := self._coming.news()) is not None:
            if news == _LOADED:
                self._loaded()
            else:
                self._failed()
        if self._current is not None and self._current.news() is not None:
            LOG.warning("The template (pid %d) has ended; another is loaded", self._current.pid)
            self._lose()

    def fork(self, group: int, slot: int, generation: int, dump: fault_dump.FaultDump) -> Started:
        """As :meth:`Template.fork`. A template that cannot answer is replaced.

        :raises OSError: there is no worker.
        """
        if self._current is None:
            raise OSError(errno.EAGAIN, "there is no template")
        try:
            return self._current.fork(group, slot, generation, dump, self._is_stopping)
        except OSError as error:
            if error.errno not in _OF_THE_SYSTEM and not self._is_stopping():
                self._lose()
            raise

    def end(self) -> None:
        """The launcher stops: no worker is forked any more."""
        self._is_over = True
        for each in (self._current, self._coming):
            if each is not None:
                each.end()
        self._current = self._coming = self._try_at = None
        self._watch()

    def close_inherited(self) -> None:
        """In a child of the parent: the channels are the parent's."""
        for each in (self._current, self._coming):
            if each is not None:
                each.channel.close()

    def _start(self) -> None:
        self._try_at = None
        self._is_wanted_again = False
        try:
            forking.prepare()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except (OSError, exceptions.ForkAfterThreadsError) as error:
            self._refused(error)
            return
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, policy.held_in_fork())
        try:
            with forking.logging_paused(), forking.of_worker():
                pid = os.fork()
            if pid == 0:
                try:
                    ours.close()
                    self.close_inherited()
                    _Process(theirs, self._supervisor, self._run_worker).run(
                        self._prepare, self._inherited(), mask
                    )
                finally:
                    os._exit(1)
        except OSError as error:
            ours.close()
            self._refused(error)
        else:
            self._coming = Template(pid, ours)
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._watch()

    def _refused(self, error: Exception) -> None:
        LOG.warning("The template could not be forked: %s; it is tried again", error)
        self._put_off()
        self._watch()

    def _loaded(self) -> None:
        assert self._coming is not None
        old, self._current, self._coming = self._current, self._coming, None
        self._current.is_loaded = True
        self._failures = 0
        LOG.info(
            "The template (pid %d) has loaded the application in %.1f s",
            self._current.pid,
            time.monotonic() - self._current.began,
        )
        if old is not None:
            old.end()
        self._supervisor.hold_forks(False)
        self._watch()
        if self._is_reload:
            self._is_reload = False
            self._supervisor.replace_workers()
        if self._is_wanted_again:
            self._is_reload = True
            self._start()

    def _failed(self) -> None:
        assert self._coming is not None
        self._coming.end()
        self._coming = None
        if self._is_wanted_again:
            self._start()
        else:
            self._put_off()
            self._watch()

    def _put_off(self) -> None:
        seconds = min(_BACK_OFF * 2**self._failures, _LONGEST_BACK_OFF)
        self._failures += 1
        self._try_at = time.monotonic() + seconds
        LOG.error("No template; loading the application is tried again in %g s", seconds)

    def _lose(self) -> None:
        assert self._current is not None
        self._current.end()
        self._current = None
        self._supervisor.hold_forks(True)
        if self._coming is None and self._try_at is None:
            self._start()
        else:
            self._watch()

    def _watch(self) -> None:
        channels = [each.channel for each in (self._current, self._coming) if each is not None]
        self._is_blind = False
        try:
            self._supervisor.watch_templates([channel.fileno() for channel in channels])
        except OSError:  # it makes copies: until there are descriptors again, pulse() looks
            self._is_blind = True
            self._supervisor.watch_templates([])


class _Process:
    """What a template does, from the instruction after its fork."""

    def __init__(
        self, channel: socket.socket, supervisor: _native.Supervisor, run_worker: RunWorker
    ) -> None:
        self._channel = channel
        self._supervisor = supervisor
        self._run_worker = run_worker
        self._parent = os.getppid()

    def run(
        self,
        prepare: Callable[[], object],
        inherited: Iterable[signal_handler.Handler],
        mask: Iterable[int],
    ) -> NoReturn:
        """Load, tell the parent, and fork workers until it has no more use for this process."""
        status = 1
        try:
            self._enter(inherited, mask)
            try:
                prepare()
            except BaseException:  # noqa: BLE001  # prepare() has reported it
                self._channel.send(_FAILED)
            else:
                before_fork.prepare()
                # Once more, for what loading made: a collection in a worker would copy its pages.
                gc.collect()
                orphans.freeze()
                self._channel.send(_LOADED)
                self._serve()
                status = 0
        except (BrokenPipeError, ConnectionResetError):
            pass  # the parent is gone
        except BaseException:
            LOG.exception("The template ends")
        finally:
            # No exit functions: they belong to the workers, who inherit them.
            ending.leave(status)

    def _enter(self, inherited: Iterable[signal_handler.Handler], mask: Iterable[int]) -> None:
        _native.enter_template(self._supervisor)
        ending.enter_worker()
        shutdown.begin_serving()
        systemd.forget()
        process_title.of_template()
        # Handlers that do nothing, and not SIG_IGN: commands would inherit that.
        deaf = {signal.Signals(signo).name: ignore for signo in policy.HANDLED}
        signal_handler.SignalHandler().replace(inherited, deaf)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _serve(self) -> None:
        while True:
            request, descriptors, _flags, _address = socket.recv_fds(
                self._channel, _REQUEST.size, 2, socket.MSG_CMSG_CLOEXEC
            )
            if len(request) != _REQUEST.size:
                return
            try:
                answer = self._fork(_REQUEST.unpack(request), descriptors)
            except OSError as error:
                answer = -(error.errno or errno.EAGAIN)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            self._channel.send(_PID.pack(answer))

    def _fork(self, which: tuple[int, int, int], descriptors: list[int]) -> int:
        """The pid of a new worker, or an errno, negative."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, policy.held_in_fork())
        try:
            between = _fork()
            if between == 0:
                try:
                    os.close(read_end)
                    worker = _fork()
                    if worker == 0:
                        os.close(write_end)
                        self._begin_worker(which, descriptors, mask)
                    os.write(write_end, _PID.pack(worker))
                finally:
                    os._exit(0)
            os.close(write_end)
            write_end = -1
            if between < 0:
                return between
            # Its end is what makes the worker a child of the parent.
            os.waitpid(between, 0)
            answer = os.read(read_end, _PID.size)
            return _PID.unpack(answer)[0] if len(answer) == _PID.size else -errno.ECHILD
        finally:
            os.close(read_end)
            if write_end != -1:
                os.close(write_end)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _begin_worker(
        self, which: tuple[int, int, int], descriptors: list[int], mask: Any
    ) -> NoReturn:
        try:
            self._channel.close()
            wait_end, *memory = descriptors
            if not os.read(wait_end, 1):
                os._exit(0)  # the parent does not know this process
            os.close(wait_end)
            if os.getppid() != self._parent:
                LOG.error("This worker is no child of its parent; the kernel refused that")
                os._exit(1)
            group, slot, generation = which
            dump = fault_dump.FaultDump.of(memory)
            self._run_worker(group, slot, generation, mask, dump)
        finally:
            os._exit(1)


def _fork() -> int:
    """As ``os.fork()``, with the errno, negative, where the system refuses."""
    try:
        with forking.logging_paused(), forking.of_worker():
            return os.fork()
    except OSError as error:
        return -(error.errno or errno.EAGAIN)


def ignore(_signo: int, _frame: Any) -> None:
    """The parent decides when a template ends."""
