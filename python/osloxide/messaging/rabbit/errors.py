"""Which of a broker's errors are final, and which go away.

Owns the table of AMQP's reply codes. Never decides what becomes of a message.
Rules: AMQP 0-9-1, reply codes; RabbitMQ answers a message above its ``max_message_size`` by 406.
"""

from __future__ import annotations

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


def refusal(error: BaseException | None) -> str | None:
    """What the broker said, where *error*, or one that led to it, is permanent."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if getattr(error, "code", None) in PERMANENT:
            return str(error)
        error = error.__cause__ or error.__context__
    return None
