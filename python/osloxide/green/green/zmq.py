"""``eventlet.green.zmq``: the module that is installed."""

import zmq as _std  # type: ignore[import-not-found,unused-ignore]

from osloxide.green.patcher import slurp_properties as _slurp

_slurp(_std, globals(), srckeys=dir(_std))

__osloxide_differs__ = False
__patched__: list[str] = []
