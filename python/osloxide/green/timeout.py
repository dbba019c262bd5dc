"""``eventlet.timeout``: an exception in the calling greenthread after some seconds.

It ends every wait of this package at once; code that computes, 20 ms later; foreign C code, once it
returns. It is not raised any more after ``cancel()`` or the end of the block.
Rules: eventlet.timeout.
"""

from __future__ import annotations

import builtins
import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any

from osloxide._typing import override
from osloxide.green._core import timers
from osloxide.green._core.greenlets import getcurrent

__all__ = ["Timeout", "is_timeout", "with_timeout", "wrap_is_timeout"]

_MISSING = object()


class Timeout(BaseException):
    """Raises *exception* in the greenthread that makes it, after *seconds*.

    :param seconds: None: never.
    :param exception: what to raise; None or True: this object; False: this object, which the
        ``with`` block swallows.
    """

    def __init__(self, seconds: float | None = None, exception: Any = None) -> None:
        self.seconds = seconds
        self.exception = exception
        self.timer: Any = None
        self.start()

    def start(self) -> Timeout:
        """Begin; done by the constructor, and by ``with`` after :meth:`cancel`."""
        assert not self.pending, f"{self!r} is already started; to restart it, cancel it first"
        if self.seconds is None:
            self.timer = None
            return self
        exception = self.exception
        if exception is None or isinstance(exception, bool):
            exception = self
        self.timer = timers.call_global(self.seconds, getcurrent().throw, exception)
        return self

    @property
    def pending(self) -> bool:
        """Whether it will be raised."""
        return self.timer is not None and bool(self.timer.pending)

    def cancel(self) -> None:
        """Do not raise it any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    @override
    def __repr__(self) -> str:
        pending = " pending" if self.pending else ""
        exception = "" if self.exception is None else f" exception={self.exception!r}"
        return (
            f"<{type(self).__name__} at {id(self):#x} seconds={self.seconds}{exception}{pending}>"
        )

    @override
    def __str__(self) -> str:
        if self.seconds is None:
            return ""
        text = f"{self.seconds} second" + ("" if self.seconds == 1 else "s")
        if self.exception is None or self.exception is True:
            return text
        return text + (" (silent)" if self.exception is False else f" ({self.exception})")

    def __enter__(self) -> Timeout:
        if self.timer is None:
            self.start()
        return self

    def __exit__(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> bool | None:
        self.cancel()
        return True if value is self and self.exception is False else None

    @property
    def is_timeout(self) -> bool:
        """True."""
        return True


def with_timeout(seconds: float, function: Callable[..., Any], *args: Any, **kwds: Any) -> Any:
    """Call *function*; give up after *seconds*.

    :param timeout_value: keyword: returned then, instead of raising the :class:`Timeout`.
    """
    timeout_value = kwds.pop("timeout_value", _MISSING)
    timeout = Timeout(seconds)
    try:
        try:
            return function(*args, **kwds)
        except Timeout as raised:
            if raised is timeout and timeout_value is not _MISSING:
                return timeout_value
            raise
    finally:
        timeout.cancel()


def wrap_is_timeout(base: Any) -> Any:
    """Mark a class, or what a function returns, as a timeout (``is_timeout`` is True)."""
    if inspect.isclass(base):
        base.is_timeout = property(lambda _: True)  # type: ignore[attr-defined]
        return base

    @functools.wraps(base)
    def marked(*args: Any, **kwargs: Any) -> Any:
        result = base(*args, **kwargs)
        result.is_timeout = True
        return result

    return marked


def is_timeout(obj: Any) -> bool:
    """Whether *obj* is marked, or the standard library's TimeoutError."""
    return bool(getattr(obj, "is_timeout", False)) or isinstance(obj, builtins.TimeoutError)
