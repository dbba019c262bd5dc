"""The end of children: a wait at the hub until a child process may have ended.

Owns the descriptors that tell of an end. Reaps nothing and takes no signal: the caller asks
waitpid(2) afterwards. Rules: pidfd_open(2), epoll(7), proc(5) for the children of a thread.
"""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path

from osloxide.green import hubs
from osloxide.green.greenthread import sleep

RELOOK = 1.0
"""Seconds after which the children are looked for again: others may have been forked since."""

_POLL = 0.02
"""Seconds between two looks where the kernel cannot tell."""


class _Late(Exception):
    """The wait has lasted long enough."""


def await_end(pid: int) -> None:
    """Wait until a child that waitpid(2) means by *pid* may have ended.

    :param pid: a process; -1 for any child; 0 for one of the caller's process group; below -1 for
        one of the process group ``-pid``.
    """
    pids = [pid] if pid > 0 else _children() if pid == -1 else _members(-pid or os.getpgrp())
    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(select.epoll())
        try:
            for child in pids:
                number = os.pidfd_open(child)
                stack.callback(os.close, number)
                watch.register(number, select.EPOLLIN)
        except OSError:
            pids = []
        if not pids:
            sleep(_POLL)
            return
        with contextlib.suppress(_Late):
            hubs.trampoline(
                watch.fileno(), read=True, timeout=None if pid > 0 else RELOOK, timeout_exc=_Late
            )


def _children() -> list[int]:
    """The children of all threads of this process; empty where the kernel does not list them."""
    found: list[int] = []
    for task in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def _members(group: int) -> list[int]:
    """The children of process group *group*. Only these: one of another group that has ended is not
    reaped by the caller, so its descriptor would stay readable for ever."""
    found: list[int] = []
    for child in _children():
        with contextlib.suppress(OSError):
            if os.getpgid(child) == group:
                found.append(child)
    return found
