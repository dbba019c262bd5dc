"""``eventlet.hubs``: the hub as far as services touch it.

Owns the hub's interface over the clock and the turns of this process: timers that call back,
descriptors that are waited for. There is one hub for all native threads, and nothing selects
another. Rules: eventlet's documentation of its hubs.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from osloxide.green._core import greenlets as _greenlets
from osloxide.green._core import waits as _waits
from osloxide.green._core.greenlets import getcurrent
from osloxide.green._core.turns import lock
from osloxide.green.hubs import hub as _hub
from osloxide.green.hubs.hub import IOClosed as IOClosed
from osloxide.green.timeout import Timeout

__all__ = ["get_default_hub", "get_hub", "trampoline", "use_hub"]

builtin_hub_names = ("epolls", "kqueue", "poll", "selects", "asyncio")


class HubError(Exception):
    """No such hub."""


_the_hub: _hub.BaseHub | None = None
_hub_class: type[_hub.BaseHub] | None = None


def get_default_hub() -> Any:
    """The module whose ``Hub`` is used."""
    return importlib.import_module("osloxide.green.hubs.epolls")


def use_hub(mod: Any = None) -> None:
    """Accepted for the hubs that eventlet brings, and their subclasses: all of them are the one hub
    under another name.

    :param mod: a name, a path ``package.module`` or ``package.module:Class``, a module with a class
        ``Hub``, or such a class.
    :raises RuntimeError: *mod* is empty.
    :raises NotImplementedError: a hub of the service's own is asked for.
    """
    global _the_hub, _hub_class
    if mod is None:
        mod = os.environ.get("EVENTLET_HUB") or get_default_hub()
    wanted, class_name = mod, "Hub"
    if isinstance(mod, str):
        path, _, named = mod.strip().partition(":")
        if not path:
            raise RuntimeError("Need to specify a hub")
        class_name = named or class_name
        name = path.removeprefix("eventlet.hubs.")
        if name == "asyncio":
            mod = get_default_hub()  # coroutines have a loop of their own
        else:
            if name in builtin_hub_names:
                path = f"osloxide.green.hubs.{name}"
            try:
                mod = importlib.import_module(path)
            except ImportError as error:
                raise _unknown(wanted) from error
    if hasattr(mod, "is_available") and not mod.is_available():
        raise Exception(f"selected hub is not available on this system mod={mod}")
    hub = mod if isinstance(mod, type) else getattr(mod, class_name, None)
    if not (isinstance(hub, type) and issubclass(hub, _hub.BaseHub)):
        raise _unknown(wanted)
    _hub_class, _the_hub = hub, None


def _unknown(mod: Any) -> NotImplementedError:
    return NotImplementedError(
        f"osloxide serves eventlet from native threads and cannot use the hub {mod!r}; leave "
        "use_hub() and EVENTLET_HUB out, or run on the real eventlet with OSLOXIDE_EVENTLET=real"
    )


def get_hub() -> _hub.BaseHub:
    """The hub of this process."""
    global _the_hub
    if _the_hub is None:
        with lock:
            if _the_hub is None:
                if _hub_class is None:
                    use_hub()
                assert _hub_class is not None
                _the_hub = _hub_class()
    return _the_hub


def trampoline(
    fd: Any,
    read: bool | None = None,
    write: bool | None = None,
    timeout: float | None = None,
    timeout_exc: Any = Timeout,
    mark_as_closed: Callable[[], object] | None = None,
) -> Any:
    """Wait until a descriptor is ready.

    :param fd: a number, or an object with ``fileno()``.
    :param read: wait until it can be read; *write* likewise. One of them.
    :param timeout: seconds; None waits for ever.
    :param timeout_exc: raised when they have passed; ``eventlet.Timeout`` unless given.
    :raises IOClosed: it was closed meanwhile.
    :raises RuntimeError: both are wanted, another greenthread waits for the same, or a callback of
        the hub calls.
    """
    hub = get_hub()
    current = getcurrent()
    if _greenlets.is_hub(current):
        raise RuntimeError("do not call blocking functions from the mainloop")
    if read and write:
        raise RuntimeError("not allowed to trampoline for reading and writing")
    fileno = fd.fileno() if hasattr(fd, "fileno") else fd
    listener = timer = None
    try:
        with lock:
            if read or write:
                evtype = hub.READ if read else hub.WRITE
                listener = hub.add(evtype, fileno, current.switch, current.throw, mark_as_closed)
            if timeout is not None:
                timer = hub.schedule_call_global(timeout, current.throw, timeout_exc)
            if listener is None or not listener.fired:
                me = _waits.suspend()
            else:
                return fileno
        return _waits.await_turn(me)
    finally:
        if listener is not None:
            hub.remove(listener)
            # It may have been ready before the wait began, or just after a timeout had ended it.
            _waits.unlatch(current, listener)
        if timer is not None:
            timer.cancel()


def notify_close(fd: int) -> None:
    """*fd* was closed: those that wait for it get :class:`IOClosed`."""
    # At the end of the interpreter, a thread that is gone may have the lock for ever.
    if not sys.is_finalizing():
        get_hub().notify_close(fd)


def notify_opened(fd: int) -> None:
    """*fd* is a new descriptor: those that wait for an earlier one of that number are told."""
    if _the_hub is not None and not sys.is_finalizing():
        get_hub().mark_as_reopened(fd)


def _forget() -> None:
    global _the_hub
    _the_hub = None


os.register_at_fork(after_in_child=_forget)
monotonic = time.monotonic
