"""``eventlet.green.thread``: the standard library's own."""

import _thread as _std

from osloxide.green.patcher import slurp_properties as _slurp

_slurp(_std, globals(), srckeys=dir(_std))

__osloxide_differs__ = False
__patched__: list[str] = []

Lock = LockType = _std.allocate_lock
"""Makes a lock. Older Pythons have no public class of it."""
