"""Weak collections whose members are told apart by identity.

Owns the one way to remember objects of the application for as long as they live: services, groups,
servers, pools, sockets and threads may be of classes that define ``__eq__``, and then two of them
are equal, or none has a hash. Calls no method of a member. May be used by several threads at once.

Rules: weakref (Python library reference).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class _Reference(weakref.ref[K]):
    """To an object, of which it keeps the number."""

    __slots__ = ("number",)

    number: int

    @staticmethod
    def to(target: K, forget: Callable[[Any], object]) -> _Reference[K]:
        reference = _Reference(target, forget)
        reference.number = id(target)
        return reference


class WeakIdentityDict(Generic[K, V]):
    """Values by key, each until its key is collected.

    :class:`weakref.WeakKeyDictionary` takes equal keys for one, and refuses those without a hash.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[_Reference[K], V]] = {}
        this = weakref.ref(self)  # not strong: it would be a circle, for the collector to find

        def forget(reference: Any) -> None:
            # No global name: at the end of the interpreter they are gone before some members.
            if (alive := this()) is not None:
                alive._forget(reference)

        self._forget_reference = forget

    def __setitem__(self, key: K, value: V) -> None:
        reference = _Reference.to(key, self._forget_reference)
        self._entries[reference.number] = reference, value

    def _forget(self, reference: _Reference[K]) -> None:
        # By now another object may have the number, and an entry.
        entry = self._entries.get(reference.number)
        if entry is not None and entry[0] is reference:
            self._entries.pop(reference.number, None)

    def get(self, key: K) -> V | None:
        """The value of *key* itself; None when it has none."""
        entry = self._entries.get(id(key))
        return entry[1] if entry is not None and entry[0]() is key else None

    def pop(self, key: K) -> None:
        """Forget *key*; one that is not known is ignored."""
        if key in self:
            self._entries.pop(id(key), None)

    def clear(self) -> None:
        """Forget all keys."""
        self._entries.clear()

    def __contains__(self, key: object) -> bool:
        entry = self._entries.get(id(key))
        return entry is not None and entry[0]() is key

    def __iter__(self) -> Iterator[K]:
        """The keys that live, as they were when this was called."""
        references = [reference for reference, _ in list(self._entries.values())]
        return iter([key for reference in references if (key := reference()) is not None])

    def __len__(self) -> int:
        return len(self._entries)


class WeakIdentitySet(Generic[K]):
    """Objects, each until it is collected; in the order in which they were added."""

    def __init__(self) -> None:
        self._members: WeakIdentityDict[K, None] = WeakIdentityDict()

    def add(self, member: K) -> None:
        """Add *member*; one that is there already stays."""
        if member not in self._members:
            self._members[member] = None

    def discard(self, member: K) -> None:
        """Take *member* out; one that is not there is ignored."""
        self._members.pop(member)

    def clear(self) -> None:
        """Take all out."""
        self._members.clear()

    def __contains__(self, member: object) -> bool:
        return member in self._members

    def __iter__(self) -> Iterator[K]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)
