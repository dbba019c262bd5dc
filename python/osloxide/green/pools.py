"""``eventlet.pools``: things made on demand, lent and given back. Rules: eventlet.pools."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from osloxide._typing import override
from osloxide.green import queue
from osloxide.green._core.turns import lock

__all__ = ["Pool", "TokenPool"]


class Pool:
    """Lends what :meth:`create` makes.

    :param min_size: made at once.
    :param max_size: most that exist; who wants one more waits.
    :param order_as_stack: lend what came back last; else what came back first.
    :param create: makes one; else a subclass has the method.
    """

    def __init__(
        self,
        min_size: int = 0,
        max_size: int = 4,
        order_as_stack: bool = False,
        create: Callable[[], Any] | None = None,
    ) -> None:
        self.min_size = min_size
        self.max_size = max_size
        self.order_as_stack = order_as_stack
        self.current_size = 0
        self.channel = queue.LightQueue(0)
        self.free_items: collections.deque[Any] = collections.deque()
        if create is not None:
            self.create = create  # type: ignore[method-assign]
        for _ in range(min_size):
            self.current_size += 1
            self.free_items.append(self.create())

    def get(self) -> Any:
        """Borrow one; wait until there is one."""
        with lock:
            if self.free_items:
                return self.free_items.popleft()
            makes = self.current_size < self.max_size
            if makes:
                self.current_size += 1
        if not makes:
            return self.channel.get()
        try:
            return self.create()
        except BaseException:
            self.current_size -= 1
            raise

    @contextlib.contextmanager
    def item(self) -> Iterator[Any]:
        """Borrow one for a block."""
        obj = self.get()
        try:
            yield obj
        finally:
            self.put(obj)

    def put(self, item: Any) -> None:
        """Give *item* back."""
        with lock:
            if self.current_size > self.max_size:
                self.current_size -= 1
                return
            waiting = self.waiting()
        if waiting:
            try:
                self.channel.put(item, block=False)
            except queue.Full:
                pass
            else:
                return
        with lock:
            if self.order_as_stack:
                self.free_items.appendleft(item)
            else:
                self.free_items.append(item)

    def resize(self, new_size: int) -> None:
        """Change how many may exist; it takes effect as they come back."""
        self.max_size = new_size

    def free(self) -> int:
        """Count those that could be borrowed at once."""
        return len(self.free_items) + self.max_size - self.current_size

    def waiting(self) -> int:
        """Count the greenthreads that wait for one."""
        return max(0, self.channel.getting() - self.channel.putting())

    def create(self) -> Any:
        """Make one.

        :raises NotImplementedError: neither *create* nor a subclass says how.
        """
        raise NotImplementedError("Implement in subclass")


class Token:
    """What a :class:`TokenPool` lends."""


class TokenPool(Pool):
    """Lends tokens: who has one may use what they stand for."""

    @override
    def create(self) -> Any:
        """A token."""
        return Token()
