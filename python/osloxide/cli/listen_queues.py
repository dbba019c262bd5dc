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

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LISTENS = "0A"
"""``TCP_LISTEN`` in the column ``st``."""
_ACCEPTS = 0x10000
"""``__SO_ACCEPTCON`` in the column ``Flags`` of a unix socket."""
_NO_INODE = "0"


@dataclass(frozen=True)
class ListenQueue:
    """The sockets on which processes listen at one address: one, or several by ``SO_REUSEPORT``.

    :param address: ``127.0.0.1:8774``, ``[::]:8774``, the path of a unix socket, or its abstract
        name behind an ``@``.
    :param waiting: connections that the kernel has made and no process has accepted yet.
    """

    address: str
    waiting: int


def shown(host: str, port: int) -> str:
    """An address as :class:`ListenQueue` has it; of a unix socket *host* is the path, *port* 0."""
    if not port:
        return host.replace("\0", "@", 1)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def of(supervisor: int, workers: Iterable[int]) -> tuple[ListenQueue, ...]:
    """The queues of *supervisor*, or where it has no sockets for workers to share, of *workers*.

    Empty where none listens, all have ended, or none may be read.
    """
    if own := _of([supervisor]):
        return own
    return _of(workers)


def _of(pids: Iterable[int]) -> tuple[ListenQueue, ...]:
    found: dict[str, ListenQueue] = {}
    for pid in pids:
        process = Path(f"/proc/{pid}")
        listening = {**dict(_tcp(process)), **_unix(process)}
        if listening:
            found.update((inode, listening[inode]) for inode in _inodes(process, listening))
    waiting: Counter[str] = Counter()
    for queue in found.values():
        waiting[queue.address] += queue.waiting
    return tuple(ListenQueue(address, waiting[address]) for address in sorted(waiting))


def _tcp(process: Path) -> Iterator[tuple[str, ListenQueue]]:
    """By inode; all of the network namespace of *process*."""
    for family, name in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for row in _rows(process / "net" / name):
            if row[3] != _LISTENS:
                break  # of the connections behind there may be very many
            host, _, port = row[1].partition(":")
            address = shown(_host(family, host), int(port, 16))
            yield row[9], ListenQueue(address, int(row[4].partition(":")[2], 16))


def _host(family: int, text: str) -> str:
    """*text* has words of 32 bits as the processor keeps them."""
    words = struct.iter_unpack(">I", bytes.fromhex(text))
    return socket.inet_ntop(family, b"".join(struct.pack("=I", word) for (word,) in words))


def _unix(process: Path) -> dict[str, ListenQueue]:
    named = [row for row in _rows(process / "net" / "unix") if len(row) > 7]
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


def _inodes(process: Path, wanted: Iterable[str]) -> list[str]:
    """Those of *wanted* that *process* has open."""
    names = {f"socket:[{inode}]": inode for inode in wanted}
    found = set()
    try:
        with os.scandir(process / "fd") as descriptors:
            for descriptor in descriptors:
                try:
                    found.add(os.readlink(descriptor.path))
                except OSError:
                    continue  # it was closed just now
    except OSError:
        return []  # it ended, or belongs to another user
    return [inode for name, inode in names.items() if name in found]
