"""``eventlet.green.time``: the standard module with ``eventlet.sleep``."""

import time as _std

from osloxide.green.greenthread import sleep
from osloxide.green.patcher import slurp_properties as _slurp

__patched__ = ["sleep"]
_slurp(_std, globals(), ignore=__patched__, srckeys=dir(_std))

__all__ = ["sleep"]
