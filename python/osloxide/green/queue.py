"""``eventlet.queue``: queues between greenthreads. Rules: eventlet.queue.

Unlike the standard library's, a queue of size 0 is a channel: ``put()`` waits for a ``get()``.
Native threads may take part.
"""

from __future__ import annotations

import collections
import heapq
import queue as _stdlib
import types
from typing import Any, ClassVar

from osloxide._typing import override
from osloxide.green._core import clock as _clock
from osloxide.green._core import greenlets as _greenlets
from osloxide.green._core import interruption as _interruption
from osloxide.green._core import turns as _turns
from osloxide.green._core import waits as _waits
from osloxide.green._core.greenlets import getcurrent
from osloxide.green._core.interruption import interrupt
from osloxide.green._core.turns import TurnTaker, lock, resume
from osloxide.green.event import Event
from osloxide.green.timeout import Timeout as Timeout

__all__ = ["Empty", "Full", "LifoQueue", "LightQueue", "PriorityQueue", "Queue"]

Full = _stdlib.Full
Empty = _stdlib.Empty

_NONE: Any = object()


class Waiter:
    """Who waits at a queue.

    :ivar greenlet: the greenlet that waits; None when it does not.
    """

    __slots__ = ("greenlet", "item", "late")

    def __init__(self) -> None:
        self.greenlet: TurnTaker | None = None
        self.item: Any = _NONE
        self.late = False

    @override
    def __repr__(self) -> str:
        waiting = " waiting" if self.waiting else ""
        return f"<{type(self).__name__} at {id(self):#x}{waiting} greenlet={self.greenlet!r}>"

    def __bool__(self) -> bool:
        return self.greenlet is not None

    @property
    def waiting(self) -> bool:
        """Whether something waits."""
        return self.greenlet is not None

    def switch(self, value: Any = None) -> None:
        """Let it go on with *value*."""
        with lock:
            if self.greenlet is not None:
                resume(self.greenlet, value)

    def throw(self, *throw_args: Any) -> None:
        """Let it raise."""
        with lock:
            if self.greenlet is not None:
                interrupt(self.greenlet, _interruption.normalize(*throw_args))

    def wait(self) -> Any:
        """Wait until one of the other two is called."""
        assert self.greenlet is None, f"This Waiter is already used by {self.greenlet!r}"
        with lock:
            self.greenlet = _waits.suspend()
        try:
            return _waits.await_turn(self.greenlet)
        finally:
            self.greenlet = None

    # Called by the clock once the time is over.
    def expire(self) -> None:
        _turns.enqueue(self)

    @property
    def called(self) -> bool:
        return self.greenlet is None

    def take_turn(self) -> None:
        if self.greenlet is not None and self.greenlet._state == _turns.PARKED:
            self.late = True
            resume(self.greenlet, _NONE)


class ItemWaiter(Waiter):
    """Who waits to put *item*.

    :param block: whether it waits for room; else only for the queue to have a look.
    """

    __slots__ = ("block",)

    def __init__(self, item: Any, block: bool) -> None:
        super().__init__()
        self.item = item
        self.block = block


class _Unlock:
    outlives_fork = True  # the queue schedules no other one before this one's turn
    __slots__ = ("queue",)

    def __init__(self, queue: LightQueue) -> None:
        self.queue = queue

    def take_turn(self) -> None:
        self.queue._unlock()


