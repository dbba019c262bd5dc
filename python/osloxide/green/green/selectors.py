"""``eventlet.green.selectors``: the standard module with selectors that wait at the hub."""

import selectors as _std

from osloxide.green.green import select as _select
from osloxide.green.patcher import slurp_properties as _slurp

_slurp(_std, globals(), srckeys=dir(_std))

__patched__ = ["DefaultSelector", "SelectSelector"]


class SelectSelector(_std.SelectSelector):
    """A selector over ``eventlet.green.select``."""

    _select = staticmethod(_select.select)


DefaultSelector = SelectSelector
PollSelector = EpollSelector = SelectSelector
