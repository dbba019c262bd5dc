"""``eventlet.coros``: deprecated names that moved long ago. Rules: eventlet.coros."""

from osloxide.green import event as _event
from osloxide.green import semaphore as _semaphore
from osloxide.green import support as _support

Event = _support.wrap_deprecated("coros.Event", "event.Event")(_event.Event)
Semaphore = _support.wrap_deprecated("coros.Semaphore", "semaphore.Semaphore")(_semaphore.Semaphore)
BoundedSemaphore = _support.wrap_deprecated("coros.BoundedSemaphore", "semaphore.BoundedSemaphore")(
    _semaphore.BoundedSemaphore
)
semaphore = _support.wrap_deprecated("coros.semaphore", "semaphore.Semaphore")(_semaphore.Semaphore)


class metaphore:  # noqa: N801 - eventlet's name
    """A semaphore the other way round: waits until it was decremented as often as incremented."""

    def __init__(self) -> None:
        self.counter = 0
        self.event = _event.Event()
        self.event.send()

    def inc(self, by: int = 1) -> None:
        """Count up.

        :raises ValueError: *by* is not above 0.
        """
        assert by > 0
        self.counter += by
        if self.event.ready():
            self.event.reset()

    def dec(self, by: int = 1) -> None:
        """Count down."""
        assert by > 0
        self.counter -= by
        if self.counter <= 0:
            self.counter = 0
            self.event.send()

    def wait(self) -> None:
        """Wait until the counter is 0."""
        self.event.wait()