class LightQueue:
    """A queue without ``task_done()`` and ``join()``.

    :param maxsize: most items; 0: a channel; None or negative: no bound.
    """

    queue: Any

    def __init__(self, maxsize: int | None = None) -> None:
        self.maxsize = None if maxsize is None or maxsize < 0 else maxsize
        # Ordered, unlike sets: whoever waits longest goes on first.
        self.getters: dict[Waiter, None] = {}
        self.putters: dict[ItemWaiter, None] = {}
        self._event_unlock: _Unlock | None = None
        self._init(maxsize)

    def _init(self, maxsize: int | None) -> None:
        del maxsize
        self.queue = collections.deque()

    def _get(self) -> Any:
        return self.queue.popleft()

    def _put(self, item: Any) -> None:
        self.queue.append(item)

    def _put_back(self, item: Any) -> None:
        if isinstance(self.queue, collections.deque):
            self.queue.appendleft(item)
        else:
            LightQueue._put(self, item)

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {id(self):#x} {self._format()}>"

    @override
    def __str__(self) -> str:
        return f"<{type(self).__name__} {self._format()}>"

    def _format(self) -> str:
        result = f"maxsize={self.maxsize!r}"
        if getattr(self, "queue", None):
            result += f" queue={self.queue!r}"
        if self.getters:
            result += f" getters[{len(self.getters)}]"
        if self.putters:
            result += f" putters[{len(self.putters)}]"
        if self._event_unlock is not None:
            result += " unlocking"
        return result

    def qsize(self) -> int:
        """Count the items."""
        return len(self.queue)

    def resize(self, size: int | None) -> None:
        """Change the bound; greenthreads that wait to put may go on."""
        with lock:
            if self.maxsize is not None and (size is None or size > self.maxsize):
                self._schedule_unlock()
            self.maxsize = size

    def putting(self) -> int:
        """Count the greenthreads that wait to put."""
        return len(self.putters)

    def getting(self) -> int:
        """Count the greenthreads that wait to get."""
        return len(self.getters)

    def empty(self) -> bool:
        """Whether there is no item."""
        return not self.qsize()

    def full(self) -> bool:
        """Whether there is no room."""
        return self.maxsize is not None and self.qsize() >= self.maxsize

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add *item*; wait for room.

        :param block: False: do not wait.
        :param timeout: seconds to wait at most; None: for ever.
        :raises Full: there was no room.
        """
        with lock:
            if self.maxsize is None or self.qsize() < self.maxsize:
                self._put(item)
                if self.getters:
                    self._schedule_unlock()
                return
            if not block:
                if _greenlets.is_hub(getcurrent()):
                    if self._hand_over(item):
                        return
                    raise Full
                if not self.getters:
                    raise Full
            waiter = ItemWaiter(item, block)
            waiter.greenlet = _waits.suspend()
            self.putters[waiter] = None
            if self.getters or not block:
                self._schedule_unlock()
            if block and timeout is not None:
                _clock.clock.add(max(0.0, timeout), waiter)
        try:
            result = _waits.await_turn(waiter.greenlet)
        finally:
            with lock:
                waiter.greenlet = None
                self.putters.pop(waiter, None)
                if timeout is not None and not waiter.late:
                    _clock.clock.note_dropped()
        with lock:
            if waiter.item is _NONE:
                return  # a getter has it
            if waiter.late or result is not waiter:
                raise Full
            self._put(waiter.item)
            if self.getters:
                self._schedule_unlock()

    def _hand_over(self, item: Any) -> bool:
        while self.getters:
            getter = _first(self.getters)
            if getter:
                self._put(item)
                self._give(getter)
                return True
        return False

    def _give(self, getter: Waiter) -> None:
        getter.item = self._get()
        assert getter.greenlet is not None
        if not resume(getter.greenlet, getter.item):
            self._put_back(getter.item)
            getter.item = _NONE

    def put_nowait(self, item: Any) -> None:
        """Add *item*.

        :raises Full: there is no room.
        """
        self.put(item, False)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take an item out; wait for one.

        :param block: False: do not wait.
        :param timeout: seconds to wait at most; None: for ever.
        :raises Empty: there was none.
        """
        with lock:
            if self.qsize():
                if self.putters:
                    self._schedule_unlock()
                return self._get()
            if not block:
                if _greenlets.is_hub(getcurrent()):
                    while self.putters:
                        putter = _first(self.putters)
                        if putter:
                            self._put(putter.item)
                            putter.item = _NONE
                            putter.switch(putter)
                            return self._get()
                raise Empty
            waiter = Waiter()
            waiter.greenlet = _waits.suspend()
            self.getters[waiter] = None
            if self.putters:
                self._schedule_unlock()
            if timeout is not None:
                _clock.clock.add(max(0.0, timeout), waiter)
        got = False
        try:
            result = _waits.await_turn(waiter.greenlet)
            got = True
        finally:
            with lock:
                waiter.greenlet = None
                self.getters.pop(waiter, None)
                if timeout is not None and not waiter.late:
                    _clock.clock.note_dropped()
                if not got:
                    if waiter.item is not _NONE:
                        self._put_back(waiter.item)
                    self._schedule_unlock()
        if result is _NONE:
            raise Empty
        return result

    def get_nowait(self) -> Any:
        """Take an item out.

        :raises Empty: there is none.
        """
        return self.get(False)

    def _unlock(self) -> None:
        """Bring those together that wait. With the lock, in its turn."""
        try:
            while True:
                if self.qsize() and self.getters:
                    getter = _first(self.getters)
                    if getter and not getter.late:
                        try:
                            self._give(getter)
                        except BaseException as failure:  # noqa: BLE001 - the getter's to handle
                            getter.throw(failure)
                elif self.putters and self.getters:
                    putter = _first(self.putters)
                    if not putter:
                        continue
                    getter = _first(self.getters)
                    if getter and not getter.late:
                        if self._put_of(putter):
                            self._give(getter)
                            putter.switch(putter)
                        else:
                            self.getters[getter] = None
                    else:
                        self.putters[putter] = None
                elif self.putters and (self.maxsize is None or self.qsize() < self.maxsize):
                    putter = _first(self.putters)
                    # Its item is put here: nobody else takes the room first.
                    if putter and not putter.late and self._put_of(putter):
                        putter.switch(putter)
                elif self.putters and not self.getters:
                    hasty = [putter for putter in self.putters if not putter.block]
                    if not hasty:
                        break
                    for putter in hasty:
                        self.putters.pop(putter, None)
                        putter.throw(Full)
                else:
                    break
        finally:
            self._event_unlock = None

    def _put_of(self, putter: Any) -> bool:
        """Put the item of *putter*; False where that raises, which *putter* does then.

        An item that cannot be compared with others has no place in a :class:`PriorityQueue`.
        """
        item, putter.item = putter.item, _NONE
        try:
            self._put(item)
        except BaseException as failure:  # noqa: BLE001 - the putter's to handle
            putter.throw(failure)
            return False
        return True

    def _schedule_unlock(self) -> None:
        if self._event_unlock is None:
            self._event_unlock = unlock = _Unlock(self)
            try:
                _turns.enqueue(unlock)
            except BaseException:
                # That of a signal handler. To look twice does no harm.
                self._event_unlock = None
                raise

    __class_getitem__: ClassVar[Any] = classmethod(types.GenericAlias)


def _first(waiters: Any) -> Any:
    waiter = next(iter(waiters))
    del waiters[waiter]
    return waiter


class Queue(LightQueue):
    """A queue that knows when all its items were dealt with."""

    def __init__(self, maxsize: int | None = None) -> None:
        super().__init__(maxsize)
        self.unfinished_tasks = 0
        self._cond = Event()

    @override
    def _format(self) -> str:
        result = super()._format()
        if self.unfinished_tasks:
            result += f" tasks={self.unfinished_tasks} _cond={self._cond}"
        return result

    @override
    def _put(self, item: Any) -> None:
        super()._put(item)
        self._put_bookkeeping()

    def _put_bookkeeping(self) -> None:
        self.unfinished_tasks += 1
        if self._cond.ready():
            self._cond.reset()

    def task_done(self) -> None:
        """An item was dealt with.

        :raises ValueError: called more often than items were put.
        """
        with lock:
            if self.unfinished_tasks <= 0:
                raise ValueError("task_done() called too many times")
            self.unfinished_tasks -= 1
            if self.unfinished_tasks == 0:
                self._cond.send(None)

    def join(self) -> None:
        """Wait until all items were dealt with."""
        if self.unfinished_tasks > 0:
            self._cond.wait()


class PriorityQueue(Queue):
    """The smallest item first."""

    @override
    def _init(self, maxsize: int | None) -> None:
        self.queue = []

    @override
    def _put(self, item: Any) -> None:
        heapq.heappush(self.queue, item)
        self._put_bookkeeping()

    @override
    def _get(self) -> Any:
        return heapq.heappop(self.queue)

    @override
    def _put_back(self, item: Any) -> None:
        heapq.heappush(self.queue, item)


class LifoQueue(Queue):
    """The latest item first."""

    @override
    def _init(self, maxsize: int | None) -> None:
        self.queue = []

    @override
    def _put(self, item: Any) -> None:
        self.queue.append(item)
        self._put_bookkeeping()

    @override
    def _get(self) -> Any:
        return self.queue.pop()

    @override
    def _put_back(self, item: Any) -> None:
        self.queue.append(item)
