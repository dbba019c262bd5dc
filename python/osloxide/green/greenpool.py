"""``eventlet.greenpool``: at most so many greenthreads at once. Rules: eventlet.greenpool."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from osloxide._typing import override
from osloxide.green import event, greenthread, queue, semaphore
from osloxide.green._core.greenlets import getcurrent, greenlet
from osloxide.green._core.interruption import GreenletExit
from osloxide.green._core.turns import lock
from osloxide.green._core.waits import hold
from osloxide.threads import identity

__all__ = ["GreenPile", "GreenPool"]

DEBUG = True
"""Whether what functions of ``spawn_n()`` raise is printed."""


_pools: identity.WeakIdentitySet[GreenPool] = identity.WeakIdentitySet()


class GreenPool:
    """Runs functions in greenthreads, *size* of them at once; further ones wait to be spawned."""

    def __init__(self, size: int = 1000) -> None:
        try:
            size = int(size)
        except ValueError as error:
            raise TypeError(
                f"GreenPool() expect size :: int, actual: {type(size)} {error}"
            ) from error
        if size < 0:
            raise ValueError(f"GreenPool() expect size >= 0, actual: {size!r}")
        self.size = size
        self.coroutines_running: set[greenlet] = set()
        self.sem = semaphore.Semaphore(size)
        self.no_coros_running = event.Event()
        _pools.add(self)

    def resize(self, new_size: int) -> None:
        """Change how many may run; those that run go on, and :meth:`free` may be negative."""
        with lock:
            self.sem.counter += new_size - self.size
            self.size = new_size

    def running(self) -> int:
        """Count those that run."""
        return len(self.coroutines_running)

    def free(self) -> int:
        """Count those that could be spawned without waiting."""
        return self.sem.counter

    def spawn(
        self, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> greenthread.GreenThread:
        """Run *function*; wait for room first.

        When a greenthread of the full pool itself calls, *function* runs in it at once.
        """
        current = getcurrent()
        if self.sem.locked() and current in self.coroutines_running:
            gt = greenthread.GreenThread(current)
            gt.main(function, args, kwargs)
            return gt
        self.sem.acquire()
        with self._kept_place():
            gt = greenthread.spawn(function, *args, **kwargs)
        self._add(gt)
        gt.link(self._spawn_done)
        return gt

    @contextlib.contextmanager
    def _kept_place(self) -> Iterator[None]:
        """Give the place back where the wait for the baton is ended, as by ``kill()``."""
        try:
            yield
        except BaseException:
            self._spawn_done(None)
            raise

    def _add(self, g: greenlet) -> None:
        with lock:
            # One that was not sent is still waited for: the last to run may have ended just now,
            # between the acquisition of this one's place and here.
            if self.no_coros_running.ready():
                self.no_coros_running = event.Event()
            self.coroutines_running.add(g)

    def _spawn_n_impl(self, func: Callable[..., Any], args: Any, kwargs: Any, coro: Any) -> None:
        try:
            try:
                func(*args, **kwargs)
            except (KeyboardInterrupt, SystemExit, GreenletExit):
                raise
            except BaseException:  # noqa: BLE001 - as eventlet: nobody is there to be told
                if DEBUG:
                    traceback.print_exc()
        finally:
            if coro is not None:
                self._spawn_done(getcurrent())

    def spawn_n(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """As :meth:`spawn`, but the result is lost."""
        current = getcurrent()
        if self.sem.locked() and current in self.coroutines_running:
            self._spawn_n_impl(function, args, kwargs, None)
            return
        self.sem.acquire()
        with self._kept_place():
            hold()
        with lock:
            _, g = greenthread._spawn_n(0, self._spawn_n_impl, (function, args, kwargs, True), {})
            self._add(g)

    def waitall(self) -> None:
        """Wait until none runs."""
        assert getcurrent() not in self.coroutines_running, (
            "Calling waitall() from within one of the GreenPool's greenthreads will never "
            "terminate."
        )
        if self.running():
            self.no_coros_running.wait()

    def _spawn_done(self, coro: greenlet | None) -> None:
        with lock:
            self.sem.release()
            if coro is not None:
                self.coroutines_running.discard(coro)
            if self.sem.balance == self.size and not self.no_coros_running.ready():
                self.no_coros_running.send(None)

    def waiting(self) -> int:
        """Count the greenthreads that wait to spawn."""
        return max(0, -self.sem.balance)

    def _do_map(self, func: Callable[..., Any], it: Iterable[Any], gi: GreenMap) -> None:
        for args in it:
            gi.spawn(func, *args)
        gi.done_spawning()

    def starmap(self, function: Callable[..., Any] | None, iterable: Iterable[Any]) -> GreenMap:
        """As ``itertools.starmap``, each item in a greenthread, results in order."""
        if function is None:
            function = _arguments
        gi = GreenMap(self.size)
        greenthread.spawn_n(self._do_map, function, iterable, gi)
        return gi

    def imap(self, function: Callable[..., Any] | None, *iterables: Iterable[Any]) -> GreenMap:
        """As ``map``, each item in a greenthread, results in order."""
        return self.starmap(function, zip(*iterables))  # noqa: B905 - as map()


def _arguments(*args: Any) -> Any:
    return args


class GreenPile:
    """Greenthreads whose results are iterated over in the order in which they were spawned.

    :param size_or_pool: a pool, or the size of one.
    """

    def __init__(self, size_or_pool: int | GreenPool = 1000) -> None:
        if isinstance(size_or_pool, GreenPool):
            self.pool = size_or_pool
        else:
            self.pool = GreenPool(size_or_pool)
        self.waiters: Any = queue.LightQueue()
        self.counter = 0

    def spawn(self, func: Callable[..., Any], *args: Any, **kw: Any) -> None:
        """Run *func*."""
        with lock:
            self.counter += 1
        try:
            gt = self.pool.spawn(func, *args, **kw)
            self.waiters.put(gt)
        except BaseException:
            with lock:
                self.counter -= 1
            raise

    def __iter__(self) -> GreenPile:
        return self

    def next(self) -> Any:
        """Wait for the next result."""
        if self.counter == 0:
            raise StopIteration
        return self._next()

    def __next__(self) -> Any:
        return self.next()

    def _next(self) -> Any:
        try:
            return self.waiters.get().wait()
        finally:
            with lock:
                self.counter -= 1


class GreenMap(GreenPile):
    """What :meth:`GreenPool.imap` returns."""

    def __init__(self, size_or_pool: int | GreenPool) -> None:
        super().__init__(size_or_pool)
        self.waiters = queue.LightQueue(maxsize=self.pool.size)

    def done_spawning(self) -> None:
        """Nothing more is spawned."""
        self.spawn(StopIteration)

    @override
    def next(self) -> Any:
        """Wait for the next result."""
        val = self._next()
        if isinstance(val, StopIteration):
            raise val
        return val


def _leave_ended() -> None:
    """A forked child has none of those that run in the parent, nor of those that wait for room."""
    for pool in _pools:
        ended = {coro for coro in pool.coroutines_running if coro.dead}
        pool.coroutines_running -= ended
        pool.sem.counter += len(ended)
        pool.sem._waiters.clear()
        if ended and not pool.coroutines_running and not pool.no_coros_running.ready():
            pool.no_coros_running._waiters.clear()
            pool.no_coros_running.send(None)


os.register_at_fork(after_in_child=_leave_ended)
