"""``eventlet.green.zmq``: pyzmq with sockets that wait at the hub.

Owns ``Context``, ``Socket``, ``Poller``, ``select()`` and ``zmq_poll()``; everything else is the
module that is installed, and waits in C. A socket of ZeroMQ may be used by one native thread at a
time, and greenthreads are native threads: each call takes the socket and does not block. What
cannot be done at once waits without it until the descriptor of the socket tells of events, or
another call has processed them, and is tried again. Rules: eventlet.green.zmq; zmq_socket(3),
*Thread safety*; zmq_getsockopt(3), ZMQ_FD and ZMQ_EVENTS.

The lock of a socket (``calls`` of its state) and that of the turns are not waited for by a thread
that has the other: handlers of signals and of logging send by sockets, and wait for locks of their
own, wherever the thread is that they run on. A call that need not wait takes the former alone. Who
waits is noted first, and then looks for events: what is called later finds it and tells it.
"""

from __future__ import annotations

import contextlib as _contextlib
import functools as _functools
import sys as _sys
import time as _time
import weakref as _weakref
from collections.abc import Callable as _Callable
from collections.abc import Iterable as _Iterable
from collections.abc import Iterator as _Iterator
from typing import Any as _Any

import zmq as _zmq  # type: ignore[import-not-found,unused-ignore]

from osloxide._typing import override as _override
from osloxide.green._core.lines import BlockedThread as _BlockedThread
from osloxide.green._core.lines import Listener as _Listener
from osloxide.green._core.lines import LockReleaseError as LockReleaseError
from osloxide.green._core.lines import Place as _Place
from osloxide.green._core.lines import QueueLock as _QueueLock
from osloxide.green._core.lines import SocketState as _SocketState
from osloxide.green._core.turns import lock as _lock
from osloxide.green.hubs import hub as _hub
from osloxide.green.patcher import slurp_properties as _slurp
from osloxide.green.semaphore import Semaphore as _Semaphore

_std: _Any = _zmq
_slurp(_std, globals(), srckeys=dir(_std))

__patched__ = ["Context", "Poller", "Socket", "select", "zmq_poll"]

_PAUSES = (0.001, 0.05)
"""Seconds between two attempts where the events say that there is room and there is none: the first
pause, and the longest. Each is twice the one before."""


_states: _weakref.WeakValueDictionary[int, _SocketState] = _weakref.WeakValueDictionary()
"""By the addresses of libzmq's sockets; that of a closed one may be another's. With the lock of the
turns."""


