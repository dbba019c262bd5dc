"""Listening sockets that this process inherits: from systemd, a shell, a test.

Owns the protocol of sd_listen_fds(3) and the check that a descriptor is what it should be. Accepts
nothing. The variables of the protocol are removed once they were read, so that no child takes the
same sockets for its own.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from osloxide.cli.errors import CommandError
from osloxide.server.numbers import whole_number

if TYPE_CHECKING:
    from collections.abc import MutableMapping

FIRST = 3
"""The descriptor of the first socket that systemd passes."""

_MOST = 10**7 - 1
"""Sockets: a process has a million descriptors at most, unless root says more."""

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def passed_by_systemd(environ: MutableMapping[str, str]) -> list[tuple[int, str]]:
    """Descriptor and name of each socket that systemd passed to this process.

    :returns: nothing when there are none, or when they were meant for another process.
    :raises CommandError: the variables contradict each other.
    """
    values = {name: environ.pop(name, "") for name in _VARIABLES}
    if values["LISTEN_PID"] != str(os.getpid()):
        return []
    given = values["LISTEN_FDS"]
    count = whole_number(given, _MOST)
    if count is None:
        raise CommandError(f"LISTEN_FDS={given!r} is no number of sockets; let systemd set it")
    names = values["LISTEN_FDNAMES"].split(":") if values["LISTEN_FDNAMES"] else []
    if names and len(names) != count:
        raise CommandError(
            f"LISTEN_FDNAMES names {len(names)} sockets, LISTEN_FDS says {count}; let systemd "
            "set both"
        )
    names += [""] * (count - len(names))
    return [(FIRST + index, name) for index, name in enumerate(names)]


def find(name: str, passed: list[tuple[int, str]]) -> list[int]:
    """The descriptors that ``fd://NAME`` means: a number, or a name that systemd gave.

    :raises CommandError: nothing has that name.
    """
    if name.isascii() and name.isdigit():
        return [int(name)]
    found = [descriptor for descriptor, given in passed if given == name]
    if not found:
        known = ", ".join(sorted({given for _, given in passed if given})) or "none"
        raise CommandError(
            f"fd://{name}: no inherited socket has that name (known: {known}); set "
            "FileDescriptorName= of the systemd socket, or give a number"
        )
    return found


def from_fd(descriptor: int) -> socket.socket:
    """Take over a listening socket.

    :raises CommandError: the descriptor is not open, or no socket that listens.
    """
    remedy = "pass a listening TCP or unix stream socket"
    try:
        listener = socket.socket(fileno=descriptor)
    except OSError as error:
        reason = "is not open" if error.errno == errno.EBADF else "is no socket"
        raise CommandError(f"fd://{descriptor} {reason}; {remedy}") from error
    is_stream = listener.type == socket.SOCK_STREAM
    if not is_stream or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()
        raise CommandError(f"fd://{descriptor} does not listen; {remedy}")
    listener.set_inheritable(False)
    return listener
