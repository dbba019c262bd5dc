"""``eventlet.corolocal``: data of each greenthread. Rules: eventlet.corolocal."""

from __future__ import annotations

import weakref  # noqa: F401  # eventlet's module has the name
from typing import Any

from osloxide._typing import override
from osloxide.green._core.greenlets import getcurrent
from osloxide.threads import identity

__all__ = ["get_ident", "local"]


def get_ident() -> int:
    """A number of the calling greenthread, unique while that lives."""
    return id(getcurrent())


class _localbase:  # noqa: N801
    __slots__ = ("_local__args", "_local__greens")

    def __new__(cls, *args: Any, **kw: Any) -> Any:
        self = object.__new__(cls)
        object.__setattr__(self, "_local__args", (args, kw))
        object.__setattr__(self, "_local__greens", identity.WeakIdentityDict())
        if (args or kw) and cls.__init__ is object.__init__:
            raise TypeError("Initialization arguments are not supported")
        return self


def _data(self: Any) -> dict[str, Any]:
    greens = object.__getattribute__(self, "_local__greens")
    current = getcurrent()
    data: dict[str, Any] | None = greens.get(current)
    if data is None:
        data = greens[current] = {}
        cls = type(self)
        if cls.__init__ is not object.__init__:
            args, kw = object.__getattribute__(self, "_local__args")
            cls.__init__(self, *args, **kw)
    return data


_MISSING = object()


class local(_localbase):  # noqa: N801 - threading's name
    """As ``threading.local``, for greenthreads.

    Unlike eventlet's it never swaps ``__dict__``, which several native threads would see.
    """

    @override
    def __getattribute__(self, attr: str) -> Any:
        data = _data(self)
        if attr == "__dict__":
            return data
        # As object does: data descriptors of the class, the instance, the rest of the class.
        static = _class_attribute(type(self), attr)
        if static is not _MISSING and hasattr(type(static), "__set__"):
            return object.__getattribute__(self, attr)
        if attr in data:
            return data[attr]
        return object.__getattribute__(self, attr)

    @override
    def __setattr__(self, attr: str, value: Any) -> None:
        data = _data(self)
        if attr == "__dict__":
            raise AttributeError(
                f"{type(self).__name__!r} object attribute '__dict__' is read-only"
            )
        static = _class_attribute(type(self), attr)
        if static is not _MISSING and hasattr(type(static), "__set__"):
            object.__setattr__(self, attr, value)
        else:
            data[attr] = value

    @override
    def __delattr__(self, attr: str) -> None:
        data = _data(self)
        static = _class_attribute(type(self), attr)
        if static is not _MISSING and hasattr(type(static), "__delete__"):
            object.__delattr__(self, attr)
        elif attr in data:
            del data[attr]
        else:
            raise AttributeError(attr)


def _class_attribute(cls: type, attr: str) -> Any:
    for base in cls.__mro__:
        if attr in base.__dict__:
            return base.__dict__[attr]
    return _MISSING
