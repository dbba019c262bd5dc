"""Telling systemd that the service is ready or stopping.

Owns the one datagram socket address that systemd hands to the main process; workers and commands
that the application starts never get it. Never raises: a service works without systemd.

Rules: sd_notify(3); oslo_service.systemd.notify_once (oslo.service 4.8), which takes NOTIFY_SOCKET
out of the environment once readiness was told.
"""

from __future__ import annotations

import logging
import os
import socket

LOG = logging.getLogger(__name__)

_VARIABLE = "NOTIFY_SOCKET"


def forget() -> None:
    """Keep a forked worker, and what it starts, from talking to systemd."""
    os.environ.pop(_VARIABLE, None)


class ServiceManager:
    """The service manager of this process, if there is one."""

    def __init__(self) -> None:
        self._address = ""
        self._is_ready = False

    def ready(self) -> None:
        """Tell that the service serves; only the first call does anything."""
        if self._is_ready:
            return
        self._is_ready = True
        self._address = os.environ.get(_VARIABLE, "")
        if self._tell(b"READY=1"):
            forget()

    def stopping(self) -> None:
        """Tell that the service is on its way out, if readiness was told before."""
        if self._is_ready:
            self._tell(b"STOPPING=1")

    def _tell(self, message: bytes) -> bool:
        if not self._address:
            return False
        # A leading @ means the abstract namespace.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.connect(address)
                sock.sendall(message)
        except OSError:
            LOG.debug("Systemd notification failed", exc_info=True)
            return False
        return True
