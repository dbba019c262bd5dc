"""Whose turn it is: greenlets, each on a native thread of its own, and the baton they hand on.

Owns the class ``greenlet``, the queue of those that may go on, the baton, and the waits: every wait
of the package ends up in :func:`park`. One lock guards all of it and all primitives beside it.

A greenlet runs Python code of the service while it holds the baton, and hands it on when it waits.
So nothing else that waits for the baton runs between two waits, and what is spawned begins when its
maker waits, as with green threads. Three handovers decide what a holder may do that does not wait
here (:data:`HANDOVER`):

- ``yield``: the baton is taken from a thread that sleeps in the kernel (it reads a socket, waits
  for a lock, for a program), and from one that has computed for 0.1 s. The default.
- ``strict``: the baton is taken from a thread that sleeps, never from one that computes. A thread
  that comes back from such a sleep runs beside the holder until its next wait.
- ``free``: there is no baton; threads run as the kernel lets them.

A thread that this module did not start (of a WSGI server, of an executor) takes part from the first
wait or spawn on, and is passed over as soon as it sleeps elsewhere.

Rules: greenlet's documentation for the class; eventlet's for the order in which greenthreads run.
"""

from __future__ import annotations

import _thread
import collections
import itertools
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from osloxide._typing import override
from osloxide.exceptions import ActivationError
from osloxide.green._core import carriers
from osloxide.green._core.handle import GreenThreadHandle
from osloxide.threads import inherited
from osloxide.threads.pool_thread import register_thread

LOG = logging.getLogger(__name__)

HANDOVER_VARIABLE = "OSLOXIDE_EVENTLET_HANDOVER"
"""Environment variable that selects the handover: ``yield``, ``strict`` or ``free``."""

_HANDOVERS = ("yield", "strict", "free")

Outcome = tuple[BaseException | None, Any]
"""What a wait comes to: an exception to raise, or None and the value to return."""

_NEW, _READY, _RUNNING, _PARKED, _DEAD = range(5)

_RETRY = 0.5
"""Seconds after which a greenlet is tried again for which the system had no thread."""

_numbers = itertools.count(1)


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


class GreenletExit(BaseException):
    """Raised in a greenlet that is killed; one that lets it pass ends without a complaint."""


class error(Exception):  # noqa: N801 - greenlet's name
    """A greenlet was used in a way that greenlet refuses."""


class _Local(threading.local):
    """Of each native thread: whose code it runs, and what runs it."""

    current: greenlet | None = None
    """Whom ``getcurrent()`` names."""
    carrier: greenlet | None = None
    """Who takes turns; differs from *current* in callbacks of the hub."""


_local = _Local()


