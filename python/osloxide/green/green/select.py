"""``eventlet.green.select``: the standard module with a ``select()`` that waits at the hub.

``poll`` and ``epoll`` are not offered, as in eventlet: libraries fall back to ``select()``.
"""

from __future__ import annotations

import select as _std
from typing import Any

from osloxide._typing import override
from osloxide.green import hubs as _hubs
from osloxide.green._core import clock as _clock
from osloxide.green._core import greenlets as _greenlets
from osloxide.green._core import turns as _turns
from osloxide.green._core import waits as _waits
from osloxide.green.hubs import hub as _hub

error = _std.error

__all__ = ["error", "select"]
__patched__ = ["select"]
__deleted__ = ["devpoll", "poll", "epoll", "kqueue", "kevent"]


def get_fileno(obj: Any) -> int:
    """The descriptor of *obj*.

    :raises TypeError: it has none.
    """
    if hasattr(obj, "fileno"):
        obj = obj.fileno()
    if not isinstance(obj, int):
        raise TypeError(f"Expected int or long, got {type(obj)}")
    return obj


class _Listener(_hub.FdListener):
    """One descriptor of a ``select()``: the first that is ready ends it."""

    def __init__(self, evtype: str, fileno: int, ready: list[tuple[str, int]]) -> None:
        super().__init__(evtype, fileno, _nothing, _greenlets.getcurrent().throw, None)
        self.ready = ready
        self.waits = self.greenlet._waits + 1

    @override
    def on_ready(self, fileno: int) -> None:
        self.fired = True
        self.ready.append((self.evtype, fileno))
        if self.greenlet._waits == self.waits:
            _turns.resume(self.greenlet)


def _nothing(_fileno: int) -> None:
    """Do nothing: the listener itself notes what is ready."""


def select(
    read_list: Any, write_list: Any, error_list: Any, timeout: Any = None
) -> tuple[list[Any], list[Any], list[Any]]:
    """Wait until one of the descriptors is ready.

    :param timeout: seconds; None waits for ever.
    """
    if timeout is not None:
        try:
            timeout = float(timeout)
        except ValueError:
            raise TypeError("Expected number for timeout") from None
    hub = _hubs.get_hub()
    if _greenlets.is_hub(_greenlets.getcurrent()):
        raise RuntimeError("do not call blocking functions from the mainloop")
    wanted: dict[tuple[str, int], list[Any]] = {}
    for kind, objects in ((_hub.READ, read_list), (_hub.WRITE, write_list)):
        for obj in objects:
            wanted.setdefault((kind, get_fileno(obj)), []).append(obj)
    for obj in error_list:
        get_fileno(obj)
    ready: list[tuple[str, int]] = []
    listeners: list[_Listener] = []
    me = wake = None
    try:
        with _turns.lock:
            for kind, fileno in wanted:
                if fileno < 0:
                    raise ValueError(f"file descriptor cannot be a negative integer ({fileno})")
                listener = _Listener(kind, fileno, ready)
                hub._register(listener)
                listeners.append(listener)
            if not ready:
                me = _waits.suspend()
                if timeout is not None:
                    wake = _waits.Wake(me)
                    _clock.clock.add(max(0.0, timeout), wake)
        if me is not None:
            _waits.await_turn(me)
    finally:
        for listener in listeners:
            hub.remove(listener)
        if wake is not None and not wake.called:
            with _turns.lock:
                _clock.clock.drop(wake)
    result: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    for kind, fileno in ready:
        result[0 if kind == _hub.READ else 1].extend(wanted[kind, fileno])
    return result
