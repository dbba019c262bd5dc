"""``eventlet.greenio.base``: a socket that waits with the hub.

Owns :class:`GreenSocket`, an ordinary ``socket.socket`` whose descriptor is nonblocking: what would
block waits at the hub, where timeouts, ``kill()`` and a ``close()`` elsewhere end the wait.
Rules: eventlet.greenio.base; socket(2) and its family for the error numbers.
"""

from __future__ import annotations

import errno
import os
import socket
import time
import warnings
from collections.abc import Callable
from socket import _GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]
from typing import Any

from osloxide._typing import override
from osloxide.green import hubs
from osloxide.green.hubs import IOClosed, notify_opened
from osloxide.green.support import get_errno

__all__ = [
    "CONNECT_ERR",
    "CONNECT_SUCCESS",
    "SOCKET_BLOCKING",
    "SOCKET_CLOSED",
    "SSL",
    "_GLOBAL_DEFAULT_TIMEOUT",
    "GreenSocket",
    "set_nonblocking",
    "shutdown_safe",
    "socket_timeout",
]

BUFFER_SIZE = 4096
CONNECT_ERR = {errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK}
CONNECT_SUCCESS = {0, errno.EISCONN}
# A socket that is not connected yet counts as one that would block.
SOCKET_BLOCKING = {errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOTCONN}
SOCKET_CLOSED = {errno.ECONNRESET, errno.ESHUTDOWN, errno.EPIPE}

socket_timeout = socket.timeout
_original_socket = socket.socket


def socket_connect(descriptor: Any, address: Any) -> Any:
    """Try to connect: *descriptor* when it is, None when it takes longer."""
    err = descriptor.connect_ex(address)
    if err in CONNECT_ERR:
        return None
    if err not in CONNECT_SUCCESS:
        raise OSError(err, errno.errorcode[err])
    return descriptor


def socket_checkerr(descriptor: Any) -> None:
    """Raise what has happened to a connection in the making."""
    err = descriptor.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if err not in CONNECT_SUCCESS:
        raise OSError(err, errno.errorcode[err])


def socket_accept(descriptor: Any) -> Any:
    """Try to accept: socket and address, or None when there is no connection."""
    try:
        return descriptor.accept()
    except OSError as error:
        if get_errno(error) == errno.EWOULDBLOCK:
            return None
        raise


def set_nonblocking(fd: Any) -> None:
    """Make a socket, or what has ``fileno()``, nonblocking."""
    try:
        setblocking = fd.setblocking
    except AttributeError:
        os.set_blocking(fd.fileno(), False)
    else:
        setblocking(0)


