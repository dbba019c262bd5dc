"""``eventlet.green.os``: the standard module with reads, writes and waits that timeouts end."""

from __future__ import annotations

import errno as _errno
import os as _std
from typing import Any

from osloxide.green import hubs as _hubs
from osloxide.green._core.children import await_end as _await_end
from osloxide.green.greenthread import sleep as _sleep
from osloxide.green.patcher import slurp_properties as _slurp
from osloxide.green.support import get_errno as _get_errno

_slurp(_std, globals(), srckeys=dir(_std))

__all__ = _std.__all__
__patched__ = ["fdopen", "read", "write", "wait", "waitpid", "open"]


def fdopen(fd: int, *args: Any, **kw: Any) -> Any:
    """A file over a descriptor."""
    from osloxide.green import greenio

    if not isinstance(fd, int):
        raise TypeError(f"fd should be int, not {fd!r}")
    try:
        return greenio.GreenPipe(fd, *args, **kw)
    except OSError as error:
        raise OSError(*error.args) from error


def read(fd: int, n: int) -> bytes:
    """Read at most *n* bytes; waits at the hub where the descriptor is nonblocking or a pipe."""
    while True:
        try:
            return _std.read(fd, n)
        except OSError as error:
            if _get_errno(error) == _errno.EPIPE:
                return b""
            if _get_errno(error) != _errno.EAGAIN:
                raise
        try:
            _hubs.trampoline(fd, read=True)
        except _hubs.IOClosed:
            return b""


def write(fd: int, data: Any) -> int:
    """Write *data*."""
    while True:
        try:
            return _std.write(fd, data)
        except OSError as error:
            if _get_errno(error) not in (_errno.EAGAIN, _errno.EPIPE):
                raise
            if _get_errno(error) == _errno.EPIPE:
                raise
        _hubs.trampoline(fd, write=True)


def wait() -> tuple[int, int]:
    """Wait for any child."""
    return waitpid(-1, 0)


def waitpid(pid: int, options: int) -> tuple[int, int]:
    """Wait for a child."""
    if options & _std.WNOHANG:
        return _std.waitpid(pid, options)
    while True:
        result, status = _std.waitpid(pid, options | _std.WNOHANG)
        if result:
            return result, status
        if options:
            _sleep(0.05)  # a child that is stopped tells nothing
        else:
            _await_end(pid)


def open(file: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    """Open a file."""
    number = _std.open(file, flags, mode, dir_fd=dir_fd)
    _hubs.notify_opened(number)
    return number
