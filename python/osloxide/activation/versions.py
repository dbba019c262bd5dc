"""The releases of oslo.service that osloxide stands in for, and what they call their backends.

Owns the supported range and the names of the replaced modules. To support a new release: raise
:data:`FIRST_UNSUPPORTED`, run the parity suite with that release, and enter what has changed here.
Reads nothing but version numbers. Loaded by the import hook, so it imports nothing at the top.

Rules: oslo_service.backend (selection of a backend) of each release; docs/compatibility.md.
"""

from __future__ import annotations

from osloxide.exceptions import ActivationError

OLDEST_SUPPORTED = (4, 2)
"""The first release with two backends to choose from."""

FIRST_UNSUPPORTED = (5,)
"""Releases from here on are refused until they have been tested."""

_PRIVATE_NAMES_SINCE = (4, 3)
"""Release that renamed ``backend.threading`` to ``backend._threading``, ``eventlet`` likewise."""

_BACKENDS = ("eventlet", "threading")


def check(version: str) -> tuple[int, ...]:
    """Compare a version of oslo.service with the supported range.

    :returns: its release numbers.
    :raises ActivationError: it is too old, or newer than what was tested.
    """
    release: list[int] = []
    for piece in version.split("."):
        if not piece.isdigit():
            break
        release.append(int(piece))
    oldest = ".".join(map(str, OLDEST_SUPPORTED))
    limit = ".".join(map(str, FIRST_UNSUPPORTED))
    if tuple(release) < OLDEST_SUPPORTED:
        raise ActivationError(
            f"osloxide cannot replace oslo.service {version}: it has no threading backend "
            "whose place could be taken; "
            f"install oslo.service >= {oldest}, < {limit}"
        )
    if tuple(release) >= FIRST_UNSUPPORTED:
        raise ActivationError(
            f"osloxide cannot replace oslo.service {version}: it was tested with "
            f">= {oldest}, < {limit} only; install such a version or a newer osloxide"
        )
    return tuple(release)


def installed() -> str:
    """The version of the installed oslo.service.

    :raises ActivationError: it is not installed, or its distribution does not say.
    """
    from importlib import metadata

    try:
        return metadata.version("oslo.service")
    except metadata.PackageNotFoundError:
        raise ActivationError(
            "osloxide cannot tell the version of oslo.service: no distribution of that name is "
            "installed; install oslo.service with pip or from a distribution package"
        ) from None


def aliases(release: tuple[int, ...]) -> dict[str, str]:
    """The roots of the replaced module trees, each with its replacement.

    :param release: release numbers; an empty tuple, where they are not known yet, means the newest.
    """
    private = not release or release >= _PRIVATE_NAMES_SINCE
    prefix = "oslo_service.backend._" if private else "oslo_service.backend."
    table = {f"{prefix}{name}": f"osloxide.backends.{name}" for name in _BACKENDS}
    table["oslo_service.wsgi"] = "osloxide.wsgi"
    return table
