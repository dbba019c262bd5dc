"""A service that is one RPC server: what nova-conductor is, without nova.

Owns its life. The programs here say which server that is, and what happens then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oslo_service import service


class Served(service.Service):
    """Made by *make* where the service starts: in its worker, if it has one."""

    def __init__(self, make: Callable[[], Any], then: Callable[[], object]) -> None:
        super().__init__()
        self._make, self._then = make, then
        self._server: Any = None

    def start(self) -> None:
        self._server = self._make()
        self._server.start()
        self._then()

    def stop(self, graceful: bool = False) -> None:
        self._server.stop()
        super().stop(graceful)

    def wait(self) -> None:
        self._server.wait()
        super().wait()
