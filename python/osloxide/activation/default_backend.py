"""The default backend type of oslo.service: threading, unless the program monkey-patches.

Owns one amendment of ``oslo_service.backend``. Without it, importing oslo.messaging selects
EVENTLET, and a later ``init_backend(THREADING)`` of the service fails. A program that
monkey-patches was written for EVENTLET, whose services start in ``launch_service()``: it gets that
type, as without osloxide, also when it has imported oslo.messaging first. Overrides no choice that
was made.

Rules: oslo_service.backend (oslo.service 4.2 to 4.8), ``register_backend_default_hook``.
"""

from __future__ import annotations

import sys

from osloxide.activation.amendments import relies_on

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


PATCHER = "osloxide.green.patcher"

_REEXPORTS = ("oslo_service.service", "oslo_service.loopingcall", "oslo_service.threadgroup")
"""Modules that bind the components of the chosen type once, at their import."""

_CHOICE = ("_cached_backend_type", "_cached_backend", "_cached_components")
"""Where ``oslo_service.backend`` keeps it."""

_given = False
"""Whether THREADING was chosen because the program had chosen nothing and had not patched."""


@relies_on("register_backend_default_hook", "BackendType.THREADING", "BackendType.EVENTLET")
def amend(backend: Any) -> None:
    """Set the default of ``oslo_service.backend``, unless a type was chosen already."""

    def default() -> Any:
        global _given
        if _monkey_patches():
            return backend.BackendType.EVENTLET
        _given = True
        return backend.BackendType.THREADING

    chosen = getattr(backend, "_cached_backend_type", None)
    if chosen is None and getattr(backend, "_backend_hook", None) is None:
        backend.register_backend_default_hook(default)


def follow_monkey_patching() -> None:
    """Give the program, which monkey-patches now, EVENTLET in the place of the default.

    Called by the ``monkey_patch()`` that osloxide serves. Classes that were derived from those of
    the default before stay what they are: both types share them but for small differences.
    """
    global _given
    backend: Any = sys.modules.get("oslo_service.backend")
    if not _given or not all(hasattr(backend, name) for name in _CHOICE):
        return
    if backend._cached_backend_type is not backend.BackendType.THREADING:
        return
    _given = False
    before = backend._cached_components or {}
    for name in _CHOICE:
        setattr(backend, name, None)
    backend.init_backend(backend.BackendType.EVENTLET)
    for place in _REEXPORTS:
        names = vars(sys.modules[place]) if place in sys.modules else {}
        for name, component in before.items():
            if name in names and names[name] is component:
                names[name] = backend.get_component(name)


def _monkey_patches() -> bool:
    """Whether the program has called the ``monkey_patch()`` that osloxide serves."""
    requested = getattr(sys.modules.get(PATCHER), "requested", {})
    return any(requested.values())
