"""Whose turn it is: the baton, and the queue of those who wait for it.

Owns what a greenlet is to the queue (:class:`TurnTaker`), the queue of those that may go on, and
the baton. One lock guards all of it and all primitives beside it. Never waits: that is the part of
:mod:`osloxide.green._core.waits`.

A greenlet runs Python code of the service while it holds the baton, and hands it on when it waits.
So nothing else that waits for the baton runs between two waits, and what is spawned begins when its
maker waits, as with green threads. Three handovers decide what a holder may do that does not wait
here (:data:`HANDOVER`):

- ``yield``: the baton is taken from a thread that sleeps in the kernel (it reads a socket, waits
  for a lock, for a program), and from one that has computed for 0.1 s. The default.
- ``strict``: the baton is taken from a thread that sleeps, never from one that computes. A thread
  that comes back from such a sleep waits for its turn, where ``monkey_patch()`` was asked for what
  it slept in (:mod:`osloxide.green._core.blocking_calls`); else it runs beside the holder until its
  next wait, as with ``yield``.
- ``free``: there is no baton; threads run as the kernel lets them.

A thread that this package did not start (of a WSGI server, of an executor) takes part from the
first wait or spawn on, and is passed over as soon as it sleeps elsewhere.

Rules: eventlet's for the order in which greenthreads run.
"""

from __future__ import annotations

import _thread
import collections
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol

from osloxide.exceptions import ActivationError
from osloxide.green._core import carriers
from osloxide.threads import inherited

LOG = logging.getLogger(__name__)

HANDOVER_VARIABLE = "OSLOXIDE_EVENTLET_HANDOVER"
"""Environment variable that selects the handover: ``yield``, ``strict`` or ``free``."""

_HANDOVERS = ("yield", "strict", "free")

Outcome = tuple[BaseException | None, Any]
"""What a wait comes to: an exception to raise, or None and the value to return."""

NEW, READY, RUNNING, PARKED, DEAD = range(5)
"""What a greenlet is in."""

_PATIENCE = 1.0
"""Seconds that a fork waits for the lock."""

_RETRY = 0.5
"""Seconds after which a greenlet is tried again for which the system had no thread."""


def _read_handover() -> str:
    value = os.environ.get(HANDOVER_VARIABLE) or "yield"
    if value not in _HANDOVERS:
        raise ActivationError(
            f"{HANDOVER_VARIABLE} is {value!r}, which is no handover; "
            f"set it to one of {', '.join(_HANDOVERS)}, or unset it"
        )
    return value


HANDOVER = _read_handover()
"""The handover of this process."""

lock = threading.RLock()
"""Guards the turns and the state of every primitive. Reentrant: signal handlers call them too."""


class TurnTaker:
    """What a greenlet is to the queue: its state, and what its wait comes to."""

    # What holds until it is said: a subclass of greenlet need not call the constructor.
    _state = NEW
    _parent: Any = None
    _arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    _outcome: Outcome | None = None
    _turnstile: Any = None
    _pending: collections.deque[Any] | None = None
    _ident = 0
    _native_id = 0
    _in_switch = False
    _held: tuple[Any, ...] = ()
    """The locks that it has by a ``with`` statement, for a child that it is not in."""
    _waits = 0
    _latch: tuple[Any, Any] | None = None
    _killers: list[Any] | None = None
    """Of the handover ``free``: locks that are opened when it waits next, or ends."""
    in_park = False
    at_turnstile = False
    """Whether it waits, and a signal handler may raise: what the wait has changed is taken back."""
    start_timer: Any = None
    gr_context: Any = None
    _is_hub = False
    """Whether it stands for the hub, which is never suspended."""
    _resumed: int | None = None
    """Of a callback of the hub: how many that it resumed stand at the head of the queue."""

    def __bool__(self) -> bool:
        return self._state != DEAD and (self._state != NEW and self._arguments is None)

    def _bootstrap(self) -> None:
        """All that its thread does for it."""
        raise NotImplementedError

    def _end_in_child(self) -> None:
        """Called in a forked child that does not have it, once it is dead there."""


class _Local(threading.local):
    """Of each native thread: whose code it runs, and what runs it."""

    current: TurnTaker | None = None
    """Whom ``getcurrent()`` names."""
    carrier: TurnTaker | None = None
    """Who takes turns; differs from *current* in callbacks of the hub."""


local = _Local()

main: TurnTaker | None = None
"""That of the main thread, if it has called before."""


class Turns:
    """Who holds the baton and who comes next. Guarded by :data:`lock`."""

    def __init__(self) -> None:
        self.ready: collections.deque[Any] = collections.deque()
        """Greenlets, and objects with ``take_turn()``, in the order of their turns."""
        self.holder: TurnTaker | None = None
        self.count = 0
        """Turns taken so far."""
        self.woken: list[TurnTaker] | None = None
        """Collects those whom an entry of the queue resumes: they come next."""


turns = Turns()


