"""Which of a broker's errors are final, which go away, and which say that it is away.

Owns the table of AMQP's reply codes, and that of the system's errors which are no broker's. Never
decides what becomes of a message.
Rules: AMQP 0-9-1, reply codes; RabbitMQ answers a message above its ``max_message_size`` by 406.
"""

from __future__ import annotations

import errno

from osloxide.causes import chain

PERMANENT = {
    311: "content too large",
    402: "invalid path",
    403: "access refused",
    406: "precondition failed",
    501: "frame error",
    502: "syntax error",
    503: "command invalid",
    505: "unexpected frame",
    530: "not allowed",
    540: "not implemented",
}
"""Codes that the same message would get again. All others pass: a connection is forced to close
(320), a queue is missing or locked for a while (404, 405), a channel was closed before (504), the
broker lacks something (506) or fails inside (541)."""

FORCED = 320
"""Code of a broker that closes all its connections, because it stops."""

OWN_FAULTS = {
    errno.EACCES,
    errno.EADDRNOTAVAIL,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOENT,
    errno.ENOMEM,
    errno.EPERM,
}
"""Errors of the system that say nothing of a broker: this process cannot connect to any."""


def refusal(error: BaseException | None) -> str | None:
    """What the broker said, where *error*, or one that led to it, is permanent."""
    for one in chain(error):
        if getattr(one, "code", None) in PERMANENT:
            return str(one)
    return None


def is_away(error: BaseException | None) -> bool:
    """Whether *error*, or one that led to it, says that there is no broker to talk to.

    :returns: False where there may be one, which refuses, or which this process cannot talk to.
    """
    if refusal(error) is not None:
        return False
    causes = list(chain(error))
    of_system = [one.errno for one in causes if isinstance(one, OSError)]
    if any(number in OWN_FAULTS for number in of_system):
        return False
    return bool(of_system) or any(getattr(one, "code", None) == FORCED for one in causes)


def is_silent(error: BaseException | None) -> bool:
    """Whether *error*, or one that led to it, is that a broker did not answer in time."""
    return has(error, TimeoutError)


def has(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether *error*, or one that led to it, is of this *kind*."""
    return any(isinstance(one, kind) for one in chain(error))
