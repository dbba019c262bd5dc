"""The default backend type of oslo.service: threading.

Owns one amendment of ``oslo_service.backend``. Without it, importing oslo.messaging selects
EVENTLET, and a later ``init_backend(THREADING)`` of the service fails. Overrides no choice that was
made.

Rules: oslo_service.backend (oslo.service 4.2 to 4.8), ``register_backend_default_hook``.
"""

from __future__ import annotations

from osloxide.activation.amendments import relies_on

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@relies_on("register_backend_default_hook", "BackendType.THREADING")
def amend(backend: Any) -> None:
    """Make THREADING the default of ``oslo_service.backend``, unless one was chosen already."""
    chosen = getattr(backend, "_cached_backend_type", None)
    if chosen is None and getattr(backend, "_backend_hook", None) is None:
        backend.register_backend_default_hook(lambda: backend.BackendType.THREADING)