class Clock(Protocol):
    """What this module asks of the clock, always with the lock."""

    heap: list[tuple[float, int, Any]]

    def contended(self) -> None:
        """Something waits for the baton."""

    def collect(self) -> None:
        """Let timers and descriptors that are due take their places in the queue."""

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call *function* in *seconds*."""


clock: Clock = None  # type: ignore[assignment]
"""Set by :mod:`osloxide.green._core.clock`."""

left_behind: list[Any] = []
"""In a forked child: what was in the queue and at the clock, for :mod:`._core.fork`."""

newcomer: Callable[[], TurnTaker] = None  # type: ignore[assignment]
"""Lets the calling thread take part, which has not yet; who takes turns on it from now on. Set by
:mod:`osloxide.green._core.greenlets`."""


def is_in_between() -> bool:
    """Whether an exception of a signal handler would leave something half done here, which another
    greenlet may need: the calling thread has the lock, or has begun a wait and is not in it yet.
    """
    held: Any = lock
    if held._is_owned():
        return True
    me = local.carrier
    return me is not None and not me.at_turnstile and me._state in (READY, PARKED)


# ---- the queue and the baton --------------------------------------------------------------------


def _give(target: TurnTaker) -> bool:
    """Let *target* run; False when there is no thread for it now."""
    starts = target._ident == 0
    target._state = RUNNING
    if HANDOVER != "free":
        turns.holder = target
    turns.count += 1
    if not starts:
        if target._turnstile.locked():  # it is open where the main thread has something to do
            target._turnstile.release()
        return True
    try:
        carriers.run(target._bootstrap)
    except (RuntimeError, MemoryError) as exc:
        LOG.warning("No thread for %r: %s; tried again in %g s", target, exc, _RETRY)
        target._state = READY
        turns.holder = None
        clock.call_later(_RETRY, lambda: queue(target))
        return False
    return True


def queue(target: TurnTaker, *, front: bool = False) -> None:
    """*target* may go on: now, or when its turn comes."""
    if target._state == DEAD:
        return
    target._state = READY
    if HANDOVER == "free":
        _give(target)
    elif turns.woken is not None:
        turns.woken.append(target)
    elif (
        (carrier := local.carrier) is not None
        and carrier._resumed is not None
        and turns.holder is carrier
    ):
        # As if the hub switched to it right here.
        turns.ready.insert(carrier._resumed, target)
        carrier._resumed += 1
        contended()
    elif turns.holder is None and not turns.ready:
        _give(target)
    else:
        if front:
            turns.ready.appendleft(target)
        else:
            turns.ready.append(target)
        contended()


def contended() -> None:
    """Something waits for the baton. Called with the lock."""
    if turns.holder is None:
        pass_on()
    else:
        clock.contended()


def enqueue(entry: Any) -> None:
    """Let ``entry.take_turn()`` be called, with the lock, in its turn. It must not wait."""
    with lock:
        if HANDOVER == "free":
            entry.take_turn()
            return
        turns.ready.append(entry)
        if turns.woken is None:
            contended()


def pass_on() -> None:
    """The baton is free: whoever comes next takes it. Called with the lock."""
    turns.holder = None
    while turns.ready and turns.holder is None:
        entry = turns.ready.popleft()
        if isinstance(entry, TurnTaker):
            if entry._state == READY:
                _give(entry)
            continue
        turns.woken = []
        try:
            entry.take_turn()
        except Exception:
            LOG.exception("A callback of the hub failed")
        finally:
            woken, turns.woken = turns.woken, None
            turns.ready.extendleft(reversed(woken))
    if turns.ready:
        clock.contended()


def let_go(me: TurnTaker) -> None:
    """Hand the baton on, if *me* holds it. Called with the lock."""
    if turns.holder is me:
        pass_on()


def note_pause(me: TurnTaker) -> None:
    """*me* waits, or has ended: whoever killed it goes on. With the lock."""
    killers, me._killers = me._killers, None
    for killer in killers or ():
        killer.release()


def closed_turnstile() -> Any:
    """What a greenlet waits at until its turn comes."""
    turnstile = _thread.allocate_lock()
    turnstile.acquire()
    return turnstile


def switch_value(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``switch()`` hands over."""
    if kwargs:
        return (args, kwargs) if args else kwargs
    return args[0] if len(args) == 1 else args


def resume_with(
    target: TurnTaker,
    outcome: Outcome,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    front: bool = False,
) -> bool:
    """Let a greenlet that waits, or has not begun, go on; with the lock.

    :returns: False when it does neither.
    """
    if target._state == PARKED:
        target._outcome = outcome
    elif target._state == NEW:
        target._arguments = (args, kwargs)
        target._outcome = (outcome[0], None)
    else:
        return False
    queue(target, front=front)
    return True


def resume(target: TurnTaker, value: Any = ()) -> bool:
    """Let *target* return *value* from its wait, when its turn comes. Called with the lock.

    :returns: False, and nothing happens, when it does not wait.
    """
    if target._state != PARKED:
        return False
    return resume_with(target, (None, value), (), {})


def start(target: TurnTaker, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let a new greenlet begin when its turn comes, or one that waits go on. With the lock."""
    resume_with(target, (None, switch_value(args, kwargs)), args, kwargs)


def _forget() -> None:
    """A forked child has the calling thread alone."""
    global left_behind, main
    me = local.carrier
    # The clock of the parent is still the one here: it is a hook of its own that begins another.
    left_behind = [*turns.ready, *(entry for _, _, entry in clock.heap)]
    inherited.keep(turns.ready, turns.woken)
    turns.ready = collections.deque(
        entry for entry in turns.ready if getattr(entry, "outlives_fork", False)
    )
    turns.woken = None
    turns.holder = me
    turns.count += 1
    fresh: Any = lock
    fresh._at_fork_reinit()
    if me is not None:
        me._ident, me._native_id = _thread.get_ident(), _thread.get_native_id()
        me._pending = me._killers = None
    # The thread that has forked is the main one of the child, also one that has never waited here.
    main = me


def _hold() -> None:
    """A fork is about to come: none but its thread has the lock, if that can be had.

    Without it a child may find a primitive as that is between two statements. A thread that has it
    may log a failure, and the one that forks may have the locks of logging.
    """
    lock.acquire(timeout=_PATIENCE)


def _let_go_in_parent() -> None:
    owned: Any = lock
    if owned._is_owned():
        lock.release()


os.register_at_fork(before=_hold, after_in_parent=_let_go_in_parent, after_in_child=_forget)