class greenlet:  # noqa: N801 - greenlet's name
    """A function on a native thread that takes turns with others.

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
        self._prepare(_NEW, getcurrent() if parent is None else parent)

    def _prepare(self, state: int, parent: greenlet | None) -> None:
        self._state = state
        self._parent = parent
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._outcome: Outcome | None = None
        self._turnstile: Any = None
        self._pending: collections.deque[Any] | None = None
        self._ident = 0
        self._native_id = 0
        self._awaited = False
        self._waits = 0
        self._latch: tuple[Any, Any] | None = None
        self.in_park = False
        self.start_timer: Any = None
        self.gr_context: Any = None

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
        self._parent = parent

    def _get_parent(self) -> greenlet | None:
        return self._parent

    @property
    def dead(self) -> bool:
        """Whether it has ended."""
        return self._state == _DEAD

    @property
    def gr_frame(self) -> Any:
        """The innermost frame of one that is suspended."""
        return sys._current_frames().get(self._ident) if self else None

    def __bool__(self) -> bool:
        return self._state != _DEAD and (self._state != _NEW and self._arguments is None)

    def switch(self, *args: Any, **kwargs: Any) -> Any:
        """Let this greenlet go on at once; the caller waits until something switches to it.

        :returns: what the caller is switched to with.
        """
        me, current = _me(), getcurrent()
        value = _value(args, kwargs)
        if self is current:
            return value
        with lock:
            if self._state == _DEAD:
                return value
            if is_hub(current):
                _resume(self, (None, value), args, kwargs, front=True)
                return None
            self._awaited = self._parent is current
            me._state, me._outcome = _PARKED, None
            _resume(self, (None, value), args, kwargs, front=True)
            _let_go(me)
        return _await(me)

    def throw(self, *throw_args: Any) -> Any:
        """Raise an exception in this greenlet at once, :class:`GreenletExit` if none is given.

        The caller waits until something switches to it; called in a callback of the hub, and for a
        greenlet that has ended or not begun, it does not.
        """
        me, current = _me(), getcurrent()
        exception = normalize(*throw_args)
        if self is current:
            raise exception
        with lock:
            if self._state == _DEAD:
                if isinstance(exception, GreenletExit):
                    return exception
                raise exception
            if not self:
                _bury(self, exception)
                if isinstance(exception, GreenletExit):
                    return exception
                raise exception
            interrupt(self, exception, front=True)
            if is_hub(current):
                return None
            self._awaited = self._parent is current
            me._state, me._outcome = _PARKED, None
            _let_go(me)
        return _await(me)

    @override
    def __repr__(self) -> str:
        name = type(self).__name__
        states = ("pending", "ready", "running", "suspended", "dead")
        return f"<{name} object at {id(self):#x} {states[self._state]}>"

    # ---- its thread -----------------------------------------------------------------------------

    def _bootstrap(self) -> None:
        """All that its thread does for it."""
        renew()  # destructors of what the thread did before may have taken a turn
        _local.carrier = self
        _local.current = self._identity or self
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
            _local.carrier = _local.current = None
            thread.leave()  # type: ignore[attr-defined]

    def _run(self) -> Any:
        (failure, _), (args, kwargs) = self._outcome or (None, None), self._arguments or ((), {})
        self._outcome = self._arguments = None
        if failure is not None:
            raise failure
        run = self.run
        self.__dict__.pop("run", None)
        result = run(*args, **kwargs)
        settle()
        return result

    def _end(self, result: Any, failure: BaseException | None) -> None:
        parent = self._parent
        delivered = False
        with lock:
            awaited = self._awaited and parent is not None and parent._state == _PARKED
        if not awaited and failure is not None:
            report_failure(failure)
        with lock:
            self._state = _DEAD
            if awaited and parent is not None:
                delivered = True
                _resume(parent, (failure, result), (), {}, front=True)
            del delivered
            _let_go(self)


class _Main(greenlet):
    """The code of a native thread that this package did not start."""

    def __init__(self) -> None:
        self._prepare(_RUNNING, None)
        self._ident, self._native_id = _thread.get_ident(), _thread.get_native_id()


class Callback(greenlet):
    """Runs a callback of the hub, whose greenlet its code sees as the current one."""

    def __init__(self, run: Callable[..., Any], hub: greenlet) -> None:
        super().__init__(run, hub)
        self._identity = hub
        self.resumed = 0
        """How many of those that it resumed stand at the head of the queue."""


class HubGreenlet(greenlet):
    """Whom ``getcurrent()`` names in callbacks of the hub. Never suspended, never ends."""

    def __init__(self) -> None:
        self._prepare(_RUNNING, None)

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
                _resume(main, (None, exception), (), {}, front=True)
            else:
                interrupt(main, exception, front=True)
        return park()


hub_greenlet = HubGreenlet()
"""The one of the hub."""


def _value(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``switch()`` hands over."""
    if kwargs:
        return (args, kwargs) if args else kwargs
    return args[0] if len(args) == 1 else args


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


# ---- who calls ----------------------------------------------------------------------------------


def getcurrent() -> greenlet:
    """The greenlet whose code calls; native threads have one too."""
    current = _local.current
    if current is None:
        current = _local.current = _local.carrier = _Main()
        if threading.current_thread() is threading.main_thread():
            global _main
            _main = current
    return current


def _me() -> greenlet:
    getcurrent()
    carrier = _local.carrier
    assert carrier is not None
    return carrier


_main: greenlet | None = None


def main_greenlet() -> greenlet | None:
    """That of the main thread, if it has called before."""
    return _main


def is_hub(current: greenlet) -> bool:
    """Whether *current* stands for the hub."""
    return isinstance(current, HubGreenlet)


def renew() -> None:
    """The calling native thread begins something else: its greenlet ends, the next is a new one.

    Local data and local timers of what it did before do not outlive it.
    """
    old = _local.carrier
    if isinstance(old, _Main):
        with lock:
            old._state = _DEAD
            _let_go(old)
        _local.current = _local.carrier = None


# ---- turns --------------------------------------------------------------------------------------


class Turns:
    """Who holds the baton and who comes next. Guarded by :data:`lock`."""

    def __init__(self) -> None:
        self.ready: collections.deque[Any] = collections.deque()
        """Greenlets, and objects with ``take_turn()``, in the order of their turns."""
        self.holder: greenlet | None = None
        self.count = 0
        """Turns taken so far."""
        self.woken: list[greenlet] | None = None
        """Collects those whom an entry of the queue resumes: they come next."""


turns = Turns()


