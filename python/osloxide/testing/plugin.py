"""pytest plugin: run a test suite on osloxide (``pytest -p osloxide.testing.plugin``).

Installs the import hook when it is loaded, which is before any test module or conftest is. Child
processes of the tests get it through their environment. Tests that import eventlet themselves are
tolerated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from osloxide import testing

if TYPE_CHECKING:
    import pytest

testing.activate()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--osloxide-backend``."""
    parser.getgroup("osloxide").addoption(
        "--osloxide-backend",
        choices=("eventlet", "threading"),
        help="select this oslo.service backend type before anything is collected "
        "(default: what the tests select, else threading)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Select the backend type that was asked for."""
    name = config.getoption("--osloxide-backend")
    if name is not None:
        from oslo_service import backend

        backend.init_backend(backend.BackendType(name))


def pytest_report_header() -> str:
    """Say in pytest's header what is being tested."""
    from importlib.metadata import version

    return f"osloxide {version('osloxide')} in place of oslo.service {version('oslo.service')}"
