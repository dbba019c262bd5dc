"""The index by which ``osloxide status --ready NAME`` finds a launcher and looks at no other.

Owns a directory of each user and PID namespace in ``/dev/shm``, and an empty file there for each
scoreboard that this process has made: ``PID.DESCRIPTOR.NAME``. An entry is a hint and nothing more:
its reader looks at the scoreboard that it names, and at all processes where no entry holds. So a
launcher that cannot write one is found all the same, and one that was killed may leave it behind.

Rules: tmpfs(5), pid_namespaces(7). osloxide.cli.ready reads what is written here, by itself.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import stat
from collections.abc import Iterator

LOG = logging.getLogger(__name__)

_ROOT = "/dev/shm"  # noqa: S108 - what lies there is a hint that is checked
_NAME_BYTES = 128

_own: dict[bytes, int] = {}
"""Paths of the entries of this process, and the process."""


def enter(name: str, descriptor: int) -> None:
    """Enter this process under *name*.

    The end of the interpreter removes the entry; a process that a signal or ``os._exit()`` ended
    leaves it to the next launcher of its user and PID namespace.

    :param descriptor: of the scoreboard.
    """
    _enter(entry(os.getpid(), descriptor, name))


@contextlib.contextmanager
def another_user() -> Iterator[None]:
    """Around a change of this process's user: its entries move to the directory of the new one."""
    names = [os.path.basename(path) for path, pid in _own.items() if pid == os.getpid()]
    _leave()
    _own.clear()
    try:
        yield
    finally:
        for name in names:
            _enter(name)


def _enter(name_there: bytes) -> None:
    try:
        try:
            path = _write(name_there)
        except FileNotFoundError:
            # Another launcher left and took the blank directory away.
            path = _write(name_there)
    except OSError as error:
        LOG.debug("probes look for this process among all others: %s", error)
        return
    atexit.unregister(_leave)
    atexit.register(_leave)
    _own[path] = os.getpid()


def _write(name: bytes) -> bytes:
    """Write an entry; returns its path.

    :raises OSError: it cannot be written.
    """
    directory = _directory()
    _tidy(directory)
    path = directory + b"/" + name
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    return path


def entry(pid: int, descriptor: int, name: str) -> bytes:
    """The name of an entry."""
    text = name.encode("utf-8", "surrogateescape")[:_NAME_BYTES]
    return b"%d.%d." % (pid, descriptor) + text.replace(b"/", b"%").replace(b"\0", b"%")


def _directory() -> bytes:
    """Where this user's launchers of this PID namespace are entered.

    :raises OSError: it cannot be made, or is not this user's alone.
    """
    namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    path = os.fsencode(f"{_ROOT}/osloxide-{os.geteuid()}-{namespace}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise OSError(f"{os.fsdecode(path)} is not a directory of this user alone")
    return path


def _tidy(directory: bytes) -> None:
    """Remove what processes left that were killed, and what this one was before execve(2)."""
    for found in os.listdir(directory):
        pid = found.partition(b".")[0]
        if not pid.isdigit():
            continue
        path = directory + b"/" + found
        is_former = int(pid) == os.getpid() and _own.get(path) != os.getpid()
        if is_former or not os.path.exists(b"/proc/" + pid):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _leave() -> None:
    """Remove the entries of this process, and the directory with the last one."""
    for path, pid in _own.items():
        # A worker has the functions of its parent.
        if pid == os.getpid():
            with contextlib.suppress(OSError):
                os.unlink(path)
                # Each PID namespace has its own; it stays where others are entered.
                os.rmdir(os.path.dirname(path))
