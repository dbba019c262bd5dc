"""An eventlet hub that refuses to wait for ever.

Owns one rule: a hub with neither a timer nor a descriptor to watch can never be woken, since no
native thread switches green ones; the test that waits in it fails at once instead of hanging.
Loaded by eventlet itself (EVENTLET_HUB), in the processes of run.py only.

Rules: eventlet.hubs.use_hub, eventlet.hubs.hub.BaseHub.run.
"""

from __future__ import annotations

from eventlet.hubs import epolls


class Hub(epolls.Hub):  # type: ignore[misc] # eventlet has no types
    """eventlet's usual hub, but for that rule."""

    def wait(self, seconds: float | None = None) -> None:
        """Wait for events.

        :param seconds: the longest time to wait.
        :raises RuntimeError: no event can come.
        """
        watched = self.listeners[self.READ] or self.listeners[self.WRITE]
        if not (watched or self.timers or self.next_timers):
            raise RuntimeError("waits for a green thread, and this native thread has none")
        super().wait(seconds)
