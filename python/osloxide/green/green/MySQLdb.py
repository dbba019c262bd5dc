"""``eventlet.green.MySQLdb``: the module that is installed."""

import MySQLdb as _std  # type: ignore[import-untyped,import-not-found,unused-ignore]

from osloxide.green.patcher import slurp_properties as _slurp

_slurp(_std, globals(), srckeys=dir(_std))

__osloxide_differs__ = False
__patched__: list[str] = []
