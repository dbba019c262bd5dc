"""What a process must not pass on to processes that are forked from it.

Owns the search for connections, event loops, threads and commands that came up while an application
was loaded. Two processes that write to one connection mix their words up, and a thread does not
exist in a forked process, while its locks do. Closes and ends nothing.

Rules: fork(2), epoll(7), proc(5); "How To Corrupt An SQLite Database File", section 2.6 (SQLite).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

from osloxide.threads import own

_KINDS = {
    "anon_inode:[eventpoll]": "an event loop (epoll)",
    "anon_inode:[io_uring]": "an event loop (io_uring)",
    "anon_inode:inotify": "a watch of files (inotify)",
}
_SQLITE = b"SQLite format 3\0"
_ENDING = 0.5
"""Seconds that threads and connections may take to end which are about to: the kernel forgets a
thread a moment after it was joined."""
_LISTS = 5
"""How many of each kind are named; the others are counted."""


def descriptors() -> dict[int, str]:
    """What is open in this process: the descriptor's number, and what proc(5) says that it is."""
    found: dict[int, str] = {}
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return found
    for name in names:
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one that listed the directory
    return found


def unfit(before: dict[int, str]) -> list[str]:
    """Name what this process has and a fork would break.

    :param before: :func:`descriptors` of an earlier moment; what was open then is left out.
    """
    deadline = time.monotonic() + _ENDING
    while found := _look(before):
        if time.monotonic() >= deadline:
            break
        time.sleep(0.01)
    return found


def _look(before: dict[int, str]) -> list[str]:
    found = []
    for number, link in sorted(descriptors().items()):
        if before.get(number) != link and (what := _describe(number, link)) is not None:
            found.append(f"{what} (descriptor {number})")
    return [*_shortened(found), *_shortened(_threads()), *_shortened(_commands())]


def _describe(number: int, link: str) -> str | None:
    """What *number* is, or None where it may be shared."""
    if link.startswith("socket:"):
        return _describe_socket(number)
    if link.startswith("/"):
        return _describe_file(number, link)
    return _KINDS.get(link)


def _describe_socket(number: int) -> str | None:
    try:
        with socket.socket(fileno=os.dup(number)) as copy:
            if copy.family == socket.AF_NETLINK:
                return "a netlink socket"
            if copy.type not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
                return None  # a datagram is whole, whoever sends it: syslog, statsd
            return f"a connection to {_text(copy.getpeername())}"
    except OSError:
        return None  # not connected


def _text(peer: object) -> str:
    if isinstance(peer, tuple) and len(peer) >= 2:
        host = f"[{peer[0]}]" if ":" in str(peer[0]) else peer[0]
        return f"{host}:{peer[1]}"
    name = peer.decode(errors="replace") if isinstance(peer, bytes) else str(peer)
    return name.replace("\0", "@", 1) or "a socket without a name"


def _describe_file(number: int, path: str) -> str | None:
    try:
        is_database = os.pread(number, len(_SQLITE), 0) == _SQLITE
    except OSError:
        return None  # not readable, or no file
    return f"the SQLite database {path}" if is_database else None


def _threads() -> list[str]:
    """Every thread but the calling one, by Python's name or the kernel's."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    current = threading.get_native_id()
    try:
        entries = sorted(int(name) for name in os.listdir("/proc/self/task"))
    except OSError:
        return [f"thread {thread.name}" for thread in own.of_application()]
    found = []
    for entry in entries:
        if entry == current:
            continue
        try:
            name = names.get(entry) or Path(f"/proc/self/task/{entry}/comm").read_text().strip()
        except OSError:
            continue  # it ended just now
        found.append(f"thread {name}")
    return found


def _commands() -> list[str]:
    """Child processes that this process started."""
    pid = os.getpid()
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    found = []
    for child in children:
        try:
            name, _, state = Path(f"/proc/{child}/stat").read_text().rpartition(")")
            words = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if state.split()[0] != "Z":
            # Without words in the middle of execve(2).
            text = words.decode(errors="replace").strip() or name.partition("(")[2]
            found.append(f"the running command {text[:60]!r} (process {child})")
    return found


def _shortened(names: list[str]) -> list[str]:
    if len(names) <= _LISTS:
        return names
    return [*names[:_LISTS], f"{len(names) - _LISTS} more of this kind"]
