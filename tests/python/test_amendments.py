"""The table of amendments: every entry is real, and a missing name leaves a module as it is."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import Any

import pytest
from _children import run_python

from osloxide.activation import amendments
from osloxide.activation.amendments import relies_on

TARGETS = sorted({target for targets in amendments.TABLE.values() for target in targets})


@relies_on("Pool.get", "Pool.put")
def amend_pool(module: Any) -> None:
    module.amended = True


@relies_on("Pool.steal", wanted=lambda: False)
def amend_what_is_not_wanted(module: Any) -> None:
    module.amended = True


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amendments, "TABLE", {"library.pool": (f"{__name__}:amend_pool",)})
    monkeypatch.setattr(amendments, "left_alone", {})


def module_with(**names: Any) -> Any:
    module = ModuleType("library.pool")
    module.__dict__.update(names)
    return module


@pytest.mark.parametrize("target", TARGETS)
def test_every_entry_names_a_function(target: str) -> None:
    place, _, function = target.partition(":")

    assert callable(getattr(importlib.import_module(place), function))


@pytest.mark.usefixtures("table")
def test_a_module_that_has_every_name_is_amended(caplog: pytest.LogCaptureFixture) -> None:
    class Pool:
        def get(self) -> None: ...
        def put(self) -> None: ...

    module = module_with(Pool=Pool)
    amendments.apply(module)

    assert module.amended
    assert not amendments.left_alone
    assert not caplog.records


def test_what_is_not_wanted_is_neither_made_nor_missed(
    table: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entry = {"library.pool": (f"{__name__}:amend_what_is_not_wanted",)}
    monkeypatch.setattr(amendments, "TABLE", entry)

    module = module_with()
    amendments.apply(module)

    assert not hasattr(module, "amended")
    assert not amendments.left_alone
    assert not caplog.records


@pytest.mark.usefixtures("table")
def test_a_module_that_lacks_a_name_runs_as_it_is_and_the_log_says_which(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Pool:
        def get(self) -> None: ...

    module = module_with(Pool=Pool)
    with caplog.at_level(logging.WARNING, "osloxide"):
        amendments.apply(module)

    assert not hasattr(module, "amended")
    assert list(amendments.left_alone) == [f"library.pool by {__name__}:amend_pool"]
    (record,) = caplog.records
    assert "library.pool" in record.message
    assert "Pool.put" in record.message
    assert "Pool.get" not in record.message


@pytest.mark.usefixtures("table")
def test_a_module_without_the_class_is_left_alone_too(caplog: pytest.LogCaptureFixture) -> None:
    module = module_with()
    amendments.apply(module)

    assert not hasattr(module, "amended")
    assert "Pool.get, Pool.put" in caplog.text


def test_a_module_that_is_loaded_again_is_amended_again() -> None:
    result = run_python(
        """
        import importlib
        import osloxide

        osloxide.install()
        from oslo_service import backend

        backend._backend_hook = None
        importlib.reload(backend)
        assert backend._backend_hook() is backend.BackendType.THREADING
        """
    )

    assert result.returncode == 0, result.stderr


def test_every_amended_library_has_the_names_that_osloxide_relies_on() -> None:
    """Of the pinned releases; a name that a release no longer has would be found here first."""
    result = run_python(
        """
        import os

        # Its amendment is checked where it is wanted.
        os.environ["OSLOXIDE_NATIVE_RPC"] = "1"
        import osloxide

        osloxide.install()
        import amqp.connection
        import oslo_context.context
        import oslo_messaging
        import oslo_messaging._drivers.impl_rabbit
        from osloxide.activation import amendments

        assert not amendments.left_alone, amendments.left_alone
        """
    )

    assert result.returncode == 0, result.stderr