class Socket(_std.Socket):
    """A socket whose waits are those of a greenthread."""

    _green: _SocketState

    def __init__(self, *args: _Any, **kwargs: _Any) -> None:
        self.__dict__["_green"] = _SocketState()  # set as an attribute, it would be an option
        super().__init__(*args, **kwargs)
        with _lock:
            if self._shadow:
                self.__dict__["_green"] = _states.get(self.underlying, self._green)
            _states[self.underlying] = self._green

    def _until_done(
        self,
        call: _Callable[[int], _Any],
        flags: int,
        line: _QueueLock,
        ready: int,
        timeout_option: int,
    ) -> _Any:
        """The result of *call*, which is given its flags, once it need not wait.

        :param flags: the caller's; with ``NOBLOCK`` it is tried once.
        :param ready: the event to wait for.
        :param timeout_option: of the socket, in ms: 0 is no wait, -1 no end of it.
        :raises ZMQError: EAGAIN, it could not be done at once, or in that time; any other.
        """
        if flags & _std.NOBLOCK:
            return self._call(self._pass_by, line, lambda: call(flags))

        def attempt(place: _Place) -> _Any:
            result = call(flags | _std.NOBLOCK)
            line.note_part(place)
            return result

        def until_done(deadline: float | None, place: _Place) -> _Any:
            pause, again = _PAUSES[0], False
            while True:
                try:
                    return self._call(attempt, place)
                except _std.Again as error:
                    if deadline is not None and _time.monotonic() >= deadline:
                        error.is_timeout = True
                        raise
                # The call need not have processed all events, and the descriptor tells of further
                # ones alone.
                patient = bool(self._tell() & ready)
                if patient and not again:
                    again = True
                    continue
                until = deadline
                if patient:
                    # A ROUTER and an XPUB say that there is room also where a message finds none:
                    # to one peer, or to all of them.
                    soon = _time.monotonic() + pause
                    until = soon if deadline is None else min(soon, deadline)
                    pause = min(2 * pause, _PAUSES[1])
                else:
                    pause, again = _PAUSES[0], False
                waiter = _BlockedThread(ready, patient=patient)
                try:
                    self._await(waiter)
                    self._tell()
                    waiter.block(until)
                finally:
                    self._green.leave(waiter)

        return self._in_line(line, timeout_option, until_done)

    def _in_line(
        self,
        line: _QueueLock,
        timeout_option: int,
        call: _Callable[[float | None, _Place], _Any],
    ) -> _Any:
        """The result of *call*, which has *line*.

        *call* is given the moment of ``time.monotonic()`` at which it ends (None: never), and its
        place.

        :raises Again: that moment has come.
        """
        limit: int = self._call(super().get, timeout_option)
        deadline = None if limit < 0 else _time.monotonic() + limit / 1000
        place = _Place()
        try:
            if not line.enter(place, deadline):
                late = _std.Again()
                late.is_timeout = True
                raise late
            return call(deadline, place)
        finally:
            # A function of Python's may not get to its first line, or to its last, where a signal
            # handler raises: the line is handed on once more, which those that wait bear.
            try:
                line.places.pop(place, None)
            finally:
                if line.places:
                    try:
                        line.hand_on()
                    except BaseException:
                        line.hand_on()
                        raise

    @staticmethod
    def _pass_by(line: _QueueLock, call: _Callable[[], _Any]) -> _Any:
        """The result of *call*, which does not wait, without *line*. By the one thread that may.

        :raises Again: another greenthread is in the middle of a message.
        """
        if line.is_mid_message_of_another():
            raise _std.Again
        return call()

    def _call(self, call: _Callable[..., _Any], *args: _Any, **kwargs: _Any) -> _Any:
        """Make calls of pyzmq's that do not wait, by the one thread that may.

        :raises ZMQError: ENOTSOCK, the socket is of the process that has forked this one. libzmq
            would call its own threads without end, which are not here.
        """
        green = self._green
        if green.is_inherited():
            raise _std.ZMQError(
                _std.ENOTSOCK, f"socket of process {green.pid}: make sockets after the fork"
            )
        try:
            with green.calls:
                return call(*args, **kwargs)
        finally:
            if green.waiters:
                if green.calls._is_owned():
                    green.unsettled = True
                else:
                    self._tell()

    def _tell(self) -> int:
        """Process the events, and wake those that wait for them.

        :returns: the events; both where the socket is closed, or its context ends: all are woken,
            and what is tried again then fails as it should.
        """
        events, failed = self._process()
        with _lock:
            green = self._green
            arrived = green.listen_again(self._arrive)
            green.wake(events, everyone=failed, patient=arrived)
        return events

    def _process(self) -> tuple[int, bool]:
        """Process the events.

        :returns: them, and whether that failed.
        """
        green = self._green
        while True:
            with green.calls:
                green.unsettled = False
                try:
                    result = super().get(_std.EVENTS), False
                except _std.ZMQError:
                    result = _std.POLLIN | _std.POLLOUT, True
            if not green.unsettled:
                return result

    def _await(self, waiter: _BlockedThread) -> None:
        """Have *waiter* woken; the caller then looks for events, and leaves the socket's state.

        :raises ZMQError: ENOTSOCK, the socket is closed.
        :raises RuntimeError: another greenthread waits for the descriptor itself.
        """
        green = self._green
        fileno: int = self._call(super().get, _std.FD)
        with _lock:
            green.waiters.append(waiter)
            try:
                green.listen(fileno, self._arrive)
            except BaseException:
                green.leave(waiter)
                raise

    def _arrive(self) -> bool:
        """The descriptor tells of events. On the hub's thread and with the lock of the turns.

        :returns: False: another thread has the socket, and will look for them.
        """
        green = self._green
        if not green.calls.acquire(blocking=False):
            return False
        try:
            events, failed = self._process()
        finally:
            green.calls.release()
        green.wake(events, everyone=failed, patient=True)
        return True

    @_override
    def close(self, linger: int | None = None) -> None:
        """Close; those that wait get ENOTSOCK. In a forked child it closes nothing."""
        if self._green.is_inherited() or _sys.is_finalizing():
            # It keeps to the process as well. At the end of the interpreter, a thread that is gone
            # may have the lock for ever.
            super().close(linger)
            return
        green = self._green
        with _lock:
            # The number of the descriptor may be another's as soon as the socket is closed.
            green.closing += 1
            green.end_listening()
        closed = False
        try:
            with green.calls:
                super().close(linger)
                closed = True
        finally:
            with _lock:
                green.closing -= not closed
                green.wake(0, everyone=True)  # they look again

    @_override
    def send(self, data: _Any, flags: int = 0, *args: _Any, **kwargs: _Any) -> _Any:
        """Send a frame; wait until there is room for it."""
        send = super().send
        return self._until_done(
            lambda now: send(data, now, *args, **kwargs),
            flags,
            self._green.sending,
            _std.POLLOUT,
            _std.SNDTIMEO,
        )

    def _receive(self, call: _Callable[[int], _Any], flags: int) -> _Any:
        return self._until_done(call, flags, self._green.receiving, _std.POLLIN, _std.RCVTIMEO)

    @_override
    def recv(self, flags: int = 0, *args: _Any, **kwargs: _Any) -> _Any:
        """Receive a frame; wait until there is one."""
        recv = super().recv
        return self._receive(lambda now: recv(now, *args, **kwargs), flags)

    @_override
    def recv_into(self, buffer: _Any, /, *, nbytes: int = 0, flags: int = 0) -> _Any:
        """Receive a frame into *buffer*; wait until there is one."""
        recv_into = super().recv_into
        return self._receive(lambda now: recv_into(buffer, nbytes=nbytes, flags=now), flags)

    def _whole(
        self, call: _Callable[[], _Any], flags: int, line: _QueueLock, timeout_option: int
    ) -> _Any:
        """The result of *call*, whose frames no other ones come between."""
        if flags & _std.NOBLOCK:
            return self._call(self._pass_by, line, call)
        return self._in_line(line, timeout_option, lambda _deadline, _place: call())

    @_override
    def send_multipart(self, msg_parts: _Any, flags: int = 0, *args: _Any, **kwargs: _Any) -> _Any:
        """Send a message of several frames, which no other one comes between."""
        send = super().send_multipart
        return self._whole(
            lambda: send(msg_parts, flags, *args, **kwargs),
            flags,
            self._green.sending,
            _std.SNDTIMEO,
        )

    @_override
    def recv_multipart(self, flags: int = 0, *args: _Any, **kwargs: _Any) -> _Any:
        """Receive all frames of a message."""
        recv = super().recv_multipart
        return self._whole(
            lambda: recv(flags, *args, **kwargs), flags, self._green.receiving, _std.RCVTIMEO
        )


