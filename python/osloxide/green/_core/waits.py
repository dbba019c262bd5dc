"""The waits: every wait of the package ends up in :func:`park` or :func:`await_turn`.

Owns how a greenlet suspends itself, hands the baton on and gets it back, and what ends a wait
before its time. Rules: eventlet's hub, ``switch()``.
"""

from __future__ import annotations

import time
from typing import Any

from osloxide.green._core import errands
from osloxide.green._core import turns as _turns
from osloxide.green._core.interruption import due, settle
from osloxide.green._core.turns import HANDOVER, TurnTaker, enqueue, lock, resume, turns


def current_carrier() -> TurnTaker:
    """Who takes turns on the calling thread; it takes part from now on."""
    carrier = _turns.local.carrier
    if carrier is None:
        carrier = _turns.newcomer()
    return carrier


def hold() -> None:
    """Take the baton, so that what the caller is about to begin does not run before it waits."""
    if HANDOVER == "free":
        return
    me = current_carrier()
    with lock:
        if turns.holder is me:
            return
        if turns.holder is None and not turns.ready:
            turns.holder = me
            turns.count += 1
            return
        _line_up(me)
    await_turn(me)


def _line_up(me: TurnTaker) -> None:
    if me._turnstile is None:
        me._turnstile = _turns.closed_turnstile()
    me._outcome = (None, ())
    me._state = _turns.READY
    turns.ready.append(me)
    if turns.holder is me:
        _turns.pass_on()
    else:
        _turns.contended()


def suspend() -> TurnTaker:
    """Begin a wait; called with the lock, which is released before :func:`await_turn`.

    What resumes the caller may come from here on: it cannot be missed in between. The baton is
    handed on by :func:`await_turn`, when the caller has noted everywhere that it waits.

    :raises BaseException: what a timeout or ``kill()`` wants it to raise; then it does not wait.
    """
    me = current_carrier()
    current = _turns.local.current
    if current is not None and current._is_hub:
        raise RuntimeError("do not call blocking functions from the mainloop")
    exception = due(me)
    if exception is not None:
        raise exception
    if me._turnstile is None:
        me._turnstile = _turns.closed_turnstile()
    me._state, me._outcome = _turns.PARKED, None
    me._waits += 1
    if me._killers:
        _turns.note_pause(me)
    return me


def next_pause(target: TurnTaker) -> Any:
    """A lock that is opened when *target*, which waits, does so again or has ended. With the lock.

    :returns: None where the baton is what orders that: with any handover but ``free``. And where
        *target* does not wait.
    """
    if HANDOVER != "free" or target._state != _turns.PARKED:
        return None
    paused = _turns.closed_turnstile()
    target._killers = [*(target._killers or ()), paused]
    return paused


def park() -> Any:
    """Wait until something switches to the caller; ``hub.switch()``.

    :returns: the value that it is switched to with.
    """
    with lock:
        me = current_carrier()
        if me._latch is not None:
            # It came between the caller's request and its wait.
            (value, _), me._latch = me._latch, None
            return value
        me = suspend()
        me.in_park = True
    try:
        return await_turn(me)
    finally:
        me.in_park = False


def latch(target: TurnTaker, value: Any, source: Any = None) -> None:
    """Something switches to a greenlet that runs: its next :func:`park` returns. With the lock.

    :param source: who does; see :func:`unlatch`.
    """
    if target._state == _turns.RUNNING:
        target._latch = (value, source)


def unlatch(target: TurnTaker, source: Any) -> None:
    """What *source* switched to *target* for is over: no later wait returns for it."""
    with lock:
        if target._latch is not None and target._latch[1] is source:
            target._latch = None


class Wake:
    """Resumes a greenlet from the wait that it has begun, and from no other."""

    __slots__ = ("called", "target", "value", "waits")

    def __init__(self, target: TurnTaker, value: Any = ()) -> None:
        self.target, self.value, self.waits, self.called = target, value, target._waits, False

    def expire(self) -> None:
        """Its time has come."""
        enqueue(self)

    def take_turn(self) -> None:
        """Its place in the queue has come."""
        if not self.called and self.waits == self.target._waits:
            self.called = True
            resume(self.target, self.value)


def await_turn(me: TurnTaker) -> Any:
    """The wait itself, without the lock: hands the baton on and waits to get it back."""
    with lock:
        if turns.holder is me and me._state != _turns.RUNNING:
            _turns.pass_on()
    if me._turnstile is None:
        me._turnstile = _turns.closed_turnstile()
    try:
        me.at_turnstile = True
        settle()  # CPython looks for signals when a function begins: for those that had to wait
        if me is _turns.main and errands.are_there():
            errands.run_all()
        me._turnstile.acquire()
        while me._state != _turns.RUNNING:
            # Opened for something that the main thread is to do meanwhile; left open since, where
            # its turn came as it had just taken the turnstile.
            errands.run_all()
            me._turnstile.acquire()
    except BaseException:
        # A signal handler of the main thread has raised. Others wait until this is over.
        me.at_turnstile = False
        _give_up(me)
        raise
    me.at_turnstile = False
    outcome = me._outcome
    me._outcome = None
    if outcome is None:
        return ()
    failure, value = outcome
    del outcome
    if failure is not None:
        try:
            raise failure
        finally:
            del failure
    return value


def _give_up(me: TurnTaker) -> None:
    with lock:
        if me._state == _turns.READY and me in turns.ready:
            turns.ready.remove(me)
        # Open when its turn had come already.
        me._turnstile.acquire(False)
        me._state, me._outcome = _turns.RUNNING, None


def yield_turn() -> None:
    """Let all others go first whose turn has come."""
    me = current_carrier()
    waits = False
    with lock:
        exception = due(me)
        if exception is None:
            _turns.clock.collect()
            if HANDOVER == "free" or (turns.holder in (me, None) and not turns.ready):
                if HANDOVER != "free" and turns.holder is None:
                    turns.holder = me
                    turns.count += 1
                if me._killers:
                    _turns.note_pause(me)
            else:
                _line_up(me)
                waits = True
    if exception is not None:
        raise exception
    if waits:
        await_turn(me)
    else:
        time.sleep(0)  # others may want the interpreter
