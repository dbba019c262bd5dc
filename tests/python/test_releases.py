"""Releases of oslo libraries that an environment of other years keeps when osloxide is installed.

Each is taken from PyPI, unmodified, and set before what these tests have themselves. It needs the
network, so ``OSLOXIDE_LONG=1`` runs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from _children import environment

pytestmark = [
    pytest.mark.skipif(os.environ.get("OSLOXIDE_LONG") != "1", reason="OSLOXIDE_LONG=1 runs it"),
    pytest.mark.timeout(300),
]

APPS = Path(__file__).parent / "apps"
MESSAGING = ["12.13.0", "14.0.0", "14.2.0", "14.4.0", "14.7.0", "14.9.0", "16.1.0"]

Run = Callable[..., str]

FORK = """
import logging, os
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
import eventlet
from oslo_config import cfg
from oslo_log import log

log.register_options(cfg.CONF)
cfg.CONF([], project="releases")
log.setup(cfg.CONF, "releases")
handler = logging.StreamHandler()
print(type(handler.lock).__name__)

from osloxide.launch import forking

with forking.logging_paused():
    child = os.fork()
if child == 0:
    handler.acquire()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs Python with a release of a library; returns what it prints."""
    folders: dict[str, Path] = {}

    def run(requirement: str, *arguments: str) -> str:
        if requirement not in folders:
            folders[requirement] = tmp_path_factory.mktemp("release")
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
            target = ["--no-deps", "--target", str(folders[requirement])]
            subprocess.run([*pip, *target, requirement], check=True)
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**environment(), "PYTHONPATH": str(folders[requirement])},
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("url", ["kombu+memory://", "osloxide+memory://"])
@pytest.mark.parametrize("release", MESSAGING)
def test_calls_are_answered_with_a_release_of_oslo_messaging(
    run: Run, release: str, url: str
) -> None:
    said = run(f"oslo.messaging=={release}", str(APPS / "rpc_release.py"), url)
    assert said.split() == [release, "called", "monitored", "ValueError"]


def test_a_worker_is_forked_beside_an_oslo_log_that_has_locks_of_its_own(run: Run) -> None:
    assert run("oslo.log==5.1.0", "-c", FORK).split() == ["RLock", "7"]
