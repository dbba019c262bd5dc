"""Versions of RPC interfaces, which are compared for each request as oslo.messaging does it."""

from __future__ import annotations

import importlib.util
import itertools
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from osloxide.messaging import dispatch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("oslo_messaging") is None,
    reason="oslo.messaging is an optional companion; `make setup` installs it",
)

VERSIONS: list[Any] = [
    "1.0",
    "1.1",
    "1.10",
    "2.0",
    "1.0.1",
    "1.1.3",
    None,
    "1",
    "x.y",
    "",
    1.0,
    1,
    [],
]


def amended(plain: Any) -> Any:
    module = ModuleType("dispatcher")
    module.RPCDispatcher = type(  # type: ignore[attr-defined]
        "RPCDispatcher", (), {"dispatch": lambda: None, "_do_dispatch": lambda: None}
    )
    module.utils = SimpleNamespace(version_is_compatible=plain)  # type: ignore[attr-defined]
    dispatch.amend_dispatcher(module)
    return module.utils.version_is_compatible


def outcome(compare: Any, *versions: Any) -> Any:
    try:
        return compare(*versions)
    except Exception as error:  # noqa: BLE001  (whichever it is)
        return type(error) if all(isinstance(it, str) for it in versions) else "error"


def test_versions_are_compared_as_by_oslo_messaging() -> None:
    from oslo_messaging import _utils

    ours = amended(_utils.version_is_compatible)

    for pair in itertools.product(VERSIONS, repeat=2):
        expected = outcome(_utils.version_is_compatible, *pair)
        assert [outcome(ours, *pair) for _ in range(2)] == [expected] * 2, pair


def test_two_versions_are_compared_once() -> None:
    asked = []
    ours = amended(lambda *versions: asked.append(versions) or True)

    assert ours("1.5", "1.2") is ours("1.5", "1.2") is True
    assert asked == [("1.5", "1.2")]
