"""What sockets of a library wait by at the hub, where each call of it takes one thread alone.

Owns the line of those that send, or receive, by one socket; their waits for events; the listener
that tells of a descriptor. Knows no library and no message. Rules: eventlet.green.zmq.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from osloxide._typing import override
from osloxide.green import hubs
from osloxide.green._core.turns import local, lock
from osloxide.green.hubs import hub as _hub
from osloxide.green.semaphore import Semaphore


class LockReleaseError(Exception):
    """A lock was released that no greenthread has."""


def _caller() -> object:
    """What the greenlet whose code calls is to a line; takes no lock.

    Its native thread has no other one but the hub's. A thread that this package did not start may
    have no greenlet yet, and get one in the middle of a message.
    """
    current = local.current
    return current if current is not None and current._is_hub else threading.get_ident()


class Place:
    """Of one call in a line: that of the greenlet that makes it."""

    __slots__ = ("caller", "mid_message", "turn")

    def __init__(self) -> None:
        self.caller = _caller()
        self.mid_message = False
        """Whether its message has begun, and what ends it comes by another call."""
        self.turn: Semaphore | None = None
        """What the call waits for, if it waits."""


class QueueLock:
    """One greenthread at a time sends, or receives; it may enter again.

    The parts of a message stay together so. The line is that of whose place is the first one.
    Places come and go by one operation of a dict each: a signal handler finds the line whole, and
    no lock is taken unless a greenthread waits.
    """

    def __init__(self) -> None:
        self.places: dict[Place, None] = {}
        """In their order. Whoever takes one out calls :meth:`hand_on`."""

    def __bool__(self) -> bool:
        return bool(self.places)

    def enter(self, place: Place, deadline: float | None = None) -> bool:
        """Put *place* into the line, and wait until it is that of its greenlet.

        Whatever comes of it, and however it ends: the caller takes *place* out again.

        :param deadline: of ``time.monotonic()``; None: for ever.
        :returns: False, it has passed.
        """
        self.places[place] = None
        while (first := self._first()) is not None and first.caller != place.caller:
            rest = None if deadline is None else max(0.0, deadline - time.monotonic())
            if rest == 0:
                return False
            if place.turn is None:
                place.turn = Semaphore(0)  # and look once more: hand_on() may have missed it
            else:
                place.turn.acquire(timeout=rest)
        return True

    def _first(self) -> Place | None:
        places = list(self.places)  # at once: other threads change the line
        return places[0] if places else None

    def hand_on(self) -> None:
        """A place was taken out: who has the line now goes on.

        All its calls do: one may be that of a signal handler on top of another. Where a handler
        raises in here the caller calls once more: who is told twice looks twice.
        """
        places = list(self.places)
        for place in places:
            if place.turn is not None and place.caller == places[0].caller:
                place.turn.release()

    def acquire(self, deadline: float | None = None) -> bool:
        """Wait for it, in the order of the calls.

        :param deadline: of ``time.monotonic()``; None: for ever.
        :returns: False, it has passed.
        """
        place, acquired = Place(), False
        try:
            acquired = self.enter(place, deadline)
        finally:
            if not acquired:
                self._leave(place)
        return acquired

    def release(self) -> None:
        """Leave it to the next one, as often as it was acquired.

        :raises LockReleaseError: no greenthread has it.
        """
        places = list(self.places)
        if not places:
            raise LockReleaseError("Cannot release unacquired lock")
        last = [place for place in places if place.caller == places[0].caller][-1]
        self._leave(last)

    def _leave(self, place: Place) -> None:
        """Take *place* out, and hand the line on."""
        try:
            self.places.pop(place, None)
        finally:
            try:
                self.hand_on()
            except BaseException:
                self.hand_on()
                raise

    def note_part(self, place: Place) -> None:
        """A frame went through by *place*, which has the line.

        Its greenlet is mid message if that is not its first place.
        """
        if (first := self._first()) is not None:
            first.mid_message = first is not place

    def is_mid_message_of_another(self) -> bool:
        """Whether a frame of the caller's would come between those of another."""
        first = self._first()
        return first is not None and first.mid_message and first.caller != _caller()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self,
        typ: type[BaseException] | None,
        val: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.release()


