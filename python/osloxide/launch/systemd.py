"""Telling systemd how the service is: ready, reloading, stopping, alive.

Owns the datagram socket address and the watchdog interval that systemd hands to the main process;
workers and commands that the application starts never get either. Decides no moment: launchers do.
Never raises: a service works without systemd.

Rules: sd_notify(3), sd_watchdog_enabled(3), systemd.service(5) (Type=notify-reload);
oslo_service.systemd.notify_once (oslo.service 4.8), which takes NOTIFY_SOCKET out of the
environment once readiness was told.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

from osloxide.signals import careful_log

LOG = careful_log.logger(__name__)

_SOCKET = "NOTIFY_SOCKET"
RETRY = 0.25
"""Seconds until a message is sent again for which the socket of systemd had no room."""

_WATCHDOG = ("WATCHDOG_USEC", "WATCHDOG_PID")


def forget() -> None:
    """Keep a forked worker, and what it starts, from talking to systemd."""
    for variable in (_SOCKET, *_WATCHDOG):
        os.environ.pop(variable, None)


class Notifier:
    """The service manager of this process, if there is one."""

    def __init__(self) -> None:
        self._address = ""
        self._is_ready = False
        self._is_reloading = False
        self._unsent: list[str] = []
        self.watchdog_interval = 0.0
        """Seconds after which :meth:`alive` is to be called again: half of what systemd allows. 0,
        until readiness was told and where no watchdog is configured, is never."""

    def ready(self) -> None:
        """Tell that the service serves; only the first call does anything."""
        if self._is_ready:
            return
        self._is_ready = True
        self._address = os.environ.get(_SOCKET, "")
        interval = _watchdog_seconds() / 2
        if self._tell(f"READY=1\nMAINPID={os.getpid()}"):
            self.watchdog_interval = interval
            forget()

    def reloading(self) -> None:
        """Tell that the configuration is being read again."""
        if self._is_ready:
            self._is_reloading = True
            microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            self._tell(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def reloaded(self) -> None:
        """Tell that this is over, whether or not the new configuration could be used."""
        if self._is_reloading:
            self._is_reloading = False
            self._tell("READY=1")

    def pulse(self) -> float:
        """Tell the watchdog that the service is alive, and what systemd had no room for before.

        :returns: seconds until the next call; 0 is never.
        """
        self._send_again()
        if self.watchdog_interval:
            self._send("WATCHDOG=1")
        if self._unsent:
            return min(RETRY, self.watchdog_interval or RETRY)
        return self.watchdog_interval

    def _send_again(self) -> None:
        while self._unsent and self._send(self._unsent[0]) is not None:
            del self._unsent[0]

    def stopping(self) -> None:
        """Tell that the service is on its way out, if readiness was told before."""
        if self._is_ready:
            self._is_reloading = False
            self._tell("STOPPING=1")

    def _tell(self, message: str) -> bool:
        """Send *message*, in order; one that finds no room is sent again by :meth:`pulse`."""
        self._send_again()
        if self._unsent or (sent := self._send(message)) is None:
            self._unsent.append(message)
            return True
        return sent

    def _send(self, message: str) -> bool | None:
        """Whether systemd got it; None when it has no room now."""
        if not self._address:
            return False
        # A leading @ means the abstract namespace.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.connect(address)
                sock.sendall(message.encode())
        except BlockingIOError:
            return None
        except OSError:
            LOG.debug("Systemd notification failed", exc_info=True)
            return False
        return True


def _watchdog_seconds() -> float:
    """How often systemd wants to hear of this process, in seconds; 0 is never."""
    microseconds, pid = (os.environ.get(variable, "") for variable in _WATCHDOG)
    if pid not in ("", str(os.getpid())):
        return 0.0  # meant for another process
    with contextlib.suppress(ValueError):
        return max(int(microseconds), 0) / 1e6
    return 0.0
