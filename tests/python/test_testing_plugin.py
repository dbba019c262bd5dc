"""The pytest plugin: suites run on osloxide, and so do the processes that they start."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from _children import environment, run_command


@pytest.fixture
def suite(tmp_path: Path):
    """Runs pytest with the plugin on a test module given as text."""

    def run(text: str, *options: str, **changes: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "test_suite.py"
        path.write_text(text)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        return run_command(
            [*command, "-p", "osloxide.testing.plugin", "-c", "/dev/null", *options, str(path)],
            environ=environment(**changes),
            cwd=tmp_path,
        )

    return run


def test_hook_is_installed_before_test_modules_are_imported(suite) -> None:
    result = suite("""
from oslo_service import service, wsgi
import osloxide.wsgi

def test_it():
    assert service.ProcessLauncher.__module__ == "osloxide.backends.threading.service"
    assert wsgi is osloxide.wsgi
""")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("kind", ["eventlet", "threading"])
def test_a_backend_type_can_be_selected(suite, kind: str) -> None:
    result = suite(
        f"""
from oslo_service import backend, service

def test_it():
    assert backend.get_backend_type().value == "{kind}"
    assert service.launch.__module__ == "osloxide.backends.{kind}.service"
""",
        f"--osloxide-backend={kind}",
    )
    assert result.returncode == 0, result.stdout


def test_an_unknown_backend_type_is_a_usage_error(suite) -> None:
    result = suite("", "--osloxide-backend=gevent")
    assert result.returncode == 4
    assert "invalid choice: 'gevent'" in result.stderr


def test_processes_that_tests_start_have_the_hook(suite) -> None:
    result = suite("""
import subprocess, sys

def test_it():
    code = "import oslo_service.wsgi as w; print(w.__name__)"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"osloxide.wsgi\\n"
""")
    assert result.returncode == 0, result.stdout


def test_tests_may_monkey_patch(suite) -> None:
    pytest.importorskip("eventlet")
    result = suite("""
import eventlet
eventlet.monkey_patch()
from oslo_service import service

def test_it():
    assert service.launch.__module__.startswith("osloxide.")
""")
    assert result.returncode == 0, result.stdout


def test_suites_that_turn_warnings_into_errors_are_not_disturbed(suite) -> None:
    result = suite("def test_it(): pass", "-W", "error")
    assert result.returncode == 0, result.stdout + result.stderr


def test_header_names_the_versions(suite) -> None:
    result = suite("def test_it(): pass", "-v")
    assert f"in place of oslo.service {version('oslo.service')}" in result.stdout


@pytest.mark.parametrize(("strict", "outcome"), [("0", "1 failed"), ("1", "1 passed")])
def test_strict_brings_back_the_refusal_of_the_threading_backend(
    suite, strict: str, outcome: str
) -> None:
    result = suite(
        """
import pytest
from oslo_config import cfg
from oslo_service import wsgi
from oslo_service.backend.exceptions import UnsupportedBackendError

def test_it():
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[], default_config_dirs=[])
    with pytest.raises(UnsupportedBackendError):
        wsgi.Server(conf, "name", None, host="127.0.0.1")
""",
        "--osloxide-backend=threading",
        OSLOXIDE_STRICT=strict,
    )
    assert outcome in result.stdout
