"""Waking a thread that sleeps on sockets.

Owns one eventfd. Never reads from the sockets that it waits for.
Rules: eventfd(2), poll(2).
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterable
from typing import Any


class Wakeup:
    """Wakes the thread that sleeps on a socket. Never blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = True  # until there is something to close
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = False

    def wake(self) -> None:
        """End the wait that goes on, or the next one. From any thread; nothing once closed."""
        with self._lock:
            if not self._closed:
                os.eventfd_write(self._fd, 1)

    def wait(self, sockets: Iterable[Any], timeout: float) -> bool:
        """Sleep until :meth:`wake` is called or one of *sockets* is readable.

        :param timeout: in seconds.
        :returns: False when time has passed and nothing else happened.
        """
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        for sock in sockets:
            if sock is not None and sock.fileno() >= 0:
                # TLS may hold bytes that the kernel no longer shows.
                if getattr(sock, "pending", int)():
                    return True
                poll.register(sock.fileno(), select.POLLIN)
        ready = poll.poll(timeout * 1000)
        for fd, _ in ready:
            if fd == self._fd:
                os.eventfd_read(self._fd)
        return bool(ready)

    def close(self) -> None:
        """Give the descriptor back. While no thread waits."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._fd)

    def __del__(self) -> None:
        # Where what would have closed it could not be set up: a queue was refused, for one.
        self.close()
