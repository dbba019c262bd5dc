"""``eventlet.dagpool``: greenthreads that begin when what they depend on is there.

Rules: eventlet.dagpool.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from osloxide._typing import override
from osloxide.green import greenthread
from osloxide.green._core.turns import lock
from osloxide.green.event import Event

__all__ = ["Collision", "DAGPool", "PropagateError"]

_MISSING: Any = object()


class Collision(Exception):
    """A key is in use already."""


class PropagateError(Exception):
    """The greenthread of a key failed.

    :ivar key: that key.
    :ivar exc: what the greenthread raised.
    """

    def __init__(self, key: Any, exc: BaseException) -> None:
        self.msg = f"PropagateError({key}): {type(exc).__name__}: {exc}"
        super().__init__(self.msg)
        # So that it can be pickled.
        self.args = (key, exc)
        self.key = key
        self.exc = exc

    @override
    def __str__(self) -> str:
        return self.msg


class DAGPool:
    """Greenthreads with keys, and the values that they and others have come to.

    :param preload: values that are there from the beginning: a dict, or pairs.
    """

    _Coro = collections.namedtuple("_Coro", ("greenthread", "pending"))

    def __init__(self, preload: Any = ()) -> None:
        self.values: dict[Any, Any] = dict(preload)
        self.coros: dict[Any, Any] = {}
        self.event = Event()

    def waitall(self) -> dict[Any, Any]:
        """Wait for all keys that are known; their values."""
        return self.wait()

    def wait(self, keys: Iterable[Any] = _MISSING) -> dict[Any, Any]:
        """Wait for *keys*, all that are known if left out; their values.

        :raises PropagateError: one of them failed.
        """
        return dict(self.wait_each(keys))

    def wait_each(self, keys: Iterable[Any] = _MISSING) -> Iterator[tuple[Any, Any]]:
        """Pairs of key and value, as they come.

        :raises PropagateError: one of them failed.
        """
        return self._wait_each(self._keys(keys))

    def wait_each_success(self, keys: Iterable[Any] = _MISSING) -> Iterator[tuple[Any, Any]]:
        """As :meth:`wait_each`, without those that failed."""
        for key, value in self._wait_each_raw(self._keys(keys)):
            if not isinstance(value, PropagateError):
                yield key, value

    def wait_each_exception(self, keys: Iterable[Any] = _MISSING) -> Iterator[tuple[Any, Any]]:
        """As :meth:`wait_each`, those that failed alone, with their errors as values."""
        for key, value in self._wait_each_raw(self._keys(keys)):
            if isinstance(value, PropagateError):
                yield key, value

    def _keys(self, keys: Iterable[Any]) -> set[Any]:
        if keys is not _MISSING:
            return set(keys)
        with lock:
            return {*self.coros, *self.values}

    def _wait_each(self, pending: set[Any]) -> Iterator[tuple[Any, Any]]:
        for key, value in self._wait_each_raw(pending):
            yield key, self._value_or_raise(value)

    @staticmethod
    def _value_or_raise(value: Any) -> Any:
        if isinstance(value, PropagateError):
            raise value
        return value

    def _wait_each_raw(self, pending: set[Any]) -> Iterator[tuple[Any, Any]]:
        """Removes from *pending* what it yields: it tells what is still waited for."""
        while True:
            # Taken before the look: a value that comes after it wakes this.
            event = self.event
            for key in pending.copy():
                value = self.values.get(key, _MISSING)
                if value is not _MISSING:
                    pending.remove(key)
                    yield key, value
            if not pending:
                return
            event.wait()

    def spawn(
        self,
        key: Any,
        depends: Iterable[Any],
        function: Callable[..., Any],
        *args: Any,
        **kwds: Any,
    ) -> None:
        """Run ``function(key, results, *args, **kwds)``; *results* yields what *depends* come to.

        :raises Collision: *key* is in use.
        """
        with lock:
            if key in self.coros or key in self.values:
                raise Collision(key)
            pending = set(depends)
            # Held until it is noted: the wrapper takes the note out.
            coro = self.coros[key] = self._Coro(None, pending)
        g = greenthread.spawn(self._wrapper, function, key, self._wait_each(pending), *args, **kwds)
        with lock:
            if self.coros.get(key) is coro:
                self.coros[key] = coro._replace(greenthread=g)

    def _wrapper(
        self, function: Callable[..., Any], key: Any, results: Any, *args: Any, **kwds: Any
    ) -> Any:
        try:
            result = function(key, results, *args, **kwds)
        except Exception as error:  # noqa: BLE001 - becomes the value
            result = PropagateError(key, error)
        finally:
            self.coros.pop(key, None)
        # It may have posted a value itself.
        with contextlib.suppress(Collision):
            self.post(key, result)
        return result

    def spawn_many(
        self,
        depends: dict[Any, Iterable[Any]],
        function: Callable[..., Any],
        *args: Any,
        **kwds: Any,
    ) -> None:
        """:meth:`spawn` for each key of *depends*."""
        for key, needs in depends.items():
            self.spawn(key, needs, function, *args, **kwds)

    def kill(self, key: Any) -> None:
        """Kill the greenthread of *key*.

        :raises KeyError: there is none.
        """
        self.coros[key].greenthread.kill()
        self.coros.pop(key, None)

    def post(self, key: Any, value: Any, replace: bool = False) -> None:
        """Set the value of *key*.

        :raises Collision: a greenthread is at it, or it has one, unless *replace*.
        """
        with lock:
            coro = self.coros.get(key)
            if coro is not None and coro.greenthread is not greenthread.getcurrent():
                raise Collision(key)
            if key in self.values and not replace:
                raise Collision(key)
            self.values[key] = value
            event, self.event = self.event, Event()
            event.send()

    def __getitem__(self, key: Any) -> Any:
        """Wait for the value of *key*."""
        for _, value in self.wait_each((key,)):
            return value
        raise KeyError(key)

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of *key*, or *default* when there is none yet."""
        return self._value_or_raise(self.values.get(key, default))

    def keys(self) -> tuple[Any, ...]:
        """The keys that have values."""
        return tuple(self.values)

    def items(self) -> tuple[tuple[Any, Any], ...]:
        """The keys that have values, and these."""
        return tuple((key, self._value_or_raise(value)) for key, value in self.values.items())

    def running(self) -> int:
        """Count the greenthreads."""
        return len(self.coros)

    def running_keys(self) -> tuple[Any, ...]:
        """The keys of the greenthreads."""
        return tuple(self.coros)

    def waiting(self) -> int:
        """Count the greenthreads that wait for others."""
        return len(self.waiting_for())

    def waiting_for(self, key: Any = _MISSING) -> Any:
        """What the greenthread of *key* still waits for: a set; of all greenthreads: a dict.

        :raises KeyError: there is no such greenthread.
        """
        with lock:
            if key is not _MISSING:
                coro = self.coros.get(key)
                if coro is None:
                    self.values[key]  # KeyError when it is unknown
                    return set()
                return coro.pending - self.values.keys()
            waiting = {key: coro.pending - self.values.keys() for key, coro in self.coros.items()}
            return {key: pending for key, pending in waiting.items() if pending}
