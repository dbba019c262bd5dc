"""What sockets of a library wait by at the hub, where each call of it takes one thread alone.

Owns the line of those that send, or receive, by one socket; their waits for events; the listener
that tells of a descriptor. Knows no library and no message. Rules: eventlet.green.zmq.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType

from osloxide._typing import override
from osloxide.green import hubs
from osloxide.green._core import greenlets
from osloxide.green._core.turns import lock
from osloxide.green.hubs import hub as _hub
from osloxide.green.semaphore import Semaphore


class LockReleaseError(Exception):
    """A lock was released that nobody has."""


class QueueLock:
    """One greenthread at a time sends, or receives; it may enter again.

    The parts of a message stay together so.
    """

    def __init__(self) -> None:
        self._free = Semaphore(1)
        self._holder: greenlets.greenlet | None = None
        self._depth = 0
        self.mid_message = False
        """Whether the holder is between the parts of a message."""

    def __bool__(self) -> bool:
        return self._depth > 0

    def acquire(self, deadline: float | None = None) -> bool:
        """Wait for it, in the order of the calls.

        :param deadline: of ``time.monotonic()``; None: for ever.
        :returns: False, it has passed.
        """
        me = greenlets.getcurrent()
        if self._holder is not me:
            rest = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not (self._free.acquire(timeout=rest) if rest != 0 else self._free.acquire(False)):
                return False
            self._holder = me
        self._depth += 1
        return True

    def release(self) -> None:
        """Leave it to the next one, as often as it was acquired.

        :raises LockReleaseError: nobody has it.
        """
        if not self._depth:
            raise LockReleaseError("Cannot release unacquired lock")
        self._depth -= 1
        if not self._depth:
            self._holder, self.mid_message = None, False
            self._free.release()

    def note_part(self) -> None:
        """A frame went through: the holder is mid message if it has entered for more than that."""
        self.mid_message = self._depth > 1

    def is_mid_message_of_another(self) -> bool:
        """Whether a frame of the caller's would come between those of another. With the lock."""
        return self.mid_message and self._holder is not greenlets.getcurrent()

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
    """What sockets of a library have that wait here; those that are one underneath share it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        """The process that has made the socket."""
        self.sending, self.receiving = QueueLock(), QueueLock()
        self.waiters: list[BlockedThread] = []
        """With the lock."""
        self.listener: Listener | None = None
        """Of the descriptor, while somebody waits. With the lock."""

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

    def listen(self, fileno: Callable[[], int], arrived: Callable[[], object]) -> None:
        """Call *arrived*, as :class:`Listener` does, while somebody waits. With the lock.

        :param fileno: says for which descriptor.
        """

        def tell() -> bool:
            arrived()
            return bool(self.waiters)

        def lose(_failure: BaseException) -> None:
            with lock:
                self.wake(0, everyone=True)  # they look again

        if self.listener is None:
            listener = Listener(_hub.READ, fileno(), tell, lose)
            listener.listen()
            self.listener = listener

    def end_listening(self) -> None:
        """The descriptor is waited for no more, or about to be closed. With the lock."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.end()
