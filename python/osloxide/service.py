"""Services and launchers under oslo.service's names, for ``from osloxide import service``.

Owns nothing: the names are those of the threading flavour (osloxide.backends.threading), with any
backend oslo.service itself has selected in this process. ``ServiceBase`` is oslo.service's own, so
that services of other libraries are accepted. Importing this module puts the import hook into
place, unless oslo.service's own backends are in use already.

Rules: oslo_service.service (oslo.service 4.8).
"""

from __future__ import annotations

import copy
from typing import Any

from oslo_service import _options

from osloxide.activation import import_hook
from osloxide.backends.threading.service import (
    Launcher,
    ProcessLauncher,
    Service,
    ServiceBase,
    ServiceLauncher,
    Services,
    ServiceWrapper,
    SignalExit,
    SignalHandler,
    Singleton,
    launch,
)
from osloxide.signals.signal_handler import is_daemon as _is_daemon
from osloxide.signals.signal_handler import is_sighup_and_daemon as _is_sighup_and_daemon

import_hook.install_if_possible()

__all__ = [
    "Launcher",
    "ProcessLauncher",
    "Service",
    "ServiceBase",
    "ServiceLauncher",
    "ServiceWrapper",
    "Services",
    "SignalExit",
    "SignalHandler",
    "Singleton",
    "_is_daemon",
    "_is_sighup_and_daemon",
    "launch",
    "list_opts",
]


def list_opts() -> list[tuple[str | None, list[Any]]]:
    """List the options, as oslo-config-generator asks for them."""
    return [(None, copy.deepcopy(_options.eventlet_backdoor_opts + _options.service_opts))]