class BlockedThread:
    """One wait for events of sockets.

    :param events: those that end it.
    :param patient: they are there, and did not help: what the descriptor tells of next ends it.
    :param woken: what it waits for; shared by waits that end together.
    """

    def __init__(
        self, events: int = 0, *, patient: bool = False, woken: Semaphore | None = None
    ) -> None:
        self.events, self.patient = events, patient
        self._woken = Semaphore(0) if woken is None else woken
        self._blocks = False

    def __bool__(self) -> bool:
        return self._blocks

    def block(self, deadline: float | None = None) -> None:
        """Wait for :meth:`wake`, which may have been called already, or until *deadline*.

        :param deadline: of ``time.monotonic()``.
        """
        self._blocks = True
        try:
            rest = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._woken.acquire(timeout=rest)
        finally:
            self._blocks = False

    def wake(self) -> None:
        """End the wait."""
        self._woken.release()


class Listener(_hub.FdListener):
    """Calls *arrived* as soon as a descriptor is ready, on the hub's thread and with the lock.

    :param arrived: says whether to listen on.
    :param lost: called when the descriptor was closed.
    """

    def __init__(
        self,
        evtype: str,
        fileno: int,
        arrived: Callable[[], bool],
        lost: Callable[[BaseException], object],
    ) -> None:
        super().__init__(evtype, fileno, lambda _fileno: None, lost, None)
        self._arrived = arrived

    def listen(self) -> None:
        """Begin; :meth:`end` ends it.

        :raises RuntimeError: another greenthread waits for the same already.
        :raises OSError: there is no such descriptor.
        """
        hubs.get_hub()._register(self)

    def end(self) -> None:
        """Call no more."""
        hubs.get_hub().remove(self)

    @override
    def on_ready(self, fileno: int) -> None:
        hub = hubs.get_hub()
        if self._arrived() and self in hub._registered:
            hub._bucket(self.evtype).setdefault(fileno, self)


class SocketState:
    """What sockets of a library have that wait here; those that are one underneath share it.

    "With the lock" is that of the turns. A thread that has :attr:`calls` does not wait for the
    lock, and one that has the lock does not wait for :attr:`calls`: a signal handler, which runs
    wherever the main thread is, may then wait for either.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        """The process that has made the socket."""
        self.calls: Any = threading.RLock()
        """Whose thread calls the library. No more than that is done with it. Reentrant: a signal
        handler comes between two calls."""
        self.unsettled = False
        """A call came on top of what the same thread does with :attr:`calls`, which looks for
        events once more."""
        self.sending, self.receiving = QueueLock(), QueueLock()
        self.waiters: list[BlockedThread] = []
        """Changed with the lock."""
        self.listener: Listener | None = None
        """Of the descriptor, while a greenthread waits. With the lock."""
        self.missed: int | None = None
        """The descriptor, where it told of events while a thread had :attr:`calls`: that thread
        looks for them, and listens once more. With the lock."""
        self.closing = 0
        """How many close the socket, or have closed it. With the lock."""

    def is_inherited(self) -> bool:
        """Whether this process is a child of the one that has made the socket."""
        return self.pid != os.getpid()

    def wake(self, events: int, *, everyone: bool = False, patient: bool = False) -> None:
        """Wake those that wait for one of *events*. With the lock.

        :param patient: those as well that the events alone do not help.
        """
        for waiter in tuple(self.waiters):
            if everyone or (patient if waiter.patient else waiter.events & events):
                waiter.wake()
                self.leave(waiter)

    def leave(self, waiter: BlockedThread) -> None:
        """*waiter* waits no more; with the last one the hub listens no more."""
        with lock:
            if waiter in self.waiters:
                self.waiters.remove(waiter)
            if not self.waiters:
                self.end_listening()

    def listen(self, fileno: int, arrived: Callable[[], bool]) -> None:
        """Call *arrived*, as :class:`Listener` does, while a greenthread waits. With the lock.

        Not where the socket is about to be closed: that wakes them.

        :param arrived: False: the events could not be looked for; see :attr:`missed`.
        """

        def tell() -> bool:
            if not arrived():
                self.missed = fileno
                self.end_listening()  # it would tell of the same at once
            return bool(self.waiters)

        def lose(_failure: BaseException) -> None:
            with lock:
                self.wake(0, everyone=True)  # they look again

        if self.listener is None and not self.closing:
            listener = Listener(_hub.READ, fileno, tell, lose)
            listener.listen()
            self.listener = listener

    def listen_again(self, arrived: Callable[[], bool]) -> bool:
        """Listen where :attr:`missed` says so. With the lock.

        :returns: whether it does.
        """
        fileno, self.missed = self.missed, None
        if fileno is None:
            return False
        if self.waiters:
            try:
                self.listen(fileno, arrived)
            except (OSError, RuntimeError):
                self.wake(0, everyone=True)  # each fails by itself
        return True

    def end_listening(self) -> None:
        """The descriptor is waited for no more, or about to be closed. With the lock."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.end()
