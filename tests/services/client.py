"""Single requests over plain sockets, for tests that decide when each byte moves."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from dataclasses import dataclass

from services.load import PID_HEADER


def get(port: int, path: str = "/", timeout: float = 20) -> tuple[int, int, bytes]:
    """One GET on a connection of its own; returns status, worker pid and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read()
        return response.status, int(response.headers.get(PID_HEADER) or 0), body
    finally:
        connection.close()


class KeepAlive:
    """A keep-alive connection that stays open until closed."""

    def __init__(self, port: int, timeout: float = 20) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def get(self, path: str = "/") -> int:
        """One GET; returns the pid of the worker that answered 200."""
        self._connection.request("GET", path)
        response = self._connection.getresponse()
        response.read()
        assert response.status == 200, response.status
        return int(response.headers[PID_HEADER])

    def close(self) -> None:
        self._connection.close()


@dataclass
class Outcome:
    """How a held request ended; ``status`` 0 with ``error`` set when there was no answer."""

    status: int = 0
    error: str = ""
    took: float = 0.0


class Held:
    """Requests sent from threads of their own, awaited together."""

    def __init__(self, port: int, path: str, count: int, timeout: float = 60) -> None:
        self.outcomes = [Outcome() for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._send, args=(port, path, timeout, outcome), daemon=True)
            for outcome in self.outcomes
        ]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _send(port: int, path: str, timeout: float, outcome: Outcome) -> None:
        begin = time.monotonic()
        try:
            outcome.status, _, _ = get(port, path, timeout)
        except (OSError, http.client.HTTPException) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        outcome.took = time.monotonic() - begin

    def wait(self, within: float = 60) -> list[Outcome]:
        deadline = time.monotonic() + within
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), f"a request is neither answered nor refused {within} s on"
        return self.outcomes

    def statuses(self, within: float = 60) -> list[int | str]:
        return [outcome.status or outcome.error for outcome in self.wait(within)]


def queue_request(port: int, path: str = "/", timeout: float = 20) -> socket.socket:
    """Connect and send a request without reading the answer."""
    connection = socket.create_connection(("127.0.0.1", port), timeout)
    connection.sendall(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the peer closes, then close too."""
    with connection:
        chunks = []
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    return b"".join(chunks)
