"""The clock: timers, descriptors that are waited for, and the watch over the baton.

Owns one thread, which sleeps until the nearest timer is due, a descriptor is ready, or the baton
is contended. It starts on demand and ends soon after there is nothing left to watch; without work
it never wakes up. It runs no code of the service: callbacks get a greenlet of their own.

Rules: epoll(7), eventfd(2); proc(5) for the state of a thread; eventlet's hub for what is called
back and when.
"""

from __future__ import annotations

import _thread
import collections
import contextlib
import heapq
import itertools
import logging
import os
import select
import time
from collections.abc import Callable
from typing import Any

from osloxide import _native
from osloxide.green._core import turns as _turns
from osloxide.green._core.turns import lock, turns
from osloxide.threads import cpu_time, inherited, own
from osloxide.threads.pool_thread import register_thread

LOG = logging.getLogger(__name__)

_LINGER = 1.0
"""Seconds that the thread stays without anything to watch."""

_LOOK = 0.001
"""Seconds between two looks at a holder of the baton for which others wait."""

_PATIENCE = 0.1
"""Seconds of CPU after which the baton is taken from a holder that computes. One that others keep
from its CPU or from the interpreter has done nothing in the meantime, and is not interrupted."""

_QUIET = 5
"""Looks without any handover after which the thread sleeps until it is woken."""

_order = itertools.count()


