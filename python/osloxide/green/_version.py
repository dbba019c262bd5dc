"""``eventlet.__version__``: the release whose interface is served.

That of the installed eventlet, if there is one: what a program compares are versions of its own
requirements.
"""

from importlib import metadata as _metadata

INTERFACE = "0.41.3"
"""The release whose interface is served."""

try:
    __version__ = version = _metadata.version("eventlet")
except _metadata.PackageNotFoundError:
    __version__ = version = INTERFACE

version_tuple = tuple(int(part) for part in version.split(".") if part.isdigit())
"""Its numbers."""

__all__ = ["INTERFACE", "__version__", "version", "version_tuple"]
