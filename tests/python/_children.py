"""Child interpreters for tests that need a process of their own.

Owns starting them with a clean environment, a deadline and no terminal. Every child leads its own
session, so that a test can prove that nothing of it is left.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

from procfs import session_members

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEADLINE = 60.0
"""Seconds after which a child counts as hung."""
ENDING = 5.0
"""Seconds that processes get which end by themselves once the child has."""

_OURS = ("OSLOXIDE", "OSLO_", "PYTHON", "NOTIFY_SOCKET", "OS_")


def environment(**changes: str) -> dict[str, str]:
    """The environment of this process without anything that switches osloxide on or off."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    environ["PYTHONDONTWRITEBYTECODE"] = "1"
    environ.update(changes)
    return environ


def run_command(
    command: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run *command* to its end and prove that its whole session ended with it."""
    child = subprocess.Popen(
        command,
        env=environment() if environ is None else dict(environ),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = child.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        stdout, stderr = child.communicate()
        raise AssertionError(
            f"{command} still ran after {DEADLINE} s\n{stdout}\n{stderr}"
        ) from None
    # Pipes are closed before a process counts as ended, and multiprocessing's resource tracker ends
    # by the end of its parent: who is on the way out is not left behind.
    deadline = time.monotonic() + ENDING
    while (left := session_members(child.pid)) and time.monotonic() < deadline:
        time.sleep(0.005)
    if left:
        os.killpg(child.pid, signal.SIGKILL)
    assert not left, f"{command} left processes {left} behind\n{stdout}\n{stderr}"
    return subprocess.CompletedProcess(command, child.returncode, stdout, stderr)


def run_python(code: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run *code* in a fresh interpreter; *changes* are environment variables."""
    return run_command(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        environ=environment(**changes),
    )


def told_by_python(code: str, *arguments: str) -> Any:
    """What *code* prints last, as JSON; it runs in a fresh interpreter, and must not fail."""
    done = run_python(code, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
