"""Timers: many functions that wait for their moment, at the cost of one thread for all of them.

Owns the one thread that sleeps until the nearest moment, and starts a thread for each function
that is due; so a function that blocks delays no other, and leaves nothing thread-local behind for
the next. The thread starts with the first timer and ends soon after the last; without a timer that
is due nothing wakes up. A forked child begins without timers, as it does without threads.

Knows nothing of looping calls, which are its only users. Rules: heapq, queue.SimpleQueue (whose
put() may be called in a signal handler).
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable

from osloxide.threads import inherited, own

LOG = logging.getLogger(__name__)

_LINGER = 1.0
"""Seconds that the thread stays without any timer."""

_RETRY = 1.0
"""Seconds after which a function is tried again for which the system had no thread."""

_order = itertools.count()


class Timer:
    """One wait.

    :param seconds: from now on.
    :param name: of the thread that will be started.
    :param on_due: called on a thread of its own when the time has come.
    :param on_woken: called instead, soon after :func:`wake`, on the thread that all timers share;
        so it must return quickly.
    :param is_over: whether the wait is over already; asked once, when the wait begins.
    """

    def __init__(
        self,
        seconds: float,
        name: str,
        *,
        on_due: Callable[[], object],
        on_woken: Callable[[], object],
        is_over: Callable[[], bool],
    ) -> None:
        self.due = time.monotonic() + seconds
        self.order = next(_order)
        self.name = name
        self.on_due = on_due
        self.on_woken = on_woken
        self.is_over = is_over

    def __lt__(self, other: Timer) -> bool:
        return (self.due, self.order) < (other.due, other.order)


class _Clock:
    """The thread that all timers of this process share."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._inbox: queue.SimpleQueue[tuple[bool, Timer]] = queue.SimpleQueue()
        self._heap: list[Timer] = []
        self._thread: threading.Thread | None = None

    def begin(self, timer: Timer) -> None:
        with self._guard:
            if self._thread is None:
                # First of all: it may fail, and then nothing must wait here.
                self._thread = own.start("timers", self._run)
            self._inbox.put((True, timer))

    def wake(self, timer: Timer) -> None:
        # No lock: the thread runs as long as there is a timer to be woken.
        self._inbox.put((False, timer))

    def _run(self) -> None:
        while self._take() or not self._may_end():
            self._fire()

    def _take(self) -> bool:
        """Wait for a message or for the nearest moment; False when there was neither."""
        seconds = self._heap[0].due - time.monotonic() if self._heap else _LINGER
        try:
            # A wait for less than nothing is an error, one beyond the system's limit as well.
            begins, timer = self._inbox.get(timeout=min(max(seconds, 0), threading.TIMEOUT_MAX))
        except queue.Empty:
            return bool(self._heap)
        if not begins:
            if timer in self._heap:
                self._heap.remove(timer)
                heapq.heapify(self._heap)
                _call(timer.on_woken)
        elif timer.is_over():
            _call(timer.on_woken)
        else:
            heapq.heappush(self._heap, timer)
        return True

    def _may_end(self) -> bool:
        with self._guard:
            if self._heap or not self._inbox.empty():
                return False
            self._thread = None
            return True

    def _fire(self) -> None:
        now = time.monotonic()
        while self._heap and self._heap[0].due <= now:
            timer = self._heap[0]
            try:
                threading.Thread(target=timer.on_due, name=timer.name, daemon=True).start()
            except (RuntimeError, MemoryError) as exc:
                LOG.warning("No thread for %s: %s; tried again in %g s", timer.name, exc, _RETRY)
                timer.due = now + _RETRY
                heapq.heapreplace(self._heap, timer)
                return
            heapq.heappop(self._heap)


def _call(function: Callable[[], object]) -> None:
    try:
        function()
    except Exception:
        LOG.exception("A timer could not be ended")


_clock = _Clock()


def begin(timer: Timer) -> None:
    """Let *timer* wait.

    :raises RuntimeError: the system has no thread to wait on.
    """
    _clock.begin(timer)


def wake(timer: Timer) -> None:
    """End a wait early. Does nothing when it is over. May be called in a signal handler."""
    _clock.wake(timer)


def _forget() -> None:
    global _clock
    inherited.keep(_clock)
    _clock = _Clock()


os.register_at_fork(after_in_child=_forget)