def _alone(name: str) -> _Callable[..., _Any]:
    """The method *name* of pyzmq's socket, called by one thread at a time.

    Options of an inherited socket may be read and set, as ``Context.destroy()`` does, but for the
    one that has libzmq process events.
    """
    method = getattr(_std.Socket, name)
    for_option = name in ("get", "getsockopt", "set", "setsockopt")

    def call(self: Socket, *args: _Any, **kwargs: _Any) -> _Any:
        if for_option and self._green.is_inherited() and _std.EVENTS not in args[:1]:
            return method(self, *args, **kwargs)
        return self._call(method, self, *args, **kwargs)

    call.__name__, call.__doc__ = name, method.__doc__
    return call


for _name in (
    *("bind", "connect", "disconnect", "get", "getsockopt", "join", "leave", "monitor"),
    *("set", "setsockopt", "unbind"),
):
    if hasattr(_std.Socket, _name):
        setattr(Socket, _name, _alone(_name))


class Context(_std.Context):
    """One whose sockets are green."""

    _instance = None
    _socket_class = Socket


# ---- waits for several sockets ------------------------------------------------------------------


def zmq_poll(sockets: _Iterable[tuple[_Any, int]], timeout: int = -1) -> list[tuple[_Any, int]]:
    """Wait until one of the sockets has one of the events that are wanted of it.

    :param sockets: each a socket of ZeroMQ, a descriptor or what has ``fileno()``, and the events.
    :param timeout: ms; negative: for ever.
    :returns: those that have some, each with its events; a number for what has a descriptor.
    :raises ZMQError: ENOTSOCK, one is closed; ETERM, its context ends.
    :raises RuntimeError: another greenthread waits for the descriptor already.
    """
    items = list(sockets)
    deadline = None if timeout < 0 else _time.monotonic() + timeout / 1000
    while True:
        ready = [pair for item in items for pair in _look(*item)]
        late = deadline is not None and _time.monotonic() >= deadline
        if ready or late or not items:
            return ready
        with _contextlib.ExitStack() as ends:
            woken = _Semaphore(0)
            wake = _functools.partial(_wake, woken)
            for number, kind in {found for item in items for found in _sources(*item)}:
                listener = _Listener(kind, number, wake, wake)
                listener.listen()
                ends.callback(listener.end)
            for socket, events in items:
                if isinstance(socket, Socket):
                    waiter = _BlockedThread(events, woken=woken)
                    socket._await(waiter)
                    ends.callback(socket._green.leave, waiter)
            if any(_look(*item) for item in items):
                continue
            until = deadline
            if not all(events & (_std.POLLIN | _std.POLLOUT) for _, events in items):
                # The hub has no listeners for nothing but failures.
                soon = _time.monotonic() + _PAUSES[1]
                until = soon if deadline is None else min(soon, deadline)
            _BlockedThread(woken=woken).block(until)


