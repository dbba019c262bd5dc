"""A wire between a service and its broker, which tests may hold up or cut.

Owns connections and bytes; knows nothing of what they say. The kernel's buffers are part of the
wire: what a side has written into a wire that is held counts as sent, as it would anywhere.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading


class Pair:
    """One connection through the wire."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self._ends = near, far
        #: Set while bytes pass: towards the far end, and back.
        self.there, self.back = threading.Event(), threading.Event()
        for gate in (self.there, self.back):
            gate.set()
        self._threads = [
            threading.Thread(target=self._carry, args=way, daemon=True)
            for way in ((near, far, self.there), (far, near, self.back))
        ]
        for thread in self._threads:
            thread.start()

    def _carry(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while True:
                # Waits before it reads, so that a held wire fills up; a piece may be under way.
                gate.wait()
                data = source.recv(65536)
                gate.wait()
                if not data:
                    break
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def hold(self) -> None:
        """Let nothing pass."""
        self.there.clear()
        self.back.clear()

    def cut(self) -> None:
        """Reset both ends at once; what is under way is lost."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RD)
        # What was held has nowhere to go: the ends are closed before anybody wakes up.
        for end in self._ends:
            end.close()
        for gate in (self.there, self.back):
            gate.set()
        for thread in self._threads:
            thread.join()


class Wire:
    """Listens on a port of its own and passes on to *port*."""

    def __init__(self, port: int) -> None:
        self._far = port
        # Bound and never listening: the port stays this wire's while it refuses connections.
        self._keeper = socket.socket()
        self._keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._keeper.bind(("127.0.0.1", 0))
        self.port: int = self._keeper.getsockname()[1]
        #: In the order of their beginning.
        self.pairs: list[Pair] = []
        self._is_hung = False
        self._listen()

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                pair = Pair(near, socket.create_connection(("127.0.0.1", self._far)))
                if self._is_hung:
                    pair.hold()
                self.pairs.append(pair)

    def _cut(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for pair in self.pairs:
            pair.cut()
        self.pairs.clear()

    def break_down(self, *, is_hung: bool = False) -> None:
        """Cut everything, and refuse connections from now on; or take them and be silent."""
        self._cut()
        self._is_hung = is_hung
        if is_hung:
            self._listen()

    def mend(self) -> None:
        """End what :meth:`break_down` has begun; nothing where it has not."""
        if self._is_hung:
            self._cut()
            self._is_hung = False
        if self._listener.fileno() < 0:
            self._listen()

    def close(self) -> None:
        """Cut everything."""
        if self._listener.fileno() >= 0:
            self._cut()
        self._keeper.close()
