"""osloxide: a native core for OpenStack services, in the place of oslo.service's internals.

Owns the public door: :func:`install` and :func:`is_installed`. Importing the package does nothing
else; docs/api.md lists what is public, everything else may move without notice.
"""

from osloxide.activation.import_hook import install, is_installed

__all__ = ["install", "is_installed"]
