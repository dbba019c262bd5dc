"""``eventlet.support``: small helpers that libraries import.

Rules: eventlet.support.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from osloxide.green.support import greenlets as greenlets

_MISSING = object()

PY33 = False


def get_errno(exc: BaseException) -> Any:
    """The error number of *exc*: its ``errno``, else its first argument, else None."""
    number = getattr(exc, "errno", None)
    if number is not None:
        return number
    return exc.args[0] if exc.args else None


def bytes_to_str(b: bytes, encoding: str = "ascii") -> str:
    """*b* as text."""
    return b.decode(encoding)


def wrap_deprecated(old: str, new: str) -> Callable[[Any], Any]:
    """Make what is called by its old name warn.

    :param old: that name; *new* the one to use.
    """
    names = [name if "." in name else f"eventlet.{name}" for name in (old, new)]
    message = (
        f"{names[0]} is deprecated and will be removed in next version. Use {names[1]} instead."
    )

    def wrapper(base: Any) -> Any:
        @functools.wraps(base)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            return base(*args, **kwargs)

        if not inspect.isclass(base):
            return wrapped

        def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            base.__init__(self, *args, **kwargs)

        return type(base.__name__, (base,), {"__init__": initialize, "__module__": base.__module__})

    return wrapper
