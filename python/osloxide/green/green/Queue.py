"""``eventlet.green.Queue``: the standard library's queues between greenthreads.

As :mod:`eventlet.queue`, but a queue of size 0 has no bound. Rules: queue (Library Reference).
"""

from osloxide.green import queue as _queue

__all__ = ["Empty", "Full", "LifoQueue", "PriorityQueue", "Queue"]
__patched__ = ["LifoQueue", "PriorityQueue", "Queue"]

Empty = _queue.Empty
Full = _queue.Full


class Queue(_queue.Queue):
    """First in, first out.

    :param maxsize: most items; 0 or less: no bound.
    """

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize if maxsize > 0 else None)


class PriorityQueue(_queue.PriorityQueue):
    """The smallest item first.

    :param maxsize: most items; 0 or less: no bound.
    """

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize if maxsize > 0 else None)


class LifoQueue(_queue.LifoQueue):
    """Last in, first out.

    :param maxsize: most items; 0 or less: no bound.
    """

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize if maxsize > 0 else None)
