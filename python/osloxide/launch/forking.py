"""What has to hold around ``os.fork()`` in a parent of workers.

Owns the check that no native thread runs but those that a child can do without, the wait until no
other thread computes or is in the midst of a greenthread's step or of a looping call, the warning
about them, and the pause of logging: a thread that is in the middle of a record holds the lock of
its stream, which CPython resets in the child for the standard streams only (a log file stays locked
there for ever). The locks of ``logging`` itself are reset by its own at-fork hooks.
Forks nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from osloxide import _native, exceptions
from osloxide.activation import before_fork
from osloxide.launch import orphans
from osloxide.signals import careful_log, signal_handler
from osloxide.threads import cpu_time, own, pausing

LOG = careful_log.logger(__name__)

_HARMLESS = frozenset({"osloxide-watch", "amqp-heartbeats", "amqp-client", "amqp-listeners"})
"""Native threads that may run during a fork: they run no Python, and a child touches nothing that
they lock. The watch thread is there in a process that is told to stop; the others as soon as a
parent of workers speaks to RabbitMQ, and a killed worker has to be replaced all the same. A child
makes clients and listeners of its own (osloxide.messaging.rabbit.native_client)."""
_EXECUTORS = re.compile(r"rpc-\d+")
"""Names of the threads of executors, which run a service's endpoints. They may run during a fork as
any thread of the application, and are waited for as such: a parent of workers may serve as well,
and its killed workers have to be replaced all the same. A child leaves the executors of its parent
alone (src/executor), and starts its servers with others (osloxide.messaging.hook)."""
_ENDING = 0.5
"""Seconds that native threads may take to end which have nothing left to do."""
_BETWEEN_LOOKS = 0.02
"""Seconds between two looks at the other threads; four switch intervals at least."""
_NEXT_REST = 1.0
rest = 5.0
"""Seconds that the other threads get to come to a wait before the next fork: most before the first
one, and two looks' worth after one that has waited in vain. Where the machine keeps CPU from them,
that time does not count."""
_STARVED = 12.0
"""How many times as long the fork waits then, at most."""
pause = 2.0
"""Seconds that greenthreads which sleep in a system call get to come to a wait of eventlet's, and
looping calls to come to the end of a call, before the next fork: most before the first one, and a
look after one that has waited in vain, as for a call that never ends. Never more than
:data:`rest`."""
_COMPUTES, _IN_THE_MIDST = "computes", "in the midst"
_gc_is_frozen = False

PATIENCE = 1.0
"""Seconds that a fork waits for handlers in all; one that is stuck longer keeps its risk."""


@contextlib.contextmanager
def logging_paused() -> Iterator[None]:
    """Hold the lock of ``logging`` and those of all handlers, so that none is in the middle of a
    record.

    In the child ``logging`` has made new locks by then for all handlers that have them from it; a
    lock or a semaphore of ``threading`` that a handler has made by itself is free there too. One of
    any other kind is left alone: it may not know how to wait for a time, and the processes may
    share it, as they do one that is a token in a pipe. The lock of the module comes first, as in
    ``logging`` itself: code that configures logging holds it while it asks for the locks of
    handlers, and CPython asks for it during a fork.

    What the lock of a handler raises as it is asked for is raised here, and none stays held.
    """
    parent, deadline = os.getpid(), time.monotonic() + PATIENCE
    held: list[Any] = []
    own_locks: list[Any] = []

    def hold(lock: Any) -> bool:
        if not _can_be_freed_in_child(lock):
            return False
        if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return False
        held.append(lock)
        return True

    try:
        hold(getattr(logging, "_lock", None))
        # By identity: a handler may be of a class that has no hash.
        renewed = {id(handler) for handler in logging._at_fork_reinit_lock_weakset}  # type: ignore[attr-defined]
        for handler in [reference() for reference in list(logging._handlerList)]:  # type: ignore[attr-defined]
            lock = getattr(handler, "lock", None)
            is_own = isinstance(lock, threading.Semaphore) or id(handler) not in renewed
            if hold(lock) and is_own:
                own_locks.append(lock)
        yield
    finally:
        if os.getpid() == parent:
            for lock in reversed(held):
                lock.release()
        else:
            for lock in own_locks:
                _free_in_child(lock)


def _can_be_freed_in_child(lock: Any) -> bool:
    """Whether *lock* is a lock of CPython's, or a semaphore that is made of one."""
    is_semaphore = isinstance(lock, threading.Semaphore)
    innermost = lock._cond._lock if is_semaphore else lock
    return hasattr(innermost, "_at_fork_reinit")


def _free_in_child(lock: Any) -> None:
    """In the child: free *lock*, which this thread has held during the fork."""
    if isinstance(lock, threading.Semaphore):
        # Another thread may have been in the midst of asking for it.
        lock._cond._at_fork_reinit()  # type: ignore[attr-defined]
        lock.release()
    else:
        lock._at_fork_reinit()


