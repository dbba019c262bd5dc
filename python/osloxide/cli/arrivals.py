"""What a command that runs for long waits for: signals, ends of processes, readable descriptors.

Owns one poll(2) over all of them, so nothing is polled for by looking again and again, and a signal
cannot arrive unseen between a check and the wait. Decides nothing.

Rules: signal.set_wakeup_fd, pidfd_open(2).
"""

from __future__ import annotations

import os
import select
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Arrived:
    """What one wait brought; everything empty when its time was over."""

    signals: frozenset[int]
    ended: frozenset[int]
    readable: frozenset[int]


class Arrivals:
    """Waits on the main thread; as a context it owns the dispositions of *signals*.

    :param signals: caught from now on; other signals keep their dispositions.
    """

    def __init__(self, signals: Iterable[int]) -> None:
        self._signals = tuple(signals)
        self._poll = select.poll()
        self._pidfds: dict[int, int] = {}

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._poll.register(self._reader, select.POLLIN)
        self._earlier_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # The handler itself has nothing to do: the byte on the wakeup fd is what counts.
        self._earlier = {number: signal.signal(number, _noted) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._earlier_fd)
        self._reader.close()
        self._writer.close()
        for pidfd in self._pidfds:
            os.close(pidfd)

    def add_process(self, pid: int) -> bool:
        """Report the end of *pid*; False when it has ended already."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        self._pidfds[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        return True

    def add(self, descriptor: int) -> None:
        """Report when *descriptor* can be read."""
        self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout: float | None = None) -> Arrived:
        """Wait for anything, at most *timeout* seconds; None = for ever."""
        events = self._poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
        signals: set[int] = set()
        ended: set[int] = set()
        readable: set[int] = set()
        for descriptor, _ in events:
            if descriptor == self._reader.fileno():
                signals.update(number for number in self._drain() if number in self._signals)
            elif descriptor in self._pidfds:
                ended.add(self._pidfds.pop(descriptor))
                self._poll.unregister(descriptor)
                os.close(descriptor)
            else:
                readable.add(descriptor)
        return Arrived(frozenset(signals), frozenset(ended), frozenset(readable))

    def _drain(self) -> bytes:
        try:
            return self._reader.recv(4096)
        except BlockingIOError:
            return b""


def _noted(_number: int, _frame: object) -> None:
    """Keep the default disposition from ending the process."""
