"""What logs, ``osloxide status`` and metrics call a service.

Owns that one name: the class of the service, as oslo.service's own messages have it, unless the
class says otherwise. Services that osloxide makes itself, one class for applications of any kind,
are called as their application. Formats nothing.
"""

from __future__ import annotations


def of(service: object) -> str:
    """The name of *service*: ``osloxide_name`` of its class where that is a text, or its class's.

    The object itself is not asked: it is the application's, and may answer with anything.
    """
    kind = type(service)
    given = getattr(kind, "osloxide_name", None)
    return given if isinstance(given, str) and given else kind.__name__
