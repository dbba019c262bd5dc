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
from typing import Any, cast

from osloxide import _native
from osloxide._typing import override
from osloxide.green._core import fork, outsiders
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
    note_pause,
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
    run: Callable[..., Any]

    def __init__(
        self, run: Callable[..., Any] | None = None, parent: greenlet | None = None
    ) -> None:
        if run is not None:
            self.run = run
        self._parent = getcurrent() if parent is None else _checked(parent)

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
        ancestor: TurnTaker | None = _checked(parent)
        while ancestor is not None:
            if ancestor is self:
                raise ValueError("cyclic parent chain")
            ancestor = ancestor._parent
        self._parent = parent

    def _get_parent(self) -> greenlet | None:
        if self._parent is None and self._state == NEW:
            self._parent = getcurrent()  # its class has a constructor of its own
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

        In place of one that has ended its parent goes on, if that waits in a switch too.

        :returns: what the caller is switched to with.
        """
        me, current = current_carrier(), getcurrent()
        value = switch_value(args, kwargs)
        self._get_parent()
        with lock:
            target = self if self._state != DEAD else self._heir()
            if target is None or target is current:
                return value
            if is_hub(current):
                resume_with(target, (None, value), args, kwargs, front=True)
                return None
            me._state, me._outcome, me._in_switch = PARKED, None, True
            note_pause(me)
            resume_with(target, (None, value), args, kwargs, front=True)
            let_go(me)
        return _await_switch(me)

    def throw(self, *throw_args: Any) -> Any:
        """Raise an exception in this greenlet at once, :class:`GreenletExit` if none is given.

        One that has not begun ends by it, and its parent goes on as after any end. The caller waits
        until something switches to it, but not where it is a callback of the hub, or where nobody
        goes on: then the exception is raised here, and GreenletExit returned.
        """
        me, current = current_carrier(), getcurrent()
        exception = normalize(*throw_args)
        if self is current:
            raise exception
        with lock:
            is_alive = bool(self)
            if self._state != DEAD and not is_alive:
                bury(self, exception)
            heir = None if is_alive else self._heir()
            is_exit = isinstance(exception, GreenletExit)
            if heir is not None:
                outcome = (None, exception) if is_exit else (exception, None)
                resume_with(heir, outcome, (exception,), {}, front=True)
            elif is_alive:
                interrupt(self, exception, front=True)
            elif is_exit:
                return exception
            else:
                raise exception
            if is_hub(current):
                return None
            me._state, me._outcome, me._in_switch = PARKED, None, True
            note_pause(me)
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
        fork.living.add(self)
        thread = register_thread(f"GreenThread-{next(_numbers)}", GreenThreadHandle)
        try:
            with lock:
                begins = self._state != DEAD  # withdrawn, since the thread was asked for
                if not begins:
                    let_go(self)
                beginning = (self._outcome or (None, None))[0], self._arguments or ((), {})
                self._outcome = self._arguments = None
            if begins:
                self._live(*beginning)
        finally:
            fork.living.discard(self)
            local.carrier = local.current = None
            thread.leave()  # type: ignore[attr-defined]

    def _live(
        self, failure: BaseException | None, arguments: tuple[tuple[Any, ...], dict[str, Any]]
    ) -> None:
        """Run its function, or raise *failure* in its place, and pass on what comes of it."""
        result = None
        try:
            if failure is not None:
                raise failure
            run = self.run
            self.__dict__.pop("run", None)
            result = forked.call(run, *arguments[0], **arguments[1])
            settle()
        except GreenletExit as exit_:
            result, failure = exit_, None
        except BaseException as caught:  # noqa: BLE001 - passed on to the parent
            failure = caught
        try:
            self._end(result, failure)
        finally:
            del failure, result

    def _end(self, result: Any, failure: BaseException | None) -> None:
        with lock:
            heir = self._heir()
        if heir is None and failure is not None:
            report_failure(failure)
            failure = None
        with lock:
            self._state = DEAD
            note_pause(self)
            heir = self._heir() if heir is not None else None
            if heir is not None:
                resume_with(heir, (failure, result), (result,), {}, front=True)
            let_go(self)
        if heir is None and failure is not None:
            report_failure(failure)  # something has ended the parent's switch meanwhile

    def _heir(self) -> TurnTaker | None:
        """Who goes on when this greenlet has ended, with what came of it: its parent, whoever
        switched to it last, or the nearest of its parents that has not ended. None where that waits
        for anything but a switch, or runs. With the lock.
        """
        heir: TurnTaker | None = self._parent
        while heir is not None and heir._state == DEAD:
            heir = heir._parent
        if heir is None or heir._state == NEW or (heir._state == PARKED and heir._in_switch):
            return heir
        return None


def _checked(parent: greenlet) -> greenlet:
    if not isinstance(parent, greenlet):
        raise TypeError(f"parent must be a greenlet, not {type(parent).__name__}")
    return parent


def _await_switch(me: TurnTaker) -> Any:
    """Wait, as :meth:`greenlet.switch` does, until something switches to *me*."""
    try:
        return await_turn(me)
    finally:
        me._in_switch = False


class _Main(greenlet):
    """The code of a native thread that this package did not start."""

    def __init__(self) -> None:
        self._state = RUNNING
        self._ident, self._native_id = _thread.get_ident(), _thread.get_native_id()


class Callback(greenlet):
    """Runs a callback of the hub, whose greenlet its code sees as the current one."""

    def __init__(self, run: Callable[..., Any], hub: greenlet) -> None:
        super().__init__(run, hub)
        self._identity = hub
        self._resumed = 0


class HubGreenlet(greenlet):
    """Whom ``getcurrent()`` names in callbacks of the hub. Never suspended, never ends."""

    _is_hub = True

    def __init__(self) -> None:
        self._state = RUNNING

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


def _end_job() -> None:
    """A pool thread of a server or an executor has ended a request or a job.

    A timeout that it has left behind, or a ``kill()`` of what it was, must not reach the next one.
    """
    if local.carrier is not None:
        renew()


_native.when_job_ends(_end_job)
