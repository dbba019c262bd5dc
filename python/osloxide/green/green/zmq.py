"""``eventlet.green.zmq``: pyzmq with sockets that wait at the hub.

Owns ``Context`` and ``Socket``; everything else is the module that is installed. A socket of ZeroMQ
may be used by one native thread at a time, and greenthreads are native threads: each call takes the
socket's lock and does not block. What cannot be done at once waits without it until the descriptor
of the socket tells of events, or another call has processed them, and is tried again. Rules:
eventlet.green.zmq; zmq_socket(3), *Thread safety*; zmq_getsockopt(3), ZMQ_FD and ZMQ_EVENTS.
"""

from __future__ import annotations

import threading as _threading
import time as _time
from collections.abc import Callable as _Callable
from types import TracebackType as _TracebackType
from typing import Any as _Any

import zmq as _zmq  # type: ignore[import-not-found,unused-ignore]

from osloxide._typing import override as _override
from osloxide.green import hubs as _hubs
from osloxide.green._core import greenlets as _greenlets
from osloxide.green.patcher import slurp_properties as _slurp
from osloxide.green.semaphore import Semaphore as _Semaphore

_std: _Any = _zmq
_slurp(_std, globals(), srckeys=dir(_std))

__patched__ = ["Context", "Socket"]


class _Line:
    """One greenthread at a time sends, or receives; it may enter again.

    The parts of a message stay together so.
    """

    def __init__(self) -> None:
        self._free = _Semaphore(1)
        self._holder: _Any = None
        self._depth = 0

    def __enter__(self) -> None:
        me = _greenlets.getcurrent()
        if self._holder is not me:
            self._free.acquire()
            self._holder = me
        self._depth += 1

    def __exit__(
        self,
        typ: type[BaseException] | None,
        val: BaseException | None,
        tb: _TracebackType | None,
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._holder = None
            self._free.release()


class _State:
    """What a green socket has besides; pyzmq takes attributes of a socket for its options."""

    def __init__(self) -> None:
        self.lock = _threading.RLock()
        self.sending, self.receiving = _Line(), _Line()
        # Those that wait, with the event that each waits for. With the lock.
        self.waiters: list[tuple[int, _Semaphore]] = []
        # Of the hub, while somebody waits. With the lock.
        self.listener: _Any = None


class Socket(_std.Socket):
    """A socket whose waits are those of a greenthread."""

    _green: _State

    def __init__(self, *args: _Any, **kwargs: _Any) -> None:
        self.__dict__["_green"] = _State()  # set as an attribute, it would be an option
        super().__init__(*args, **kwargs)

    def _until_done(
        self,
        call: _Callable[[int], _Any],
        flags: int,
        line: _Line,
        ready: int,
        timeout_option: int,
    ) -> _Any:
        """The result of *call*, which is given its flags, once it need not wait.

        :param flags: the caller's; with ``NOBLOCK`` it is tried once.
        :param ready: the event to wait for.
        :param timeout_option: of the socket, in ms: 0 is no wait, -1 no end of it.
        :raises ZMQError: EAGAIN, it could not be done at once, or in that time; any other.
        """
        green = self._green
        if flags & _std.NOBLOCK:
            return self._call(call, flags)
        limit: int = self.get(timeout_option)
        deadline = None if limit < 0 else _time.monotonic() + limit / 1000
        with line:
            while True:
                waiter = (ready, _Semaphore(0))
                with green.lock:
                    try:
                        return self._call(call, flags | _std.NOBLOCK)
                    except _std.Again as again:
                        if deadline is not None and _time.monotonic() >= deadline:
                            again.is_timeout = True
                            raise
                    # The call need not have processed all events, and the descriptor tells of
                    # further ones alone.
                    if self._tell() & ready:
                        continue
                    green.waiters.append(waiter)
                    self._listen()
                rest = None if deadline is None else max(0.0, deadline - _time.monotonic())
                try:
                    waiter[1].acquire(timeout=rest)
                finally:
                    with green.lock:
                        if waiter in green.waiters:
                            green.waiters.remove(waiter)
                            self._tell()

    def _call(self, call: _Callable[..., _Any], *args: _Any, **kwargs: _Any) -> _Any:
        """Make one call of pyzmq's, by the one thread that may."""
        green = self._green
        with green.lock:
            try:
                return call(*args, **kwargs)
            finally:
                if green.waiters:
                    self._tell()

    def _tell(self) -> int:
        """Process the events, and wake those that wait for them.

        :returns: the events; both where the socket is closed, or its context ends: what is tried
            again then fails as it should.
        """
        green = self._green
        with green.lock:
            try:
                events: int = super().get(_std.EVENTS)
            except _std.ZMQError:
                events = _std.POLLIN | _std.POLLOUT
            woken = [waiter for waiter in green.waiters if waiter[0] & events]
            green.waiters = [waiter for waiter in green.waiters if waiter not in woken]
            if not green.waiters and green.listener is not None:
                _hubs.get_hub().remove(green.listener)
                green.listener = None
        for _, semaphore in woken:
            semaphore.release()
        return events

    def _listen(self) -> None:
        """Have :meth:`_tell` called when the descriptor tells of events. With the lock."""
        green = self._green
        if green.listener is None:
            hub = _hubs.get_hub()
            green.listener = hub.add(
                hub.READ,
                super().get(_std.FD),
                lambda _fileno: self._tell(),
                lambda _failure: self._tell(),
            )

    @_override
    def close(self, linger: int | None = None) -> None:
        """Close; those that wait get ENOTSOCK."""
        self._call(super().close, linger)

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

    @_override
    def recv(self, flags: int = 0, *args: _Any, **kwargs: _Any) -> _Any:
        """Receive a frame; wait until there is one."""
        recv = super().recv
        return self._until_done(
            lambda now: recv(now, *args, **kwargs),
            flags,
            self._green.receiving,
            _std.POLLIN,
            _std.RCVTIMEO,
        )

    @_override
    def send_multipart(self, msg_parts: _Any, flags: int = 0, *args: _Any, **kwargs: _Any) -> _Any:
        """Send a message of several frames, which no other one comes between."""
        if flags & _std.NOBLOCK:
            return super().send_multipart(msg_parts, flags, *args, **kwargs)
        with self._green.sending:
            return super().send_multipart(msg_parts, flags, *args, **kwargs)

    @_override
    def recv_multipart(self, flags: int = 0, *args: _Any, **kwargs: _Any) -> _Any:
        """Receive all frames of a message."""
        if flags & _std.NOBLOCK:
            return super().recv_multipart(flags, *args, **kwargs)
        with self._green.receiving:
            return super().recv_multipart(flags, *args, **kwargs)


def _alone(name: str) -> _Callable[..., _Any]:
    """The method *name* of pyzmq's socket, called by one thread at a time."""
    method = getattr(_std.Socket, name)

    def call(self: Socket, *args: _Any, **kwargs: _Any) -> _Any:
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