class GreenSocket(_original_socket):
    """A socket; arguments as for ``socket.socket``.

    :param family: may be a socket, which is taken over: closing either closes both.
    :param set_nonblocking: False: the descriptor is nonblocking already.
    """

    act_non_blocking = False
    _timeout: float | None = None
    _green_closed = False
    _wrapped: Any = None

    def __init__(
        self,
        family: Any = socket.AF_INET,
        type: int = socket.SOCK_STREAM,
        proto: int = 0,
        fileno: int | None = None,
        set_nonblocking: bool = True,
    ) -> None:
        timeout = socket.getdefaulttimeout()
        if isinstance(family, int):
            super().__init__(family, type, proto, fileno)
            if fileno is None:
                notify_opened(self.fileno())
        else:
            wrapped = family
            timeout = getattr(wrapped, "gettimeout", lambda: None)() or timeout
            self._wrapped = wrapped
            number = wrapped.fileno()
            if number >= 0:
                super().__init__(wrapped.family, wrapped.type, wrapped.proto, number)
            else:
                super().__init__(wrapped.family, wrapped.type, wrapped.proto)
                self._close_native()
        if set_nonblocking and self.fileno() != -1:
            super().setblocking(False)
        self._timeout = timeout

    @property
    def fd(self) -> Any:
        """The socket underneath: this one."""
        return self if self._wrapped is None else self._wrapped

    def __getattr__(self, name: str) -> Any:
        """What the object underneath has beyond a socket, such as a TLS library's connection."""
        if self._wrapped is None or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._wrapped, name)

    @property
    def _sock(self) -> GreenSocket:
        return self

    # ---- closing --------------------------------------------------------------------------------

    def _close_native(self) -> None:
        if self._wrapped is not None:
            super().detach()
            self._wrapped.close()
        else:
            super()._real_close()  # type: ignore[misc]

    def _real_close(self, _ss: Any = None) -> None:
        number = self.fileno()
        self._close_native()
        if number >= 0:
            # Those that wait for it would wait for ever, or for another file of that number.
            hubs.notify_close(number)

    @override
    def detach(self) -> int:
        """Give the descriptor away."""
        number = super().detach()
        if self._wrapped is not None:
            self._wrapped.detach()
        return number

    def __del__(self) -> None:
        # This method takes the place of the one that would close the descriptor.
        if getattr(self, "_wrapped", None) is not None:
            self._wrapped.close()
            super().detach()
        elif self.fileno() >= 0:
            self._real_close()

    def _mark_as_closed(self) -> None:
        self._green_closed = True

    # ---- waiting --------------------------------------------------------------------------------

    def _trampoline(
        self,
        fd: Any,
        read: bool = False,
        write: bool = False,
        timeout: float | None = None,
        timeout_exc: Any = None,
    ) -> Any:
        if self._green_closed:
            raise IOClosed
        try:
            return hubs.trampoline(
                fd,
                read=read,
                write=write,
                timeout=timeout,
                timeout_exc=timeout_exc,
                mark_as_closed=self._mark_as_closed,
            )
        except IOClosed:
            self._mark_as_closed()
            raise

    def _wait(self, *, read: bool = False, timeout: float | None = None) -> None:
        self._trampoline(
            self,
            read=read,
            write=not read,
            timeout=timeout,
            timeout_exc=socket_timeout("timed out"),
        )

    @override
    def accept(self) -> tuple[Any, Any]:
        """As ``socket.accept``; the connection is a :class:`GreenSocket`.

        :raises IOClosed: the socket was closed while it was waited for; its errno is ENOTCONN.
        """
        waited = False
        while True:
            try:
                number, address = self._accept()
            except BlockingIOError:
                if self.act_non_blocking:
                    raise
                self._wait(read=True, timeout=self.gettimeout())
                waited = True
                continue
            except OSError as error:
                # It may have been closed just after the wait had ended.
                if waited and error.errno == errno.EBADF:
                    raise IOClosed(errno.ENOTCONN, "Operation on closed file") from None
                raise
            notify_opened(number)
            kind = GreenSocket if self._wraps_accepted else type(self)
            sock = kind(self.family, self.type, self.proto, fileno=number)
            if self.act_non_blocking:
                _original_socket.setblocking(sock, True)
            return sock, address

    _wraps_accepted = False
    """Whether accepted connections become something else (TLS)."""

    @override
    def connect(self, address: Any) -> None:
        """As ``socket.connect``."""
        if self.act_non_blocking:
            super().connect(address)
            return
        timeout = self.gettimeout()
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            err = super().connect_ex(address)
            if err in CONNECT_SUCCESS:
                return
            if err not in CONNECT_ERR:
                raise OSError(err, os.strerror(err))
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise socket_timeout("timed out")
            try:
                self._wait(timeout=left)
            except IOClosed:
                raise OSError(errno.EBADFD, os.strerror(errno.EBADFD)) from None
            err = self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if err not in CONNECT_SUCCESS:
                raise OSError(err, os.strerror(err))

    @override
    def connect_ex(self, address: Any) -> int:
        """As ``socket.connect_ex``."""
        if self.act_non_blocking:
            return super().connect_ex(address)
        try:
            self.connect(address)
        except socket_timeout:
            return errno.EAGAIN
        except OSError as error:
            number: int = get_errno(error)
            return number
        return 0

    @override
    def dup(self) -> GreenSocket:
        """As ``socket.dup``."""
        number = os.dup(self.fileno())
        sock = type(self)(self.family, self.type, self.proto, fileno=number)
        sock.settimeout(self.gettimeout())
        return sock

    def makeGreenFile(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 - eventlet's name
        """The old name of ``makefile()``."""
        warnings.warn(
            "makeGreenFile has been deprecated, please use makefile instead",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.makefile(*args, **kwargs)

    def _read_trampoline(self) -> None:
        self._wait(read=True, timeout=self.gettimeout())

    def _recv_loop(self, method: Callable[..., Any], empty: Any, *args: Any) -> Any:
        if self.act_non_blocking:
            return method(*args)
        while True:
            try:
                if not args[0]:
                    # Nothing to read is no error in the kernel; here it waits like a blocking one.
                    self._read_trampoline()
                return method(*args)
            except OSError as error:
                number = get_errno(error)
                if isinstance(error, (socket_timeout, IOClosed)) and number not in SOCKET_BLOCKING:
                    raise
                if number in SOCKET_CLOSED:
                    return empty
                if number not in SOCKET_BLOCKING:
                    raise
            try:
                self._read_trampoline()
            except IOClosed:
                raise EOFError from None

    @override
    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """As ``socket.recv``; empty when the connection was reset."""
        return self._recv_loop(super().recv, b"", bufsize, flags)  # type: ignore[no-any-return]

    @override
    def recvfrom(self, bufsize: int, flags: int = 0) -> Any:
        """As ``socket.recvfrom``."""
        return self._recv_loop(super().recvfrom, b"", bufsize, flags)

    @override
    def recv_into(self, buffer: Any, nbytes: int | None = 0, flags: int = 0) -> int:
        """As ``socket.recv_into``."""
        return self._recv_loop(super().recv_into, 0, buffer, nbytes or 0, flags)  # type: ignore[no-any-return]

    @override
    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> Any:
        """As ``socket.recvfrom_into``."""
        return self._recv_loop(super().recvfrom_into, 0, buffer, nbytes, flags)

    def _send_loop(self, method: Callable[..., Any], data: Any, *args: Any) -> Any:
        if self.act_non_blocking:
            return method(data, *args)
        while True:
            try:
                return method(data, *args)
            except OSError as error:
                number = get_errno(error)
                if number == errno.ENOTCONN or number not in SOCKET_BLOCKING:
                    raise
            try:
                self._wait(timeout=self.gettimeout())
            except IOClosed:
                raise OSError(errno.ECONNRESET, "Connection closed by another thread") from None

    @override
    def send(self, data: Any, flags: int = 0) -> int:
        """As ``socket.send``."""
        return self._send_loop(super().send, data, flags)  # type: ignore[no-any-return]

    @override
    def sendto(self, data: Any, *args: Any) -> int:
        """As ``socket.sendto``."""
        return self._send_loop(super().sendto, data, *args)  # type: ignore[no-any-return]

    @override
    def sendall(self, data: Any, flags: int = 0) -> None:
        """As ``socket.sendall``."""
        with memoryview(data) as view, view.cast("B") as rest:
            sent = 0
            while True:
                sent += self.send(rest[sent:], flags)
                if sent >= len(rest):
                    return

    @override
    def sendmsg(self, *args: Any) -> int:
        """As ``socket.sendmsg``."""
        return self._send_loop(super().sendmsg, *args)  # type: ignore[no-any-return]

    @override
    def recvmsg(self, *args: Any) -> Any:
        """As ``socket.recvmsg``."""
        return self._recv_loop(super().recvmsg, (b"", [], 0, None), *args)

    # ---- timeouts -------------------------------------------------------------------------------

    @override
    def setblocking(self, flag: bool) -> None:
        """As ``socket.setblocking``; the descriptor stays nonblocking."""
        self.act_non_blocking = not flag
        self._timeout = None if flag else 0.0

    @override
    def getblocking(self) -> bool:
        """As ``socket.getblocking``."""
        return not self.act_non_blocking

    @override
    def settimeout(self, howlong: Any) -> None:
        """As ``socket.settimeout``."""
        if howlong is None or howlong is _GLOBAL_DEFAULT_TIMEOUT:
            self.setblocking(True)
            return
        if not hasattr(howlong, "__float__"):
            raise TypeError("a float is required")
        seconds = float(howlong)
        if seconds < 0.0:
            raise ValueError("Timeout value out of range")
        self.act_non_blocking = seconds == 0.0
        self._timeout = seconds

    @override
    def gettimeout(self) -> float | None:
        """As ``socket.gettimeout``."""
        return self._timeout

    @property
    @override
    def timeout(self) -> float | None:
        """As ``socket.timeout``."""
        return self._timeout


try:
    from OpenSSL import SSL
except ImportError:

    class SSL:  # type: ignore[no-redef]
        """Stands in for pyOpenSSL's module where that is not installed."""

        class WantWriteError(Exception):
            """Never raised."""

        class WantReadError(Exception):
            """Never raised."""

        class ZeroReturnError(Exception):
            """Never raised."""

        class SysCallError(Exception):
            """Never raised."""


def shutdown_safe(sock: Any) -> Any:
    """Shut a plain or a TLS socket down; that it is not connected any more is no error."""
    try:
        try:
            return sock.shutdown(socket.SHUT_RDWR)
        except TypeError:
            return sock.shutdown()
    except OSError as error:
        if get_errno(error) not in (errno.ENOTCONN, errno.EBADF, errno.ENOTSOCK):
            raise
