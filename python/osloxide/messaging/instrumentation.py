"""oslo.messaging's tracing and metrics: a call for which both are off passes neither.

Owns the look at their options, which oslo.messaging takes inside a generator for each. Where one is
on, its own code runs. Knows no transport.
Rules: oslo_messaging/_tracing/client.py and _metrics/client.py.
"""

from __future__ import annotations

import contextlib
from types import ModuleType
from typing import Any

_NOTHING = contextlib.nullcontext()


class _Tracing:
    """In the place of ``oslo_messaging._tracing``."""

    def __init__(self, plain: ModuleType) -> None:
        self._plain = plain

    def trace_send(self, conf: Any, *arguments: Any, **keywords: Any) -> Any:
        if not conf.oslo_messaging_tracing.tracing_enabled:
            return _NOTHING
        return self._plain.trace_send(conf, *arguments, **keywords)

    def trace_receive(self, conf: Any, message: Any) -> Any:
        if not conf.oslo_messaging_tracing.tracing_enabled:
            return _NOTHING
        return self._plain.trace_receive(conf, message)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)


class _Metrics:
    """In the place of ``oslo_messaging._metrics``."""

    def __init__(self, plain: ModuleType) -> None:
        self._plain = plain

    def measure_metrics(self, conf: Any, *arguments: Any, **keywords: Any) -> Any:
        if not conf.oslo_messaging_metrics.metrics_enabled:
            return _NOTHING
        return self._plain.measure_metrics(conf, *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)


def amend(module: ModuleType) -> None:
    """Change the names by which *module*, a client or a server, reaches them, as far as it does."""
    for name, cls, function in (
        ("tracing", _Tracing, "trace_receive"),
        ("metrics", _Metrics, "measure_metrics"),
    ):
        plain: Any = getattr(module, name, None)
        if hasattr(plain, function):
            setattr(module, name, cls(plain))
