"""A tracer that never waits for what it traces: a debugger at its prompt.

Owns the attachment, and fetches what is left of the process at the end.

Rules: ptrace(2), "Death under ptrace".
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator

import pytest

_SEIZE, _DETACH = 0x4206, 17
_WALL = 0x40000000


def fetch(pid: int) -> int:
    """Wait for the end of *pid*, which the caller traces, as strace(1) does; its wait status."""
    return os.waitpid(pid, _WALL)[1]


@contextlib.contextmanager
def traced(pid: int) -> Iterator[None]:
    """Trace *pid* for the length of the block; its remains are this process's until then.

    Only the thread that attached can let go, so both are done on that of the caller.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    thread = threading.get_ident()
    if libc.ptrace(_SEIZE, pid, None, None) != 0:
        pytest.skip(f"processes may not be traced here: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        assert threading.get_ident() == thread
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG | _WALL)
        libc.ptrace(_DETACH, pid, None, None)