def _wake(woken: _Semaphore, *_failure: BaseException) -> bool:
    woken.release()
    return False  # the caller listens by another one


def _look(socket: _Any, events: int) -> list[tuple[_Any, int]]:
    """What :func:`zmq_poll` returns of one, without a wait."""
    if isinstance(socket, Socket):
        there = socket.get(_std.EVENTS) & events
        return [(socket, there)] if there else []
    found: list[tuple[_Any, int]] = _std.zmq_poll([(socket, events)], 0)
    return found


def _sources(socket: _Any, events: int) -> _Iterator[tuple[int, str]]:
    """The descriptors to listen for, of what is no green socket, and what of."""
    if isinstance(socket, Socket):
        return
    if isinstance(socket, _std.Socket):
        yield socket.get(_std.FD), _hub.READ
        return
    number = socket if isinstance(socket, int) else socket.fileno()
    if events & _std.POLLIN:
        yield number, _hub.READ
    if events & _std.POLLOUT:
        yield number, _hub.WRITE


def select(
    rlist: _Iterable[_Any],
    wlist: _Iterable[_Any],
    xlist: _Iterable[_Any],
    timeout: float | None = None,
) -> tuple[list[_Any], list[_Any], list[_Any]]:
    """Wait until one of the sockets or descriptors is ready.

    :param timeout: seconds, of which whole milliseconds count; None or negative: for ever.
    :returns: those that can be read, those that can be written, those that failed.
    """
    wanted: dict[_Any, int] = {}
    for sockets, event in ((rlist, _std.POLLIN), (wlist, _std.POLLOUT), (xlist, _std.POLLERR)):
        for socket in sockets:
            wanted[socket] = wanted.get(socket, 0) | event
    ready = zmq_poll(wanted.items(), -1 if timeout is None else int(timeout * 1000))
    read, write, failed = (
        [socket for socket, there in ready if there & event]
        for event in (_std.POLLIN, _std.POLLOUT, _std.POLLERR)
    )
    return read, write, failed


class Poller(_std.Poller):
    """One whose wait is that of a greenthread."""

    @_override
    def poll(self, timeout: float | None = None) -> list[tuple[_Any, int]]:
        """Wait until a socket is ready; see :func:`zmq_poll`.

        :param timeout: ms; None or negative: for ever.
        """
        return zmq_poll(self.sockets, -1 if timeout is None or timeout < 0 else int(timeout))


Socket._poller_class = Poller