class Clock(Protocol):
    """What this module asks of the clock, always with the lock."""

    def contended(self) -> None:
        """Something waits for the baton."""

    def collect(self) -> None:
        """Let timers and descriptors that are due take their places in the queue."""

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call *function* in *seconds*."""

    def interrupt_later(self, target: greenlet, entry: Any) -> None:
        """Raise ``entry.exception`` in *target* where it computes, unless it waits before."""


clock: Clock = None  # type: ignore[assignment]
"""Set by :mod:`osloxide.green._core.clock`."""


def _give(target: greenlet) -> bool:
    """Let *target* run; False when there is no thread for it now."""
    starts = target._ident == 0
    target._state = _RUNNING
    if HANDOVER != "free":
        turns.holder = target
    turns.count += 1
    if not starts:
        target._turnstile.release()
        return True
    try:
        carriers.run(target._bootstrap)
    except (RuntimeError, MemoryError) as exc:
        LOG.warning("No thread for %r: %s; tried again in %g s", target, exc, _RETRY)
        target._state = _READY
        turns.holder = None
        clock.call_later(_RETRY, lambda: _queue(target))
        return False
    return True


def _queue(target: greenlet, *, front: bool = False) -> None:
    """*target* may go on: now, or when its turn comes."""
    if target._state == _DEAD:
        return
    target._state = _READY
    if HANDOVER == "free":
        _give(target)
    elif turns.woken is not None:
        turns.woken.append(target)
    elif isinstance(carrier := _local.carrier, Callback) and turns.holder is carrier:
        # As if the hub switched to it right here.
        turns.ready.insert(carrier.resumed, target)
        carrier.resumed += 1
        _contended()
    elif turns.holder is None and not turns.ready:
        _give(target)
    else:
        if front:
            turns.ready.appendleft(target)
        else:
            turns.ready.append(target)
        _contended()


def _contended() -> None:
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
            _contended()


def pass_on() -> None:
    """The baton is free: whoever comes next takes it. Called with the lock."""
    turns.holder = None
    while turns.ready and turns.holder is None:
        entry = turns.ready.popleft()
        if isinstance(entry, greenlet):
            if entry._state == _READY:
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


def _let_go(me: greenlet) -> None:
    if turns.holder is me:
        pass_on()


def hold() -> None:
    """Take the baton, so that what the caller is about to begin does not run before it waits."""
    if HANDOVER == "free":
        return
    me = _me()
    with lock:
        if turns.holder is me:
            return
        if turns.holder is None and not turns.ready:
            turns.holder = me
            turns.count += 1
            return
        _line_up(me)
    _await(me)


def _line_up(me: greenlet) -> None:
    if me._turnstile is None:
        me._turnstile = _closed()
    me._outcome = (None, ())
    me._state = _READY
    turns.ready.append(me)
    if turns.holder is me:
        pass_on()
    else:
        _contended()


def _closed() -> Any:
    turnstile = _thread.allocate_lock()
    turnstile.acquire()
    return turnstile


def _resume(
    target: greenlet,
    outcome: Outcome,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    front: bool = False,
) -> bool:
    """Let a greenlet that waits, or has not begun, go on; with the lock.

    :returns: False when it does neither.
    """
    if target._state == _PARKED:
        target._outcome = outcome
    elif target._state == _NEW:
        target._arguments = (args, kwargs)
        target._outcome = (outcome[0], None)
    else:
        return False
    _queue(target, front=front)
    return True


def resume(target: greenlet, value: Any = ()) -> bool:
    """Let *target* return *value* from its wait, when its turn comes. Called with the lock.

    :returns: False, and nothing happens, when it does not wait.
    """
    if target._state != _PARKED:
        return False
    return _resume(target, (None, value), (), {})


def start(target: greenlet, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let a new greenlet begin when its turn comes, or one that waits go on. With the lock."""
    _resume(target, (None, _value(args, kwargs)), args, kwargs)


def suspend() -> greenlet:
    """Begin a wait; called with the lock, which is released before :func:`await_turn`.

    What resumes the caller may come from here on: it cannot be missed in between. The baton is
    handed on by :func:`await_turn`, when the caller has noted everywhere that it waits.

    :raises BaseException: what a timeout or ``kill()`` wants it to raise; then it does not wait.
    """
    if is_hub(getcurrent()):
        raise RuntimeError("do not call blocking functions from the mainloop")
    me = _me()
    exception = _due(me)
    if exception is not None:
        raise exception
    if me._turnstile is None:
        me._turnstile = _closed()
    me._state, me._outcome = _PARKED, None
    me._waits += 1
    return me


