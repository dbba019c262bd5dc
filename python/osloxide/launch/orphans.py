"""Whose is a child that has ended and is no worker?

Process 1 inherits the orphans of its container and has to reap them. Owns the answer to whom a
child belongs, which launchers ask, and the reaping in a process that serves alone; with workers the
native supervisor reaps. What a live ``subprocess.Popen`` or ``multiprocessing.Process`` of this
process stands for belongs to the application, which would otherwise be told "exit status 0" of a
command that failed. A child that the application forked by itself is recognised by nothing; it is
left alone for two seconds, for the application to wait for.

Rules: waitpid(2); subprocess, gc (Python library reference).
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from osloxide.signals import careful_log
from osloxide.threads import identity

LOG = careful_log.logger(__name__)

GRACE = 2.0
"""Seconds that an ended child is left to code that may be waiting for it."""

AGAIN = 60.0
"""Seconds after which one that belongs to the application is looked at again."""

_LASTS = 1.0
"""Seconds that one look at all objects is used: shorter than an orphan is left alone, so that no
command can have been started after the look and be asked about before the next."""

own_children: identity.WeakIdentitySet[Any] = identity.WeakIdentitySet()
"""Launchers; the pids in their ``children`` are theirs alone."""

_asked_at: dict[int, float] = {}
_frozen: identity.WeakIdentitySet[subprocess.Popen[Any]] = identity.WeakIdentitySet()
_looked_at = float("-inf")
_pids: frozenset[int] = frozenset()


def freeze() -> None:
    """Keep what there is now from the collector, as ``gc.freeze()`` does.

    That hides it from the looks of process 1 as well, which notes it first.
    """
    if os.getpid() == 1:
        for popen in _popens():
            _frozen.add(popen)
    gc.freeze()


def belongs_to_application(pid: int) -> bool:
    """Tell whether code of this process may still ask how child *pid* ended."""
    if any(pid in launcher.children for launcher in own_children):
        return True
    global _looked_at, _pids
    now = time.monotonic()
    if now - _looked_at > _LASTS:
        _looked_at, _pids = now, frozenset(_awaited())
    return pid in _pids


def reap() -> float:
    """Reap the orphans of the container in a process that serves alone.

    :returns: seconds after which to call it again; 0 where the next SIGCHLD will do.
    """
    now = time.monotonic()
    ended = set(_ended_children())
    for pid in _asked_at.keys() - ended:
        del _asked_at[pid]
    for pid in ended:
        ask_at = _asked_at.setdefault(pid, now + GRACE)
        if now < ask_at:
            continue
        _asked_at[pid] = now + AGAIN
        if not belongs_to_application(pid):
            log_reaped(pid, os.waitpid(pid, os.WNOHANG)[1])
            del _asked_at[pid]
    return max(min(_asked_at.values()) - now, 0.01) if _asked_at else 0.0


def log_reaped(pid: int, status: int) -> None:
    """Log that an orphan was reaped."""
    LOG.warning("pid %d not in child list", pid)
    LOG.info("Adopted process %d has ended (wait status %d)", pid, status)


def _ended_children() -> Iterator[int]:
    own = str(os.getpid())
    try:
        names = os.listdir("/proc")
    except OSError:
        return  # not mounted: the application reaps its own, and orphans stay
    for name in names:
        if name.isdigit():
            try:
                stat = Path("/proc", name, "stat").read_text()
                state, parent = stat.rpartition(")")[2].split()[:2]
            except OSError:
                continue  # it was reaped since
            if state == "Z" and parent == own:
                yield int(name)


def _awaited() -> set[int]:
    popens = [*_popens(), *_frozen]
    found = {popen.pid for popen in popens if getattr(popen, "returncode", 0) is None}
    multiprocessing = sys.modules.get("multiprocessing.process")
    for process in tuple(getattr(multiprocessing, "_children", ())):
        if process.pid is not None:
            found.add(process.pid)
    return found


def _popens() -> list[subprocess.Popen[Any]]:
    # By type and not isinstance(), which asks proxies what they stand for.
    return [item for item in gc.get_objects() if issubclass(type(item), subprocess.Popen)]
