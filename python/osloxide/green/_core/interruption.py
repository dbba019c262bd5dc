"""Exceptions that come from outside: what timeouts, ``kill()`` and ``throw()`` raise in a greenlet.

Owns the way of such an exception into a wait, into what has not begun, and into code that computes;
and what is done with one that nobody waits for.
Rules: greenlet's documentation for ``throw()``; eventlet's hub for failures.
"""

from __future__ import annotations

import _thread
import collections
import sys
import threading
import traceback
from typing import Any

from osloxide import _native
from osloxide.green._core import turns as _turns
from osloxide.green._core.turns import TurnTaker, lock

_AFTER = 0.02
"""Seconds that code gets to arrive at a wait before it is interrupted where it computes."""

_SWITCH_INTERVALS = 4
"""How many it gets at least: a thread that waits for the interpreter wakes up at each."""

_PAUSE = 0.25
"""Seconds between two attempts at most."""

_ROOM = "osloxide.green"
_KEEP_OUT = [
    "logging",
    "threading",
    "importlib",
    "_frozen_importlib",
    "queue",
    "concurrent.futures",
    "zmq.sugar",
]
"""Modules of the standard library whose locks would stay locked if they were interrupted, and of
pyzmq, where part of a message would stay in the socket."""


class GreenletExit(BaseException):
    """Raised in a greenlet that is killed; one that lets it pass ends without a complaint."""


def normalize(*throw_args: Any) -> BaseException:
    """The exception that the arguments of ``throw()`` stand for."""
    kind, value, tb = (*throw_args, None, None, None)[:3]
    if kind is None:
        exception: Any = GreenletExit()
    elif isinstance(kind, BaseException):
        if value is not None:
            raise TypeError("instance exception may not have a separate value")
        exception = kind
    elif isinstance(kind, type) and issubclass(kind, BaseException):
        if isinstance(value, kind):
            exception = value
        elif value is None:
            exception = kind()
        else:
            exception = kind(*value) if isinstance(value, tuple) else kind(value)
    else:
        raise TypeError(f"exceptions must be classes, or instances, not {type(kind).__name__}")
    return exception.with_traceback(tb) if tb is not None else exception  # type: ignore[no-any-return]


class Interruption:
    """An exception that is to be raised in a greenlet.

    :ivar called: it was raised, or taken back: nothing happens any more.
    """

    def __init__(self, exception: BaseException) -> None:
        self.exception = exception
        self.called = False


def settle() -> None:
    """What was armed for the calling thread in code of the service is raised here at the latest.

    CPython raises it when a function begins, and not when one returns; and nothing is armed while
    code of this package runs. So it cannot come between a result and those who wait for it.
    """


def due(me: TurnTaker) -> BaseException | None:
    """The exception that waits for *me*, if any. With the lock."""
    while me._pending:
        interruption = me._pending.popleft()
        if not interruption.called:
            interruption.called = True
            return interruption.exception  # type: ignore[no-any-return]
    return None


def interrupt(
    target: TurnTaker,
    exception: BaseException,
    entry: Any = None,
    *,
    front: bool = False,
    computes: bool = True,
) -> None:
    """Raise *exception* in *target*: in its wait, or else where it is. Called with the lock.

    :param entry: an :class:`Interruption` that may be taken back until it is raised.
    :param computes: whether code that computes is interrupted; else its next wait raises it.
    """
    if target._state == _turns.DEAD:
        return
    is_ready = target._state == _turns.READY
    if target._state == _turns.PARKED or (is_ready and target._ident and front):
        if entry is not None:
            entry.called = True
        if is_ready and target in _turns.turns.ready:
            _turns.turns.ready.remove(target)
        target._outcome = (exception, None)
        _turns.queue(target, front=front)
        return
    if not target:
        bury(target, exception)
        return
    if entry is None:
        entry = Interruption(exception)
    if target._pending is None:
        target._pending = collections.deque()
    target._pending.append(entry)
    if computes:
        _interrupt_later(target, entry)


def _interrupt_later(target: TurnTaker, entry: Any) -> None:
    """Raise ``entry.exception`` in *target* where it computes, unless it waits before.

    From CPython 3.13 on code that computes is left alone until it waits, here or in C code.
    Called with the lock.
    """
    pause = max(_AFTER, _SWITCH_INTERVALS * sys.getswitchinterval())
    seen = _native.thread_state(target._native_id)

    def attempt() -> None:
        nonlocal pause, seen
        if entry.called or target._state == _turns.DEAD:
            return
        if not target._pending or entry not in target._pending:
            return
        if _is_replaced(target):
            target._state = _turns.DEAD
            target._pending.clear()
            _turns.let_go(target)
            return
        if target._state == _turns.RUNNING:
            exception = entry.exception

            def deliver(_cls: type, *_args: object) -> BaseException:
                return exception  # type: ignore[no-any-return]

            carrier = type(type(exception).__name__, (BaseException,), {"__new__": deliver})
            armed = _native.interrupt_thread(
                target._ident, target._native_id, seen, carrier, _ROOM, _KEEP_OUT
            )
            if armed is None:
                return
            if armed:
                target._pending.remove(entry)
                entry.called = True
                return
            pause = max(pause, min(pause * 2, _PAUSE))
        seen = _native.thread_state(target._native_id)
        _turns.clock.call_later(pause, attempt)

    _turns.clock.call_later(pause, attempt)


def _is_replaced(target: TurnTaker) -> bool:
    """Whether the thread of *target* has ended and a new one has its ident.

    A thread that this package did not start ends without a word. That of a greenlet which begins is
    not in the list yet, and a fork leaves the native id of the main thread stale there.
    """
    thread = threading._active.get(target._ident)  # type: ignore[attr-defined]
    if thread is None or thread is threading.main_thread():
        return False
    return bool(thread.native_id != target._native_id)


def withdraw(target: TurnTaker) -> None:
    """*target*, which has not begun, never does; :func:`bury` follows. With the lock.

    A thread may have been asked for already, and then finds that there is nothing to do.
    """
    target._state = _turns.DEAD
    target._arguments = target._outcome = None


def bury(target: TurnTaker, exception: BaseException) -> None:
    """End a greenlet that has not begun. Without the lock after :func:`withdraw`, or with it."""
    withdraw(target)
    timer, target.start_timer = target.start_timer, None
    if timer is not None:
        timer.cancel()
    on_buried = getattr(target, "_never_begun", None)
    if on_buried is not None:
        on_buried(exception)


# ---- failures -----------------------------------------------------------------------------------

report_exceptions = True
"""Whether failures of greenlets that are not waited for are printed."""


def report_failure(failure: BaseException) -> None:
    """What the hub does with an exception that ended a greenlet."""
    if isinstance(failure, (KeyboardInterrupt, SystemExit)):
        # It ends the program, as in the main thread.
        if _turns.main is not None:
            with lock:
                interrupt(_turns.main, failure, front=True)
            return
        _thread.interrupt_main()
        return
    if report_exceptions:
        traceback.print_exception(failure)
        sys.stderr.flush()
