"""``greenlet``: the class, each of whose objects runs on a native thread of its own.

Owns greenlet's interface, what a thread does for its greenlet, and who is the current one;
callbacks of the hub and threads that this package did not start have one too.
Rules: greenlet's documentation.
"""

from __future__ import annotations

import _thread
import itertools
import sys
import threading
from collections.abc import Callable
from typing import Any, Self, cast

from osloxide._typing import override
from osloxide.green._core import outsiders
from osloxide.green._core import turns as _turns
from osloxide.green._core.handle import GreenThreadHandle
from osloxide.green._core.interruption import (
    GreenletExit,
    bury,
    interrupt,
    normalize,
    report_failure,
    settle,
)
from osloxide.green._core.turns import (
    DEAD,
    NEW,
    PARKED,
    RUNNING,
    TurnTaker,
    let_go,
    local,
    lock,
    resume_with,
    switch_value,
)
from osloxide.green._core.waits import await_turn, current_carrier, park
from osloxide.threads import forked
from osloxide.threads.pool_thread import register_thread

_numbers = itertools.count(1)


class error(Exception):  # noqa: N801 - greenlet's name
    """A greenlet was used in a way that greenlet refuses."""


class greenlet(TurnTaker):  # noqa: N801 - greenlet's name
    """A function on a native thread that takes turns with others.

    Subclasses need not call :meth:`__init__`, and may have a method ``run``.

    :param run: called with what the first :meth:`switch` gets.
    :param parent: who gets the result; the maker when None.
    """

    GreenletExit = GreenletExit
    error = error
    _identity: greenlet | None = None
    _has_parent = True
    run: Callable[..., Any]

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        # Here and not in __init__(), which subclasses need not call.
        self = super().__new__(cls)
        self._prepare(NEW, getcurrent() if cls._has_parent else None)
        return self

    def __init__(
        self, run: Callable[..., Any] | None = None, parent: greenlet | None = None
    ) -> None:
        if run is not None:
            self.run = run
        if parent is not None:
            self.parent = parent

    # ---- greenlet's interface -------------------------------------------------------------------

    @staticmethod
    def getcurrent() -> greenlet:
        """The greenlet whose code calls."""
        return getcurrent()

    @property
    def parent(self) -> greenlet | None:
        """Who gets the result."""
        return self._get_parent()

    @parent.setter
    def parent(self, parent: greenlet) -> None:
        """
        :raises TypeError: *parent* is no greenlet.
        :raises ValueError: this greenlet is among its parents.
        """
        if not isinstance(parent, greenlet):
            raise TypeError(f"parent must be a greenlet, not {type(parent).__name__}")
        ancestor: TurnTaker | None = parent
        while ancestor is not None:
            if ancestor is self:
                raise ValueError("cyclic parent chain")
            ancestor = ancestor._parent
        self._parent = parent

    def _get_parent(self) -> greenlet | None:
        return cast("greenlet | None", self._parent)

    @property
    def dead(self) -> bool:
        """Whether it has ended."""
        return self._state == DEAD

    @property
    def gr_frame(self) -> Any:
        """The innermost frame of one that is suspended."""
        return sys._current_frames().get(self._ident) if self else None

    def switch(self, *args: Any, **kwargs: Any) -> Any:
        """Let this greenlet go on at once; the caller waits until something switches to it.

        In place of one that has ended its parent goes on.

        :returns: what the caller is switched to with.
        """
        me, current = current_carrier(), getcurrent()
        value = switch_value(args, kwargs)
        with lock:
            target = _that_lives(self)
            if target is None or target is current or target._is_hub:
                return value
            if is_hub(current):
                resume_with(target, (None, value), args, kwargs, front=True)
                return None
            me._state, me._outcome, me._in_switch = PARKED, None, True
            resume_with(target, (None, value), args, kwargs, front=True)
            let_go(me)
        return _await_switch(me)

    def throw(self, *throw_args: Any) -> Any:
        """Raise an exception in this greenlet at once, :class:`GreenletExit` if none is given.

        The caller waits until something switches to it; called in a callback of the hub, and for a
        greenlet that has ended or not begun, it does not.
        """
        me, current = current_carrier(), getcurrent()
        exception = normalize(*throw_args)
        if self is current:
            raise exception
        with lock:
            if self._state == DEAD:
                if isinstance(exception, GreenletExit):
                    return exception
                raise exception
            if not self:
                bury(self, exception)
                if isinstance(exception, GreenletExit):
                    return exception
                raise exception
            interrupt(self, exception, front=True)
            if is_hub(current):
                return None
            me._state, me._outcome, me._in_switch = PARKED, None, True
            let_go(me)
        return _await_switch(me)

    @override
    def __repr__(self) -> str:
        name = type(self).__name__
        states = ("pending", "ready", "running", "suspended", "dead")
        return f"<{name} object at {id(self):#x} {states[self._state]}>"

    # ---- its thread -----------------------------------------------------------------------------

    @override
    def _bootstrap(self) -> None:
        """All that its thread does for it."""
        renew()  # destructors of what the thread did before may have taken a turn
        local.carrier = self
        local.current = self._identity or self
        self._ident, self._native_id = _thread.get_ident(), _thread.get_native_id()
        thread = register_thread(f"GreenThread-{next(_numbers)}", GreenThreadHandle)
        result, failure = None, None
        try:
            result = self._run()
        except GreenletExit as exit_:
            result = exit_
        except BaseException as caught:  # noqa: BLE001 - passed on to the parent
            failure = caught
        try:
            self._end(result, failure)
        finally:
            del failure, result
            local.carrier = local.current = None
            thread.leave()  # type: ignore[attr-defined]

    def _run(self) -> Any:
        (failure, _), (args, kwargs) = self._outcome or (None, None), self._arguments or ((), {})
        self._outcome = self._arguments = None
        if failure is not None:
            raise failure
        run = self.run
        self.__dict__.pop("run", None)
        result = forked.call(run, *args, **kwargs)
        settle()
        return result

    def _end(self, result: Any, failure: BaseException | None) -> None:
        with lock:
            is_lost = failure is not None and self._heir() is None
        if is_lost and failure is not None:
            report_failure(failure)
        with lock:
            self._state = DEAD
            heir = None if is_lost else self._heir()
            if heir is not None:
                resume_with(heir, (failure, result), (result,), {}, front=True)
            let_go(self)

    def _heir(self) -> TurnTaker | None:
        """Who goes on when this greenlet has ended, with what came of it: its parent, whoever
        switched to it last. None where the parent waits for anything but a switch. With the lock.
        """
        heir = _that_lives(self._parent)
        if heir is None or heir._state == NEW or (heir._state == PARKED and heir._in_switch):
            return heir
        return None


