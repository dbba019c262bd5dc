"""What is under test: osloxide, or stock oslo.service as the control that proves the checks.

``OSLOXIDE_SUBJECT=native`` lets the services, and the clients for which no test says otherwise, do
RPC over RabbitMQ without kombu. ``OSLOXIDE_SUBJECT=stock`` runs every test of this directory
against oslo.service on eventlet. Its known failures are the evidence that a check can fail; no test
behaves differently on it otherwise.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
APPS = Path(__file__).resolve().parent / "apps"

SUBJECT = os.environ.get("OSLOXIDE_SUBJECT", "osloxide")
if SUBJECT not in ("osloxide", "native", "stock"):
    raise ValueError(f"OSLOXIDE_SUBJECT={SUBJECT!r}: must be 'osloxide', 'native' or 'stock'")

IS_STOCK = SUBJECT == "stock"
IS_NATIVE = SUBJECT == "native"
# Seconds of the long runs: 15 in everyday runs, 60 with OSLOXIDE_LONG=1.
IS_LONG = os.environ.get("OSLOXIDE_LONG") == "1"
LONG_RUN_SECONDS = 60 if IS_LONG else 15
# Seconds of a soak, which runs with OSLOXIDE_LONG=1 alone.
SOAK_SECONDS = float(os.environ.get("OSLOXIDE_SOAK_SECONDS", "3600"))
# Seconds between two requests of a connection there: a long soak beside other work.
SOAK_PAUSE = float(os.environ.get("OSLOXIDE_SOAK_PAUSE", "0"))


def small_service_command(config: Path) -> list[str]:
    """The command line of the small WSGI service."""
    flags = ["--stock"] if IS_STOCK else []
    return [sys.executable, str(APPS / "small.py"), *flags, "--config-file", str(config)]


def clean_environment() -> dict[str, str]:
    """This process's environment without what would steer oslo.service, osloxide or coverage."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OS_", "OSLO", "PYTHON", "PYTEST", "COV_"))
    }
    if IS_NATIVE:
        variables["OSLOXIDE_NATIVE_RPC"] = "1"
    return variables


def run_under_subject(command: list[str], launcher: list[str]) -> list[str]:
    """*command*, an unmodified console script, as the subject runs it.

    :param launcher: how to call the ``osloxide`` program of that environment.
    """
    return command if IS_STOCK else [*launcher, "run", *command]
