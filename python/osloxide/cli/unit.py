"""What systemd's unit of this process says that the service cannot keep.

Owns one comparison: how long systemd waits at a stop, and how long requests may still run then.
Asks systemctl, once, and only where systemd started this process. Changes nothing.

Rules: systemd.exec(5) for ``INVOCATION_ID``, systemd.service(5) for ``TimeoutStopSec=``,
systemd.time(7) for what systemctl prints.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
from pathlib import Path

LOG = logging.getLogger("osloxide.serve")

_CGROUP = Path("/proc/self/cgroup")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_ANSWER_TIMEOUT = 2.0


def warn_of_short_stop(grace: float, cgroup: Path = _CGROUP) -> None:
    """Warn where systemd kills the service before its grace period is over.

    :param grace: seconds that requests may still run after SIGTERM; 0 is for ever.
    :param cgroup: where the unit's name is found.
    """
    if "INVOCATION_ID" not in os.environ:
        return
    try:
        groups = cgroup.read_text()
        found = re.findall(r"/([^/\n]+\.service)(?:/|$)", groups, re.MULTILINE)
        if not found:
            return
        manager = "--user" if re.search(r"/user@\d+\.service/", groups) else "--system"
        words = ["show", "--property=TimeoutStopUSec", "--value", "--", found[-1]]
        shown = subprocess.run(  # noqa: S603 - the unit's name is the kernel's word
            ["systemctl", manager, *words],  # noqa: S607
            capture_output=True, text=True, timeout=_ANSWER_TIMEOUT, check=True,
        )  # fmt: skip
        limit = seconds(shown.stdout.strip())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        LOG.debug("the unit's TimeoutStopSec is not known: %s", error)
        return
    if limit is not None and (grace == 0 or limit <= grace):
        LOG.warning(
            "%s has TimeoutStopSec=%g, and requests may run %s after a stop: systemd kills what is "
            "late without a word; set TimeoutStopSec=%s, or --graceful-timeout below it",
            found[-1],
            limit,
            f"for {grace:g} s" if grace else "for ever",
            f"{grace + 10:g}" if grace else "infinity",
        )


def seconds(text: str) -> float | None:
    """A time span as systemctl prints it, ``1min 30s``; None is ``infinity``.

    :raises ValueError: it is no time span.
    """
    if text == "infinity":
        return None
    total = 0.0
    for word in text.split():
        part = re.fullmatch(r"([\d.]+)([a-z]+)", word)
        if part is None or part[2] not in _UNITS:
            raise ValueError(f"{text!r} is no time span")
        total += float(part[1]) * _UNITS[part[2]]
    if not text.split():
        raise ValueError("systemctl names no time span")
    return total
