"""The threading backend: what ``oslo_service.backend._threading`` is while osloxide is active.

Owns the class that oslo.service looks up by its name.
Rules: oslo_service.backend.base.BaseBackend.
"""

from __future__ import annotations

from typing import Any

from oslo_service.backend.base import BaseBackend

from osloxide.backends import components
from osloxide.backends.threading import loopingcall, service, threadgroup


class ThreadingBackend(BaseBackend):
    """Hands out the components of the threading flavour."""

    @staticmethod
    def get_service_components() -> dict[str, Any]:
        """Name all components, as oslo.service's own backends do."""
        return components.of_flavour(service, loopingcall, threadgroup)
