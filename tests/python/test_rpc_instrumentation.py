"""oslo.messaging's tracing and metrics: not made while they are off, its own where they are on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from osloxide.messaging import instrumentation


def conf(*, tracing: bool = False, metrics: bool = False) -> Any:
    return SimpleNamespace(
        oslo_messaging_tracing=SimpleNamespace(tracing_enabled=tracing),
        oslo_messaging_metrics=SimpleNamespace(metrics_enabled=metrics),
    )


class Plain(ModuleType):
    """As ``oslo_messaging._tracing`` and ``oslo_messaging._metrics``, both in one."""

    def __init__(self) -> None:
        super().__init__("plain")
        self.made: list[Any] = []

    @contextlib.contextmanager
    def trace_send(self, conf: Any, **keywords: Any) -> Iterator[None]:
        self.made.append(("send", keywords))
        yield

    @contextlib.contextmanager
    def trace_receive(self, conf: Any, message: Any) -> Iterator[None]:
        self.made.append(("receive", message))
        yield

    @contextlib.contextmanager
    def measure_metrics(self, conf: Any, **keywords: Any) -> Iterator[None]:
        self.made.append(("measure", keywords))
        yield


@pytest.fixture
def module() -> Any:
    module = ModuleType("amended")
    module.tracing = module.metrics = Plain()  # type: ignore[attr-defined]
    instrumentation.amend(module)
    return module


def pass_by(module: Any, conf: Any) -> None:
    with (
        module.tracing.trace_send(conf, method="m"),
        module.metrics.measure_metrics(conf, method="m"),
        module.tracing.trace_receive(conf, "message"),
    ):
        pass


def test_what_is_off_is_not_made(module: Any) -> None:
    pass_by(module, conf())

    assert module.tracing.made == []


def test_what_is_on_is_oslo_messagings_own(module: Any) -> None:
    pass_by(module, conf(tracing=True, metrics=True))

    keywords = {"method": "m"}
    assert module.tracing.made == [
        ("send", keywords),
        ("measure", keywords),
        ("receive", "message"),
    ]


def test_one_may_be_on_alone(module: Any) -> None:
    pass_by(module, conf(metrics=True))

    assert module.tracing.made == [("measure", {"method": "m"})]


def test_an_error_passes_what_is_off(module: Any) -> None:
    with pytest.raises(KeyError), module.tracing.trace_send(conf()):
        raise KeyError


def test_releases_without_them_stay_as_they_are() -> None:
    module = ModuleType("old")
    module.metrics = metrics = ModuleType("metrics")  # type: ignore[attr-defined]

    instrumentation.amend(module)

    assert module.metrics is metrics
    assert not hasattr(module, "tracing")
