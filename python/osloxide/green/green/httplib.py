"""``eventlet.green.httplib``: the old name of ``eventlet.green.http.client``."""

from osloxide.green.green.http import client as _client
from osloxide.green.patcher import slurp_properties as _slurp

_slurp(_client, globals(), srckeys=dir(_client))