def park() -> Any:
    """Wait until something switches to the caller; ``hub.switch()``.

    :returns: the value that it is switched to with.
    """
    with lock:
        me = _me()
        if me._latch is not None:
            # It came between the caller's request and its wait.
            (value, _), me._latch = me._latch, None
            return value
        me = suspend()
        me.in_park = True
    try:
        return _await(me)
    finally:
        me.in_park = False


def latch(target: greenlet, value: Any, source: Any = None) -> None:
    """Something switches to a greenlet that runs: its next :func:`park` returns. With the lock.

    :param source: who does; see :func:`unlatch`.
    """
    if target._state == _RUNNING:
        target._latch = (value, source)


def unlatch(target: greenlet, source: Any) -> None:
    """What *source* switched to *target* for is over: no later wait returns for it."""
    with lock:
        if target._latch is not None and target._latch[1] is source:
            target._latch = None


class Wake:
    """Resumes a greenlet from the wait that it has begun, and from no other."""

    __slots__ = ("called", "target", "value", "waits")

    def __init__(self, target: greenlet, value: Any = ()) -> None:
        self.target, self.value, self.waits, self.called = target, value, target._waits, False

    def expire(self) -> None:
        """Its time has come."""
        enqueue(self)

    def take_turn(self) -> None:
        """Its place in the queue has come."""
        if not self.called and self.waits == self.target._waits:
            self.called = True
            resume(self.target, self.value)


def _await(me: greenlet) -> Any:
    """The wait itself, without the lock: hands the baton on and waits to get it back."""
    with lock:
        if turns.holder is me and me._state != _RUNNING:
            pass_on()
    if me._turnstile is None:
        me._turnstile = _closed()
    try:
        me._turnstile.acquire()
    except BaseException:
        # A signal handler of the main thread has raised.
        _give_up(me)
        raise
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


def _give_up(me: greenlet) -> None:
    with lock:
        if me._state == _READY and me in turns.ready:
            turns.ready.remove(me)
        # Open when its turn had come already.
        me._turnstile.acquire(False)
        me._state, me._outcome = _RUNNING, None


def yield_turn() -> None:
    """Let all others go first whose turn has come."""
    me = _me()
    waits = False
    with lock:
        exception = _due(me)
        if exception is None:
            clock.collect()
            if HANDOVER == "free" or (turns.holder in (me, None) and not turns.ready):
                if HANDOVER != "free" and turns.holder is None:
                    turns.holder = me
                    turns.count += 1
            else:
                _line_up(me)
                waits = True
    if exception is not None:
        raise exception
    if waits:
        _await(me)
    else:
        time.sleep(0)  # others may want the interpreter


await_turn = _await


# ---- interruption -------------------------------------------------------------------------------


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


def _due(me: greenlet) -> BaseException | None:
    """The exception that waits for *me*, if any. With the lock."""
    while me._pending:
        interruption = me._pending.popleft()
        if not interruption.called:
            interruption.called = True
            return interruption.exception  # type: ignore[no-any-return]
    return None


def interrupt(
    target: greenlet, exception: BaseException, entry: Any = None, *, front: bool = False
) -> None:
    """Raise *exception* in *target*: in its wait, or else where it is. Called with the lock.

    :param entry: an :class:`Interruption` that may be taken back until it is raised.
    """
    if target._state == _DEAD:
        return
    if target._state == _PARKED or (target._state == _READY and target._ident and front):
        if entry is not None:
            entry.called = True
        was_ready = target._state == _READY
        if was_ready and target in turns.ready:
            turns.ready.remove(target)
        target._outcome = (exception, None)
        _queue(target, front=front)
        return
    if not target:
        _bury(target, exception)
        return
    if entry is None:
        entry = Interruption(exception)
    if target._pending is None:
        target._pending = collections.deque()
    target._pending.append(entry)
    clock.interrupt_later(target, entry)


def _bury(target: greenlet, exception: BaseException) -> None:
    """End a greenlet that has not begun."""
    target._state = _DEAD
    target._arguments = target._outcome = None
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
        main = main_greenlet()
        if main is not None:
            with lock:
                interrupt(main, failure, front=True)
            return
        _thread.interrupt_main()
        return
    if report_exceptions:
        traceback.print_exception(failure)
        sys.stderr.flush()


def _forget() -> None:
    """A forked child has the calling thread alone."""
    global lock, turns, _main
    me = _local.carrier
    inherited.keep(turns.ready, turns.woken)
    turns.ready = collections.deque()
    turns.woken = None
    turns.holder = me
    turns.count += 1
    fresh: Any = lock
    fresh._at_fork_reinit()
    if me is not None:
        me._ident, me._native_id = _thread.get_ident(), _thread.get_native_id()
        me._pending = None
        _main = me


os.register_at_fork(after_in_child=_forget)