def _that_lives(target: TurnTaker | None) -> TurnTaker | None:
    """*target*, or where it has ended the nearest of its parents that has not. With the lock."""
    while target is not None and target._state == DEAD:
        target = target._parent
    return target


def _await_switch(me: TurnTaker) -> Any:
    """Wait, as :meth:`greenlet.switch` does, until something switches to *me*."""
    try:
        return await_turn(me)
    finally:
        me._in_switch = False


class _Main(greenlet):
    """The code of a native thread that this package did not start."""

    _has_parent = False

    def __init__(self) -> None:
        self._prepare(RUNNING, None)
        self._ident, self._native_id = _thread.get_ident(), _thread.get_native_id()


class Callback(greenlet):
    """Runs a callback of the hub, whose greenlet its code sees as the current one."""

    def __init__(self, run: Callable[..., Any], hub: greenlet) -> None:
        super().__init__(run, hub)
        self._identity = hub
        self._resumed = 0


class HubGreenlet(greenlet):
    """Whom ``getcurrent()`` names in callbacks of the hub. Never suspended, never ends."""

    _has_parent = False
    _is_hub = True

    def __init__(self) -> None:
        self._prepare(RUNNING, None)

    @override
    def _get_parent(self) -> greenlet | None:
        return main_greenlet()

    @override
    def switch(self, *args: Any, **kwargs: Any) -> Any:
        """Wait until something switches to the caller."""
        return park()

    @override
    def throw(self, *throw_args: Any) -> Any:
        """End the loop with an exception, which comes up in the main thread; it begins again.

        :class:`GreenletExit` is returned there by the wait and not raised. A caller that is not the
        main thread waits until something switches to it.
        """
        exception, current, main = normalize(*throw_args), getcurrent(), main_greenlet()
        if main is None or current is main or is_hub(current):
            if isinstance(exception, GreenletExit) and not is_hub(current):
                return exception
            raise exception
        with lock:
            if isinstance(exception, GreenletExit):
                resume_with(main, (None, exception), (), {}, front=True)
            else:
                interrupt(main, exception, front=True)
        return park()


hub_greenlet = HubGreenlet()
"""The one of the hub."""


# ---- who calls ----------------------------------------------------------------------------------


def getcurrent() -> greenlet:
    """The greenlet whose code calls; native threads have one too."""
    current = local.current
    if current is None:
        current = local.current = local.carrier = _Main()
        if threading.current_thread() is threading.main_thread():
            _turns.main = current
        outsiders.enter(current)
    return cast("greenlet", current)


_turns.newcomer = getcurrent


def main_greenlet() -> greenlet | None:
    """That of the main thread, if it has called before."""
    return cast("greenlet | None", _turns.main)


def is_hub(current: greenlet) -> bool:
    """Whether *current* stands for the hub."""
    return current._is_hub


def renew() -> None:
    """The calling native thread begins something else: its greenlet ends, the next is a new one.

    Local data and local timers of what it did before do not outlive it.
    """
    old = local.carrier
    if isinstance(old, _Main):
        with lock:
            old._state = DEAD
            let_go(old)
        local.current = local.carrier = None
