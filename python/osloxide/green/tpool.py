"""``eventlet.tpool``: functions on plain native threads.

Every greenthread is a native thread here, so a call blocks no other; :func:`execute` still bounds
how many run at once, as programs count on it. Rules: eventlet.tpool.
"""

from __future__ import annotations

import atexit
import os
import queue as _queue
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from osloxide._typing import override
from osloxide.green import event
from osloxide.green._core import greenlets as _greenlets
from osloxide.green.greenthread import sleep
from osloxide.green.timeout import Timeout
from osloxide.threads import forked, inherited, own

__all__ = ["Proxy", "execute", "killall", "set_num_threads"]

EXC_CLASSES = (Exception, Timeout)
SYS_EXCS = (GeneratorExit, KeyboardInterrupt, SystemExit)

QUIET = True

Empty = _queue.Empty
Queue = _queue.Queue

_nthreads = int(os.environ.get("EVENTLET_THREADPOOL_SIZE", "20"))
_requests: Any = None
_setup_already = False
_threads: list[threading.Thread] = []
_setup_lock = threading.Lock()


def _work(requests: Any) -> None:
    me = threading.current_thread()
    while True:
        request = requests.get()
        if request is None:
            return
        own.leave(me)
        done, function, args, kwargs = request
        try:
            outcome: Any = (None, forked.call(function, *args, **kwargs))
        except BaseException as failure:  # noqa: BLE001 - raised where it was asked for
            if isinstance(failure, EXC_CLASSES):
                traceback.clear_frames(failure.__traceback__)
            outcome = (failure, None)
            del failure
        done.send(outcome)
        # What the function left thread-local is the pool's: as in eventlet.
        del request, done, function, args, kwargs, outcome
        _greenlets.renew()
        own.enter(me)


def setup() -> None:
    """Start the threads, unless they run."""
    with _setup_lock:
        _start_threads()


def _start_threads() -> None:
    """As :func:`setup`, for callers that hold the lock."""
    global _requests, _setup_already
    if _setup_already:
        return
    _setup_already = True
    assert _nthreads >= 0, "Can't specify negative number of threads"
    if _nthreads == 0:
        warnings.warn(
            "Zero threads in tpool.  All tpool.execute calls will execute in main thread.  "
            "Check the value of the environment variable EVENTLET_THREADPOOL_SIZE.",
            RuntimeWarning,
            stacklevel=3,
        )
    _requests = _queue.SimpleQueue()
    for number in range(_nthreads):
        name = f"tpool_thread_{number}"
        thread = own.enter(
            threading.Thread(target=_work, args=(_requests,), name=name, daemon=True)
        )
        thread.start()
        _threads.append(thread)


def execute(meth: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call *meth* on a thread of the pool and wait for it.

    A timeout or ``kill()`` ends the wait, and not the call.

    :returns: what it returned.
    :raises BaseException: what it raised.
    """
    setup()
    if _nthreads == 0 or threading.current_thread() in _threads:
        return meth(*args, **kwargs)
    done = event.Event()
    with _setup_lock:
        # Under the lock: killall() must not end the threads between the look and the request.
        _start_threads()
        _requests.put((done, meth, args, kwargs))
    failure, value = done.wait()
    if failure is None:
        return value
    if not QUIET:
        traceback.print_exception(failure)
        traceback.print_stack()
    try:
        raise failure
    finally:
        del failure


def proxy_call(autowrap: Any, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call *f* on the pool; wrap the result in a :class:`Proxy` when it is one of *autowrap*.

    :param nonblocking: keyword: call it here.
    """
    nonblocking = kwargs.pop("nonblocking", False)
    result = f(*args, **kwargs) if nonblocking else execute(f, *args, **kwargs)
    return Proxy(result, autowrap) if isinstance(result, autowrap) else result


class Proxy:
    """An object whose methods run on the pool.

    :param autowrap: types of results that are wrapped too.
    :param autowrap_names: names of attributes that are.
    """

    def __init__(self, obj: Any, autowrap: Any = (), autowrap_names: Any = ()) -> None:
        self._obj = obj
        self._autowrap = autowrap
        self._autowrap_names = autowrap_names

    def __getattr__(self, attr_name: str) -> Any:
        attribute = getattr(self._obj, attr_name)
        if not callable(attribute):
            if isinstance(attribute, self._autowrap) or attr_name in self._autowrap_names:
                return Proxy(attribute, self._autowrap)
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            result = proxy_call(self._autowrap, attribute, *args, **kwargs)
            if attr_name in self._autowrap_names and not isinstance(result, Proxy):
                return Proxy(result)
            return result

        return call

    def __getitem__(self, key: Any) -> Any:
        return proxy_call(self._autowrap, self._obj.__getitem__, key)

    def __setitem__(self, key: Any, value: Any) -> Any:
        return proxy_call(self._autowrap, self._obj.__setitem__, key, value)

    def __deepcopy__(self, memo: Any = None) -> Any:
        return proxy_call(self._autowrap, self._obj.__deepcopy__, memo)

    def __copy__(self, memo: Any = None) -> Any:
        return proxy_call(self._autowrap, self._obj.__copy__, memo)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "__call__" in self._autowrap_names:
            return Proxy(proxy_call(self._autowrap, self._obj, *args, **kwargs))
        return proxy_call(self._autowrap, self._obj, *args, **kwargs)

    def __enter__(self) -> Any:
        return proxy_call(self._autowrap, self._obj.__enter__)

    def __exit__(self, *exc: Any) -> Any:
        return proxy_call(self._autowrap, self._obj.__exit__, *exc)

    @override
    def __eq__(self, rhs: object) -> bool:
        return bool(self._obj == rhs)

    @override
    def __hash__(self) -> int:
        return hash(self._obj)

    @override
    def __repr__(self) -> str:
        return repr(self._obj)

    @override
    def __str__(self) -> str:
        return str(self._obj)

    def __len__(self) -> int:
        return len(self._obj)

    def __bool__(self) -> bool:
        return bool(self._obj)

    def __iter__(self) -> Any:
        it = iter(self._obj)
        return self if it == self._obj else Proxy(it)

    def next(self) -> Any:
        """The next item."""
        return proxy_call(self._autowrap, next, self._obj)

    __next__ = next


@atexit.register
def killall() -> None:
    """End the threads once they have done what they were given."""
    global _requests, _setup_already
    if _requests is None:
        return
    if not sys.is_finalizing():
        sleep(0)
    with _setup_lock:
        if _requests is None:  # another greenthread was quicker
            return
        ending = _threads.copy()
        for _ in ending:
            _requests.put(None)
        _threads.clear()
        _requests = None
        _setup_already = False
    for thread in ending:
        thread.join()


def set_num_threads(nthreads: int) -> None:
    """How many threads :func:`setup` starts."""
    global _nthreads
    _nthreads = nthreads


def _forget() -> None:
    global _requests, _setup_already, _setup_lock
    inherited.keep(_requests)
    _setup_lock = threading.Lock()
    _threads.clear()
    _requests, _setup_already = None, False


os.register_at_fork(after_in_child=_forget)
