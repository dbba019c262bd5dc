"""``eventlet.greenio.py3``: pipes that wait with the hub.

Owns :class:`GreenFileIO`, a raw stream over a nonblocking descriptor, and :func:`GreenPipe`, which
opens one as ``open()`` would. Rules: eventlet.greenio.py3; io (RawIOBase).
"""

from __future__ import annotations

import io
import os
import socket
from typing import Any

from osloxide._typing import override
from osloxide.green import hubs
from osloxide.green.greenio.base import SOCKET_BLOCKING, set_nonblocking
from osloxide.green.hubs import IOClosed, notify_close, notify_opened
from osloxide.green.support import get_errno

__all__ = ["GreenFileIO", "GreenPipe", "_fileobject"]

_fileobject = socket.SocketIO


class GreenFileIO(io.RawIOBase):
    """A raw stream over a descriptor.

    :param name: a descriptor, which the stream owns from now on, or the path of a file.
    :param mode: as for ``open()``.
    """

    def __init__(
        self, name: int | str, mode: str = "r", closefd: bool = True, opener: Any = None
    ) -> None:
        del closefd, opener
        super().__init__()
        self._fileno = -1
        if isinstance(name, int):
            self._fileno = name
            self._name = f"<fd:{name}>"
        else:
            with open(name, mode) as file:
                self._name = str(file.name)
                self._fileno = os.dup(file.fileno())
        notify_opened(self._fileno)
        self.mode = mode
        self._green_closed = False
        set_nonblocking(self)
        if "a" in mode and self.seekable():
            os.lseek(self._fileno, 0, os.SEEK_END)

    @property
    def name(self) -> str:
        """What it was opened by."""
        return self._name

    @override
    def seekable(self) -> bool:
        """Whether it has a position."""
        try:
            os.lseek(self._fileno, 0, os.SEEK_CUR)
        except OSError:
            return False
        return True

    @override
    def readable(self) -> bool:
        """Whether it was opened to read."""
        return "r" in self.mode or "+" in self.mode

    @override
    def writable(self) -> bool:
        """Whether it was opened to write."""
        return any(letter in self.mode for letter in "wa+x")

    @override
    def fileno(self) -> int:
        """The descriptor."""
        self._check()
        return self._fileno

    @override
    def isatty(self) -> bool:
        """Whether it is a terminal."""
        self._check()
        return os.isatty(self._fileno)

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _trampoline(self, *, read: bool = False) -> None:
        if self._green_closed:
            raise IOClosed
        try:
            hubs.trampoline(
                self._fileno, read=read, write=not read, mark_as_closed=self._mark_as_closed
            )
        except IOClosed:
            self._mark_as_closed()
            raise

    def _mark_as_closed(self) -> None:
        self._green_closed = True

    @override
    def read(self, size: int | None = -1) -> bytes:
        """Read once, at most *size* bytes; all when negative."""
        self._check()
        if size is None or size < 0:
            return self.readall()
        while True:
            try:
                return os.read(self._fileno, size)
            except OSError as error:
                if get_errno(error) not in SOCKET_BLOCKING:
                    raise
            self._trampoline(read=True)

    @override
    def readall(self) -> bytes:
        """Read to the end."""
        chunks = []
        while chunk := self.read(io.DEFAULT_BUFFER_SIZE):
            chunks.append(chunk)
        return b"".join(chunks)

    @override
    def readinto(self, buffer: Any) -> int:
        """Read into *buffer*."""
        with memoryview(buffer) as view, view.cast("B") as target:
            data = self.read(len(target))
            target[: len(data)] = data
            return len(data)

    @override
    def write(self, data: Any) -> int:
        """Write all of *data*."""
        self._check()
        with memoryview(data) as view, view.cast("B") as rest:
            written = 0
            while written < len(rest):
                try:
                    written += os.write(self._fileno, rest[written:])
                except OSError as error:
                    if get_errno(error) not in SOCKET_BLOCKING:
                        raise
                    self._trampoline()
            return written

    @override
    def close(self) -> None:
        """Close the descriptor; those that wait for it are told."""
        if self.closed:
            return
        super().close()
        if self._fileno >= 0 and not self._green_closed:
            self._green_closed = True
            os.close(self._fileno)
            notify_close(self._fileno)

    @override
    def truncate(self, size: int | None = -1) -> int:
        """Cut it, at its position unless *size* is given."""
        self._check()
        if size is None or size < 0:
            size = self.tell()
        os.ftruncate(self._fileno, size)
        self.seek(size)
        return size

    @override
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position."""
        self._check()
        return os.lseek(self._fileno, offset, whence)

    @override
    def tell(self) -> int:
        """The position."""
        return self.seek(0, os.SEEK_CUR)


def GreenPipe(  # noqa: N802 - eventlet's name
    name: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    """Open a pipe; arguments as for ``open()``.

    :param name: a descriptor, a path, or a file, which is closed: the pipe has a copy of it.
    """
    try:
        number = name.fileno()
    except AttributeError:
        pass
    else:
        number = os.dup(number)
        name.close()
        name = number
    binary = "b" in mode
    raw = GreenFileIO(name, mode.replace("b", "").replace("t", ""), closefd, opener)
    try:
        if buffering == 0:
            if not binary:
                raise ValueError("can't have unbuffered text I/O")
            return raw
        line_buffering = buffering == 1
        size = io.DEFAULT_BUFFER_SIZE if buffering < 2 else buffering
        buffered: Any
        if "+" in mode:
            buffered = io.BufferedRandom(raw, size)
        elif raw.writable():
            buffered = io.BufferedWriter(raw, size)
        else:
            buffered = io.BufferedReader(raw, size)
        if binary:
            return buffered
        text = io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering)
    except BaseException:
        raw.close()
        raise
    text.mode = mode  # type: ignore[misc]
    return text