class Clock:
    """Timers and descriptors of this process. Guarded by the lock of the turns."""

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Any]] = []
        self.dropped = 0
        """Entries of the heap that are not wanted any more."""
        self.readers: dict[int, Any] = {}
        self.writers: dict[int, Any] = {}
        self._failures: collections.deque[Exception] = collections.deque()
        self._epoll: Any = None
        self._bell = -1
        self._masks: dict[int, int] = {}
        self._has_thread = False
        self._wakes_at = 0.0
        self._seen: tuple[int, float | None, str] = (-1, None, "")
        """Number of the turn that was looked at; what its holder had used then, None before the
        first look at the holder; the state of its thread."""

    # ---- timers ---------------------------------------------------------------------------------

    def add(self, seconds: float, entry: Any) -> None:
        """Call ``entry.expire()`` in *seconds*. With the lock."""
        due = time.monotonic() + seconds
        heapq.heappush(self.heap, (due, next(_order), entry))
        self._run_before(due)

    def expire(self) -> None:
        """Let what is due expire. With the lock."""
        now = time.monotonic()
        while self.heap and self.heap[0][0] <= now:
            entry = heapq.heappop(self.heap)[2]
            if not entry.called:
                try:
                    entry.expire()
                except Exception as failure:  # noqa: BLE001 - that of one entry
                    self._note(failure)
            elif self.dropped:
                self.dropped -= 1

    def purge(self) -> None:
        """Drop timers that were cancelled."""
        self.heap = [item for item in self.heap if not item[2].called]
        heapq.heapify(self.heap)
        self.dropped = 0

    # ---- descriptors ----------------------------------------------------------------------------

    def watch(self, fd: int) -> None:
        """Have the kernel watch *fd* for what is now wanted of it. With the lock."""
        self._open()
        wanted = 0
        if fd in self.readers:
            wanted |= select.EPOLLIN | select.EPOLLRDHUP
        if fd in self.writers:
            wanted |= select.EPOLLOUT
        known = self._masks.get(fd)
        if wanted == (known or 0) and known is not None:
            return
        try:
            if not wanted:
                if self._masks.pop(fd, None) is not None:
                    self._epoll.unregister(fd)
                return
            if known is None:
                try:
                    self._epoll.register(fd, wanted)
                except FileExistsError:
                    self._epoll.modify(fd, wanted)
            else:
                try:
                    self._epoll.modify(fd, wanted)
                except FileNotFoundError:  # closed, and opened again under the same number
                    self._epoll.register(fd, wanted)
            self._masks[fd] = wanted
        except PermissionError:
            # A regular file: always ready.
            self._ready(fd, select.EPOLLIN | select.EPOLLOUT)
            return
        except (OSError, ValueError):
            self._masks.pop(fd, None)
            if wanted:
                raise
            return
        self._run_before(float("inf"))

    def forget(self, fd: int) -> None:
        """*fd* was closed. With the lock."""
        if self._masks.pop(fd, None) is not None:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(fd)

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        """Wait for descriptors. Without the lock."""
        try:
            events: list[tuple[int, int]] = self._epoll.poll(seconds)
        except (OSError, ValueError):
            return []
        return events

    def dispatch(self, events: list[tuple[int, int]]) -> None:
        """Resume those who wait for *events*. With the lock."""
        for fd, mask in events:
            if fd != self._bell:
                self._ready(fd, mask)

    def _ready(self, fd: int, mask: int) -> None:
        broken = mask & (select.EPOLLERR | select.EPOLLHUP)
        for bucket, bits in (
            (self.readers, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI),
            (self.writers, select.EPOLLOUT),
        ):
            if mask & bits or broken:
                listener = bucket.pop(fd, None)
                if listener is not None:
                    try:
                        listener.on_ready(fd)
                    except Exception as failure:  # noqa: BLE001 - that of one listener
                        self._note(failure)
        # Nothing more is heard of it until it is waited for again.
        with contextlib.suppress(OSError, ValueError):
            self.watch(fd)

    def _note(self, failure: Exception) -> None:
        """Something that the clock has called has failed; the thread logs it. With the lock.

        Logging takes locks of its own, whose holders may wait for the one that is held here.
        """
        self._failures.append(failure)
        self._run_before(0.0)

    def _log_failures(self) -> None:
        """Log what has failed. Without the lock."""
        while self._failures:
            failure = self._failures.popleft()
            LOG.error("What a timer or a descriptor called has failed", exc_info=failure)

    def collect(self) -> None:
        """Let timers and descriptors that are due take their places in the queue. With the lock."""
        self.expire()
        if self.readers or self.writers:
            self.dispatch(self.poll(0))

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call *function*, with the lock, in *seconds*. It must not wait."""
        self.add(seconds, _Call(function))

    # ---- the thread -----------------------------------------------------------------------------

    def _open(self) -> None:
        if self._epoll is None:
            self._epoll = select.epoll()
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._epoll.register(self._bell, select.EPOLLIN)

    def _run_before(self, due: float) -> None:
        """Make sure that the thread runs, and looks again before *due*. With the lock."""
        if not self._has_thread:
            self._open()
            self._wakes_at = 0.0
            self._has_thread = True
            try:
                # Without waiting for it: it begins with the lock that the caller holds.
                _thread.start_new_thread(_adopted, (self._run,))
            except (RuntimeError, MemoryError):
                self._has_thread = False
                raise
        elif due < self._wakes_at:
            self._wakes_at = 0.0
            os.eventfd_write(self._bell, 1)

    def drop(self, entry: Any) -> None:
        """*entry*, which waits here, is not wanted any more. With the lock."""
        entry.called = True
        self.note_dropped()

    def note_dropped(self) -> None:
        """An entry is not wanted any more: once most are not, they go. With the lock.

        With none left, the thread may end.
        """
        self.dropped += 1
        # The count is a hint: an entry that has just expired is counted and not here any more.
        if self.dropped >= len(self.heap) or (
            self.dropped > 1000 and self.dropped > len(self.heap) / 2
        ):
            self.purge()
            if not self.heap and self._has_thread:
                self._run_before(0.0)

    def contended(self) -> None:
        """A greenthread waits for the baton. With the lock."""
        now = time.monotonic()
        if not self._has_thread or self._wakes_at > now + 2 * _LOOK:
            self._run_before(now + _LOOK)

    def _run(self) -> None:
        idle_since: float | None = None
        quiet = 0
        while True:
            with lock:
                if clock is not self:
                    return
                self.expire()
                now = time.monotonic()
                wait = self.heap[0][0] - now if self.heap else None
                if turns.ready:
                    self._look(now)
                    quiet = 0
                elif turns.count != self._seen[0]:
                    self._seen = (turns.count, None, "")
                    quiet = 0
                else:
                    quiet += 1
                    if quiet == _QUIET:
                        self.purge()
                        wait = self.heap[0][0] - now if self.heap else None
                if quiet < _QUIET and _turns.HANDOVER != "free":
                    # It is cheaper to look again soon than to be woken for each handover.
                    wait = _LOOK if wait is None else min(wait, _LOOK)
                elif wait is None:
                    if self.readers or self.writers:
                        wait = 3600.0
                    elif idle_since is None:
                        idle_since, wait = now, _LINGER
                    elif now - idle_since >= _LINGER and not self._failures:
                        self._has_thread = False
                        return
                    else:
                        wait = _LINGER
                if wait != _LINGER and quiet >= _QUIET:
                    idle_since = None
                wait = min(max(wait, 0.0), 3600.0)
                self._wakes_at = now + wait
            self._log_failures()
            events = self.poll(wait)
            with lock:
                self._wakes_at = 0.0
                # This thread alone answers the bell: were another to, the kernel would let this one
                # sleep on, and no one would ring again.
                if any(fd == self._bell for fd, _ in events):
                    with contextlib.suppress(OSError):
                        os.eventfd_read(self._bell)
                self.dispatch(events)

    def _look(self, now: float) -> None:
        """Take the baton from a holder that sleeps elsewhere, or has had it for long."""
        holder = turns.holder
        if holder is None:
            _turns.pass_on()
            return
        if not holder._native_id:
            return  # its thread is about to begin
        state = _native.thread_state(holder._native_id)
        used = cpu_time.used_by(holder._native_id)
        if used is None:
            used = now
        count, since, before = self._seen
        if count != turns.count or since is None:
            self._seen = (turns.count, used, state)
            return
        # One that wants the interpreter computes, however long the machine keeps it from that.
        asleep = state == "" or (
            state == before
            and state[0] in "SDTt"
            and not _native.waits_for_interpreter(holder._native_id)
        )
        if asleep or (_turns.HANDOVER == "yield" and used - since > _PATIENCE):
            _turns.pass_on()
            self._seen = (turns.count, None, "")
        else:
            self._seen = (count, since, state)


def _adopted(run: Callable[[], None]) -> None:
    """The whole life of the clock's thread, which is none of the application's."""
    adopted = own.enter(register_thread("green-clock"))
    try:
        if _turns.HANDOVER != "free":
            _native.learn_lock_waiters()
        run()
    finally:
        adopted.leave()  # type: ignore[attr-defined]


clock = _turns.clock = Clock()


class _Call:
    """A function that is called by the clock, with the lock."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self.called = False

    def expire(self) -> None:
        self.called = True
        self._function()


def _forget() -> None:
    """A forked child has neither the thread nor what it watched."""
    global clock
    old = clock
    inherited.keep(old)
    clock = _turns.clock = Clock()
    if old._epoll is not None:
        old._epoll.close()
        os.close(old._bell)


os.register_at_fork(after_in_child=_forget)
