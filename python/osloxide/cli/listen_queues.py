"""What waits in the kernel to be accepted, at each socket on which processes listen.

Owns the way from a process to its listening sockets and their queues. Reads /proc alone: neither
the process nor its sockets notice, and one that hangs is told of like any other.

Rules: proc_pid_net(5). In ``tcp`` and ``tcp6``, whose rows begin with the sockets that listen, the
receive queue of such a one is what waits to be accepted (Linux, ``get_tcp4_sock()``). In ``unix``
each connection that waits is a socket of the listener's name without an inode.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from osloxide.cli.address import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_LISTENS = "0A"
"""``TCP_LISTEN`` in the column ``st``."""
_ACCEPTS = 0x10000
"""``__SO_ACCEPTCON`` in the column ``Flags`` of a unix socket."""
_NO_INODE = "0"


@dataclass(frozen=True)
class ListenQueue:
    """The sockets on which processes listen at one address: one, or several by ``SO_REUSEPORT``.

    :param address: as :func:`osloxide.cli.address.shown` writes it.
    :param waiting: connections that the kernel has made and no process has accepted yet.
    """

    address: str
    waiting: int


def of(supervisor: int, workers: Iterable[int]) -> tuple[ListenQueue, ...]:
    """The queues of *supervisor*, or where it has no sockets for workers to share, of *workers*.

    They share a network namespace. Empty where none listens, all have ended, or none may be read.
    """
    pids = [supervisor, *workers]
    listening = next(filter(None, map(_listening, pids)), {})
    own = _inodes(supervisor, listening) or {
        inode for pid in pids[1:] for inode in _inodes(pid, listening)
    }
    waiting: Counter[str] = Counter()
    for inode in own:
        waiting[listening[inode].address] += listening[inode].waiting
    return tuple(ListenQueue(address, waiting[address]) for address in sorted(waiting))


def _listening(pid: int) -> dict[str, ListenQueue]:
    """By inode: all sockets on which anything in the network namespace of *pid* listens."""
    tables = Path(f"/proc/{pid}/net")
    return {**dict(_tcp(tables)), **_unix(tables)}


def _tcp(tables: Path) -> Iterator[tuple[str, ListenQueue]]:
    for family, name in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for row in _rows(tables / name):
            if row[3] != _LISTENS:
                break  # of the connections behind there may be very many
            host, _, port = row[1].partition(":")
            address = shown(_host(family, host), int(port, 16))
            yield row[9], ListenQueue(address, int(row[4].partition(":")[2], 16))


def _host(family: int, text: str) -> str:
    """*text* has words of 32 bits as the processor keeps them."""
    words = struct.iter_unpack(">I", bytes.fromhex(text))
    return socket.inet_ntop(family, b"".join(struct.pack("=I", word) for (word,) in words))


def _unix(tables: Path) -> dict[str, ListenQueue]:
    named = [row for row in _rows(tables / "unix") if len(row) > 7]
    waiting = Counter(row[7] for row in named if row[6] == _NO_INODE)
    return {
        row[6]: ListenQueue(row[7], waiting[row[7]])
        for row in named
        if int(row[3], 16) & _ACCEPTS
    }  # fmt: skip


def _rows(table: Path) -> Iterator[list[str]]:
    """The columns of each line but the first, which has their names."""
    try:
        with table.open(encoding="utf-8", errors="surrogateescape") as lines:
            next(lines, None)
            # A path, the last column of `unix`, may have blanks.
            yield from (line.rstrip("\n").split(None, 7 if table.name == "unix" else -1)
                        for line in lines)  # fmt: skip
    except OSError:
        return  # the process has ended, or the kernel knows no such sockets


def _inodes(pid: int, listening: Mapping[str, ListenQueue]) -> set[str]:
    """Those of *listening* that the process has open."""
    found = set()
    try:
        with os.scandir(f"/proc/{pid}/fd") as descriptors:
            for descriptor in descriptors if listening else ():
                try:
                    kind, _, inode = os.readlink(descriptor.path).rstrip("]").partition(":[")
                except OSError:
                    continue  # it was closed just now
                if kind == "socket" and inode in listening:
                    found.add(inode)
    except OSError:
        return set()  # it ended, or belongs to another user
    return found
