"""Listening sockets: bound so that a mistake is found at once and said in the operator's words.

Owns binding, for TCP and for unix sockets, and the errors of it; accepts nothing. Called by
:mod:`osloxide.wsgi`. Differs from what ``eventlet.listen`` did for oslo.service on purpose: no
SO_REUSEPORT, so that a second process on one port fails instead of sharing its load, and an
abandoned unix socket is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator

_TCP_REMEDIES = {
    errno.EADDRINUSE: "another process listens there; stop it or configure another port",
    errno.EACCES: "ports below 1024 need a privilege; configure another port",
    errno.EADDRNOTAVAIL: "this host has no such address; configure one that it has",
}
_UNIX_REMEDIES = {
    errno.EADDRINUSE: "another process listens there, or the path is not a socket; "
    "stop it or configure another path",
    errno.EACCES: "the directory cannot be written to; change its owner or configure another path",
    errno.ENOENT: "the directory does not exist; create it or configure another path",
}

_LONGEST_LOCK = 2.0
"""Seconds; looking, binding and listening take well below a millisecond."""


def listen_tcp(name: str, host: str, port: int, backlog: int) -> socket.socket:
    """Listen on the first address that *host* resolves to.

    :param name: who wants to listen, for the error.
    :param port: 0 lets the kernel choose.
    :param backlog: length of the kernel's queue of connections that wait to be accepted.
    :raises ValueError: *port* is out of range.
    :raises OSError: names *name*, *host*, *port*, the problem and the remedy; ``socket.gaierror``
        when *host* cannot be resolved.
    """
    # Names of services are looked up. getaddrinfo() would take 70000 for 4464.
    number = int(port) if str(port).lstrip("-").isdigit() else 0
    if not 0 <= number <= 65535:
        raise ValueError(f"{name} cannot listen on port {port}; configure one from 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, socket.AF_UNSPEC, socket.SOCK_STREAM, 0, socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise _explained(error, f"{name} cannot listen on {host}:{port}", _TCP_REMEDIES) from None
    except UnicodeError:
        # What socket.getaddrinfo() says of a label that is empty or longer than 63 bytes.
        raise ValueError(
            f"{name} cannot listen on {host}:{port}: no host has such a name; check the configured "
            "address"
        ) from None
    return listener


def listen_unix(name: str, path: str, mode: int | None, backlog: int) -> socket.socket:
    """Listen on *path*; a socket left there by a process that is gone is replaced.

    A *path* that begins with a NUL is an abstract name (unix(7)): there is no file, and nothing is
    left of it once no process listens.

    :param name: who wants to listen, for the error.
    :param mode: permissions of the socket, or ``None`` to leave them to the umask.
    :param backlog: length of the kernel's queue of connections that wait to be accepted.
    :raises ValueError: an abstract name was given a mode.
    :raises OSError: names *name*, *path*, the problem and the remedy.
    """
    shown = path.replace("\0", "@", 1)
    if path.startswith("\0") and mode is not None:
        raise ValueError(
            f"{name} cannot give {shown} the mode {mode:o}: it is no file; leave the mode out"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.nullcontext() if path.startswith("\0") else _alone_in_directory(path):
            try:
                listener.bind(path)
            except OSError as error:
                is_taken = path.startswith("\0") or not _is_abandoned(path)
                if error.errno != errno.EADDRINUSE or is_taken:
                    raise
                os.unlink(path)
                listener.bind(path)
            # No client can connect before listen(), so the mode is never too wide.
            if mode is not None:
                os.chmod(path, mode)
            listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise _explained(error, f"{name} cannot listen on {shown}", _UNIX_REMEDIES) from None
    return listener


def address_of(listener: socket.socket) -> tuple[str, int]:
    """Host and port of *listener*; for a unix socket its path (abstract: NUL in front) and 0."""
    name = listener.getsockname()
    if isinstance(name, tuple):
        return name[0], name[1]
    return (name.decode(errors="surrogateescape") if isinstance(name, bytes) else name), 0


def _explained(error: OSError, what: str, remedies: dict[int, str]) -> OSError:
    """Say what was tried and what helps; type and errno of *error* stay."""
    remedy = remedies.get(error.errno or 0, "check the configured address")
    return type(error)(error.errno, f"{what}: {error.strerror or error}; {remedy}")


@contextlib.contextmanager
def _alone_in_directory(path: str) -> Iterator[None]:
    """Let one process at a time look at the socket *path*, replace it and listen.

    A socket between bind() and listen() looks abandoned, as does one that another start is about to
    replace. The lock is that of the directory, so that no file of its own is left behind.
    """
    try:
        directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        # One may listen in a directory that one may not read, or that does not exist: bind() tells.
        yield
        return
    try:
        # A program that keeps systemd-tmpfiles away from the directory holds this lock for long.
        end = time.monotonic() + _LONGEST_LOCK
        while not _is_locked(directory) and time.monotonic() < end:
            time.sleep(0.01)
        yield
    finally:
        os.close(directory)


def _is_locked(directory: int) -> bool:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: two starts at once may meet
    return True


def _is_abandoned(path: str) -> bool:
    """Tell whether *path* is a socket without a listener."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog must not block: it means that a process listens
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
