"""The control thread: takes requests from signal handlers and gets signals to the main thread.

Owns the one way of a signal to the main thread of a process that runs services, the queue of
requests and one deadline. Knows no service and decides nothing. It closes a gap of CPython:
handlers run on the main thread, but a main thread that waits for a lock does not notice a signal
that the kernel delivered to another thread, or in the instant before it began to wait. So whenever
a signal number comes out of the wakeup fd, this thread nudges the main thread until that has been
heard; all handlers that were due have run by then.

The native watch thread stands between the wakeup fd and this thread. It needs no interpreter, and
ends a process in which no handler has run within the grace period after a signal that ends
programs.

Rules: signal(7), Python's documentation of signal.set_wakeup_fd.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from osloxide import _native
from osloxide.signals import careful_log, nudge
from osloxide.signals.wakeup_fd import SharedWakeupFd
from osloxide.threads import own

LOG = careful_log.logger(__name__)

_LONGEST_SLEEP = 86_400.0
"""Seconds between two looks at the clock at most: poll(2) counts milliseconds in a C int, and a
grace period may be longer."""

_PULSE_AGAIN = 5.0
"""Seconds until a pulse that failed is called again."""

Request = tuple[str, str]


class _Pipe:
    """A pipe of which both ends are open for as long as there is a reference to it.

    So no descriptor of it is closed, and its number given to another file, under a thread or a
    signal handler that uses it.
    """

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        for end in vars(self).values():  # none where the system had none to give
            close(end)


class ControlThread:
    """Requests, signals and the clock of one process.

    :param handle: called on the control thread with each request; returns False to end it.
    :param is_late: called on the control thread when :attr:`deadline` has passed.
    :param pulse: called on the control thread at its start and whenever the seconds that it
        returned have passed; 0 is never. :meth:`look`, and in process 1 the end of a child, have it
        called out of turn.
    :param on_nudge: called on the main thread at each nudge; what it raises is raised there.
    :param patience: called when signals are first taken; seconds that the handler of a signal that
        ends programs has to run, 0 is for ever.
    """

    def __init__(
        self,
        handle: Callable[[Request], bool],
        is_late: Callable[[], object],
        pulse: Callable[[], float] = lambda: 0.0,
        on_nudge: Callable[[], object] = lambda: None,
        patience: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.deadline: float | None = None
        """``time.monotonic()`` seconds; write it before :meth:`put`, which has it looked at."""
        self._handle = handle
        self._is_late = is_late
        self._pulse = pulse
        self._on_nudge = on_nudge
        self._patience_for_handlers = patience
        self._next_pulse: float | None = 0.0
        self._requests: collections.deque[Request] = collections.deque()
        self._pipe: _Pipe | None = None
        self._wakeup_fd: SharedWakeupFd | None = None
        self._nudge = nudge.Nudge(self._hear_nudge)
        self._is_nudging = False
        self._is_heard = True
        self._patience = nudge.FIRST_PATIENCE
        self._next_nudge = 0.0
        self._thread: threading.Thread | None = None

    def put(self, request: Request) -> None:
        """Hand over a request. Callable from signal handlers: takes no lock, never blocks."""
        self._requests.append(request)
        pipe = self._pipe  # it stays open until this has returned, whatever close() does meanwhile
        if pipe is not None:
            with contextlib.suppress(OSError):  # a full pipe wakes the thread as well
                os.write(pipe.write_end, b"\0")

    def look(self) -> None:
        """Have the clock looked at and the pulse called, from any thread."""
        self._next_pulse = 0.0
        self.put(("look at the clock", ""))

    def take(self) -> list[Request]:
        """What was put before :meth:`open`, and take it out."""
        early: list[Request] = []
        while self._requests:  # one by one: a signal handler may put another at any moment
            early.append(self._requests.popleft())
        return early

    def open(self) -> None:
        """Start the thread; on the main thread also take the wakeup fd."""
        self._pipe = pipe = _Pipe()
        if threading.current_thread() is threading.main_thread():
            _native.uninstall_wakeup()
            self._wakeup_fd = SharedWakeupFd(self._relay(pipe.write_end))
            self._wakeup_fd.take()
            if self._nudge.take():
                _native.nudge_main_thread(True)
            if os.getpid() == 1 and signal.getsignal(signal.SIGCHLD) in nudge.UNHANDLED:
                # Only a signal with a handler shows on the wakeup fd. Ignored, it would have the
                # kernel throw exit statuses away.
                signal.signal(signal.SIGCHLD, lambda *_: None)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        self._thread = own.start("service control", lambda: self._serve(pipe.read_end))

    def bound_unheard(self, seconds: float) -> None:
        """Another *patience*, as the configuration has it now."""
        _native.bound_unheard(seconds)

    def _relay(self, write_end: int) -> int:
        """The descriptor for CPython: the watch thread's, or this thread's own without one."""
        try:
            relay = _native.relay_signals(write_end, self._patience_for_handlers())
        except OSError:
            return write_end
        _native.guard_signals(0.0)  # the watch thread bounds the handlers from here on
        return relay

    def close(self) -> None:
        """Give everything back. The thread must have been told to end."""
        if self._thread is not None:
            self._thread.join(1.0)
        if self._wakeup_fd is not None:
            self._wakeup_fd.give_back()
            _native.stop_relaying()
            if self._nudge.is_taken:
                _native.nudge_main_thread(False)
                self._nudge.give_back()
        if self._thread is not None and not self._thread.is_alive():
            self._pipe = None

    def nudge(self) -> None:
        """Have the main thread run its signal handlers now, :attr:`on_nudge` among them.

        Does nothing where the application uses the signal itself.
        """
        self._nudge.send()

    def _hear_nudge(self) -> None:
        self._is_heard = True
        self._on_nudge()

    def _serve(self, read_end: int) -> None:
        poll = select.poll()
        poll.register(read_end, select.POLLIN)
        while True:
            while self._requests:
                if self._guarded(self._handle, self._requests.popleft()) is False:
                    return
            self._nudge_until_heard()
            if self._next_pulse is not None and time.monotonic() >= self._next_pulse:
                self._next_pulse = None  # before the call: look() may come during it
                seconds = self._guarded(self._pulse)
                if seconds is None:
                    seconds = _PULSE_AGAIN
                if seconds and self._next_pulse is None:
                    self._next_pulse = time.monotonic() + seconds
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.deadline = None  # once: what ends the process does not return
                self._guarded(self._is_late)
            poll.poll(self._milliseconds_left())
            if self._drain(read_end):
                self._is_nudging = self._nudge.is_taken
                self._is_heard = False
                self._patience = nudge.FIRST_PATIENCE
                self._next_nudge = 0.0

    def _guarded(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What *call* returns; None when it failed. No failure ends the handling of signals."""
        try:
            return call(*arguments)
        except BaseException:
            with contextlib.suppress(BaseException):
                LOG.exception("The control thread goes on after a failure")
            return None

    def _milliseconds_left(self) -> float | None:
        ends = [] if self.deadline is None else [self.deadline]
        if self._is_nudging:
            ends.append(self._next_nudge)
        if self._next_pulse is not None:
            ends.append(self._next_pulse)
        if not ends:
            return None
        return min(max(min(ends) - time.monotonic(), 0), _LONGEST_SLEEP) * 1000

    def _drain(self, read_end: int) -> bool:
        """Empty the pipe; True when a signal has arrived that the main thread must hear of."""
        arrived = b""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(read_end, 4096):
                arrived += data
        signals = bytes(number for number in arrived if number)
        if signals and self._wakeup_fd is not None:
            self._wakeup_fd.pass_on(signals)
            if not self._nudge.is_taken:
                _native.signals_heard()  # this much can be told: the interpreter runs
        if signal.SIGCHLD in signals and os.getpid() == 1:
            self._next_pulse = 0.0
        return any(number != nudge.SIGNAL for number in signals)

    def _nudge_until_heard(self) -> None:
        if not self._is_nudging:
            return
        if self._is_heard:
            if not self._requests:  # what the handlers have asked for is next, with its own bound
                self._is_nudging = False
                _native.signals_heard()
            return
        now = time.monotonic()
        if now >= self._next_nudge:
            self._next_nudge = now + self._patience
            self._patience = self._nudge.next_patience(self._patience)
            self._nudge.send()
