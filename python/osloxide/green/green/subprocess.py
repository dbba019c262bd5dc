"""``eventlet.green.subprocess``: the standard module with children that are waited for at the hub.

Owns a ``Popen`` whose ``wait()`` and ``communicate()`` timeouts end. Its streams are the standard
ones. Rules: subprocess; pidfd_open(2).
"""

from __future__ import annotations

import os as _green_os
import subprocess as _std
import time as _green_time
from types import FunctionType as _FunctionType
from typing import Any

from osloxide._typing import override
from osloxide.green import greenio as _greenio
from osloxide.green import hubs as _hubs
from osloxide.green.green import selectors as _selectors
from osloxide.green.patcher import slurp_properties as _slurp

_slurp(_std, globals(), srckeys=dir(_std))

__patched__ = ["call", "check_call", "check_output", "Popen", "run"]

TimeoutExpired = _std.TimeoutExpired
CalledProcessError = _std.CalledProcessError


class Popen(_std.Popen):  # type: ignore[type-arg]
    """As ``subprocess.Popen``."""

    def __init__(self, args: Any, bufsize: int = 0, *argss: Any, **kwds: Any) -> None:
        super().__init__(args, 0, *argss, **kwds)
        for name in ("stdin", "stdout", "stderr"):
            pipe = getattr(self, name)
            if pipe is None:
                continue
            text = not hasattr(pipe, "readinto")
            raw = pipe
            mode = "r" if name != "stdin" else "w"
            if text:
                # Text streams stand on a buffer whose raw stream can be replaced only as a whole.
                green = _greenio.GreenPipe(
                    pipe, mode, -1, getattr(pipe, "encoding", None), getattr(pipe, "errors", None)
                )
            else:
                green = _greenio.GreenPipe(raw, mode + "b", -1 if bufsize == 0 else bufsize)
            setattr(self, name, green)

    @override
    def wait(self, timeout: float | None = None, check_interval: float = 0.01) -> Any:
        """As ``Popen.wait``."""
        del check_interval
        end = None if timeout is None else _green_time.monotonic() + timeout
        while True:
            status = self.poll()
            if status is not None:
                return status
            left = None if end is None else end - _green_time.monotonic()
            late: Any = TimeoutExpired(self.args, timeout or 0.0)
            if left is not None and left <= 0:
                raise late
            try:
                number = _green_os.pidfd_open(self.pid)
            except ProcessLookupError:
                return super().wait()
            try:
                _hubs.trampoline(number, read=True, timeout=left, timeout_exc=late)
            finally:
                _hubs.notify_close(number)
                _green_os.close(number)

    _communicate = _FunctionType(
        _std.Popen._communicate.__code__,  # type: ignore[attr-defined]
        {**vars(_std), "_PopenSelector": _selectors.SelectSelector},
        "_communicate",
    )


def _with_popen(function: Any) -> Any:
    """*function* of the standard module, with our ``Popen``."""
    result = _FunctionType(function.__code__, globals(), function.__name__)
    result.__kwdefaults__ = function.__kwdefaults__
    result.__defaults__ = function.__defaults__
    result.__doc__ = function.__doc__
    return result


call = _with_popen(_std.call)
check_call = _with_popen(_std.check_call)
check_output = _with_popen(_std.check_output)
run = _with_popen(_std.run)