@contextlib.contextmanager
def of_worker() -> Iterator[None]:
    """Around the fork of a worker, which takes its signal handlers over by itself."""
    signal_handler.is_forking_worker = True
    try:
        yield
    finally:
        signal_handler.is_forking_worker = False


def prepare() -> None:
    """Check that a fork is sound, and keep the collector from copying every page in the child.

    The first call has libraries make before what every worker would make in its first request.

    :raises ForkAfterThreadsError: native threads run in this process.
    """
    global _gc_is_frozen, pause, rest
    if not _gc_is_frozen:
        # Before other threads are waited for: it takes so long that their rest may be over by then.
        before_fork.prepare()
    hindrance = _await_rest(rest, pause)
    rest = _BETWEEN_LOOKS if hindrance == _COMPUTES else _NEXT_REST
    pause = _BETWEEN_LOOKS if hindrance == _IN_THE_MIDST else _NEXT_REST
    native = _native_threads()
    if native:
        raise exceptions.ForkAfterThreadsError(
            f"cannot fork a worker: native threads run in this process already "
            f"({', '.join(native)}); launch services before starting servers"
        )
    if _gc_is_frozen:
        return
    orphans.freeze()
    _gc_is_frozen = True
    others = [thread.name for thread in own.of_application()]
    if others:
        if unknown := _native.unknown_thread_data():
            LOG.warning(
                "osloxide does not find what CPython %s keeps for each thread (%s): a worker "
                "destroys what the other threads have there, which may end connections of this "
                "process; upgrade osloxide, or start threads in the service's start()",
                platform.python_version(),
                ", ".join(unknown),
            )
        LOG.warning(
            "Forking workers while %d other threads run (%s): a lock that one of them holds now "
            "stays locked in the worker for ever; start threads in the service's start()",
            len(others),
            ", ".join(sorted(others)),
        )


def _await_rest(seconds: float, pause: float) -> str:
    """Wait until the other threads of the application wait for something.

    :param seconds: that they get until then, without those in which they wait for CPU.
    :param pause: seconds that they get, once none computes, to come to a wait of eventlet's or to
        the end of a looping call.
    :returns: blank, or what was waited for in vain: one still computes, or is in the midst of such.

    A thread that computes may hold a lock, as one does that loads a driver, and in the child nobody
    gives it back. Greenthreads, for which such services were written, never compute during a fork:
    the one that forks does. One that asks its database in the midst of something may hold a lock
    as well: eventlet's child would go on with it. So may a looping call, of the THREADING backend
    too.
    """
    asleep, between = 0.0, max(_BETWEEN_LOOKS, 4 * sys.getswitchinterval())
    first: dict[int, cpu_time.Times] = {}
    seen: dict[int, str] = {}
    _had([thread.native_id or 0 for thread in own.of_application()], first, 0.0)
    # The clock after the times: what the machine takes in between counts as kept from the threads.
    began = time.monotonic()
    while others := [thread.native_id or 0 for thread in own.of_application()]:
        waited = time.monotonic() - began
        if all(_native.thread_waits(native_id, seen.get(native_id, "")) for native_id in others):
            if pausing.are_at_rest():
                return ""
            asleep += between
            if asleep >= min(seconds, pause):
                return _IN_THE_MIDST
        if waited >= seconds * _STARVED or _had(others, first, waited) >= seconds:
            return _COMPUTES
        seen = {native_id: _native.thread_state(native_id) for native_id in others}
        time.sleep(between)
    return ""


def _had(threads: list[int], first: dict[int, cpu_time.Times], waited: float) -> float:
    """Seconds that *threads* have had since they were first asked for: all of *waited* but what the
    machine kept from the one that got least, or the CPU that they used together where that is more.

    One that sleeps so briefly that it is never seen asleep uses hardly any CPU, and is kept from
    none.

    :param first: the times of each when it was first asked for.
    :param waited: seconds of the clock; what counts where the kernel does not tell.
    """
    used = kept_from = 0.0
    for native_id in threads:
        times = cpu_time.of(native_id)
        if times is None:
            return waited
        before = first.setdefault(native_id, times)
        used += times.used - before.used
        kept_from = max(kept_from, times.kept_from - before.kept_from)
    return max(used, waited - kept_from)


def _native_threads() -> list[str]:
    """Names of the threads that the native core has here, once those that are ending have ended.

    Those of :data:`_HARMLESS` and :data:`_EXECUTORS` do not count.
    """
    deadline = time.monotonic() + _ENDING
    while names := sorted(
        name for name in set(_native.native_threads()) - _HARMLESS if not _EXECUTORS.fullmatch(name)
    ):
        if time.monotonic() >= deadline:
            return names
        time.sleep(0.001)
    return []
