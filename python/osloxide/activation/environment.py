"""The environment that makes every Python below a process serve oslo.service from osloxide.

Owns the variables and the private directory that ``osloxide run`` and the test plugin use. It reads
nothing but the mapping it is given and starts nothing.

Rules: site (sitecustomize), PYTHONPATH; the switches are read by the OpenStack services themselves.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from osloxide.exceptions import ActivationError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENABLED = "OSLOXIDE"
"""``1`` activates the hook in the interpreters below, ``0`` keeps it out of them."""

TESTING = "OSLOXIDE_TESTING"
"""``1`` while a test suite runs: tolerates eventlet beside osloxide, and makes the WSGI server
accept what oslo.service's own tests send."""

NATIVE_RPC = "OSLOXIDE_NATIVE_RPC"
"""``1`` lets RPC and notifications over RabbitMQ do without kombu; ``0``, or unset, by it."""

EVENTLET_SWITCHES = tuple(
    f"OS_{project}_DISABLE_EVENTLET_PATCHING" for project in ("CINDER", "MANILA", "NOVA", "WATCHER")
)
"""Variables by which services that can do without eventlet are told to."""

SITECUSTOMIZE_DIR = str(Path(__file__).parent / "_sitecustomize")
"""Holds a sitecustomize that installs the hook and then runs the one it hides."""


def activated(environ: Mapping[str, str]) -> dict[str, str]:
    """A copy of *environ* in which Python interpreters install the hook when they start.

    Switches that are set already are left as they are, also with another value.
    """
    result = dict(environ)
    result[ENABLED] = "1"
    for switch in EVENTLET_SWITCHES:
        result.setdefault(switch, "1")
    # An empty entry means the current directory; an empty variable means nothing.
    path = result["PYTHONPATH"].split(os.pathsep) if result.get("PYTHONPATH") else []
    result["PYTHONPATH"] = os.pathsep.join(
        [SITECUSTOMIZE_DIR, *(entry for entry in path if entry != SITECUSTOMIZE_DIR)]
    )
    return result


def is_testing() -> bool:
    """Whether this process belongs to a test suite that runs on osloxide."""
    return os.environ.get(TESTING, "0") not in ("", "0")


def wants_native_rpc(environ: Mapping[str, str]) -> bool:
    """Whether RPC and notifications over RabbitMQ do without kombu.

    :raises ActivationError: the variable has another value than the two that it knows.
    """
    value = environ.get(NATIVE_RPC) or "0"
    if value not in ("0", "1"):
        raise ActivationError(
            f"{NATIVE_RPC} is {value!r}; set it to 1 (RPC over RabbitMQ goes natively) or "
            "to 0 (by kombu), or unset it"
        )
    return value == "1"


def keeps_eventlet(environ: Mapping[str, str]) -> list[str]:
    """Switches that the environment has set to a value by which their service keeps eventlet."""
    return [
        switch
        for switch in EVENTLET_SWITCHES
        if environ.get(switch, "1").lower() not in ("1", "true", "yes")
    ]
