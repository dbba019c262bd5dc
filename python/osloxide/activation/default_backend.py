"""The default backend type of oslo.service: threading, unless the program monkey-patches.

Owns one amendment of ``oslo_service.backend``. Without it, importing oslo.messaging selects
EVENTLET, and a later ``init_backend(THREADING)`` of the service fails. A program that
monkey-patches was written for EVENTLET, whose services start in ``launch_service()``: it gets that
type, as without osloxide. Overrides no choice that was made.

Rules: oslo_service.backend (oslo.service 4.2 to 4.8), ``register_backend_default_hook``.
"""

from __future__ import annotations

import sys

from osloxide.activation.amendments import relies_on

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


PATCHER = "osloxide.green.patcher"


@relies_on("register_backend_default_hook", "BackendType.THREADING", "BackendType.EVENTLET")
def amend(backend: Any) -> None:
    """Set the default of ``oslo_service.backend``, unless a type was chosen already."""

    def default() -> Any:
        if _monkey_patches():
            return backend.BackendType.EVENTLET
        return backend.BackendType.THREADING

    chosen = getattr(backend, "_cached_backend_type", None)
    if chosen is None and getattr(backend, "_backend_hook", None) is None:
        backend.register_backend_default_hook(default)


def _monkey_patches() -> bool:
    """Whether the program has called the ``monkey_patch()`` that osloxide serves."""
    requested = getattr(sys.modules.get(PATCHER), "requested", {})
    return any(requested.values())
