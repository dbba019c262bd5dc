"""oslo.context's current request context, told apart by coroutine.

Owns what stands in for the thread-local store behind ``oslo_context.context.get_current()``, which
oslo.log asks for every line: all coroutines of a worker share one thread, and would log under each
other's request ids. A context variable is the same as thread-local data on a plain thread, while
each asyncio task has its own, beginning with that of the code that began it.
Rules: oslo_context/context.py (``_request_store.context``, which its fixture deletes); PEP 567.
"""

from __future__ import annotations

import contextvars
import threading
from types import ModuleType
from typing import Any


class _Store:
    """As ``threading.local()`` with one attribute, which is there once it was set."""

    __slots__ = ("_current",)

    def __init__(self) -> None:
        # Empty when there is none: a context variable cannot be deleted.
        self._current: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar(
            "oslo_context", default=()
        )

    @property
    def context(self) -> Any:
        for context in self._current.get():
            return context
        raise AttributeError("no request context was made here")

    @context.setter
    def context(self, context: Any) -> None:
        self._current.set((context,))

    @context.deleter
    def context(self) -> None:
        if not self._current.get():
            raise AttributeError("no request context was made here")
        self._current.set(())


def amend(module: ModuleType) -> None:
    """Change ``oslo_context.context``, if it keeps its contexts where those known here do."""
    if isinstance(getattr(module, "_request_store", None), threading.local):
        module._request_store = _Store()  # type: ignore[attr-defined]
