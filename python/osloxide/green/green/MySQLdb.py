"""``eventlet.green.MySQLdb``: connections whose calls run on :mod:`eventlet.tpool`.

Owns that alone: MySQLdb waits in C for its server. Everything else is of the module that is
installed. As with eventlet, cursors that are made by their class are no such proxies.
Rules: eventlet.green.MySQLdb.
"""

from typing import Any

import MySQLdb as _std  # type: ignore[import-untyped,import-not-found,unused-ignore]
import MySQLdb.connections as _connections  # type: ignore[import-untyped,import-not-found,unused-ignore]
from MySQLdb import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    converters as converters,
)
from MySQLdb import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
    cursors as cursors,
)

from osloxide.green import tpool as tpool
from osloxide.green.patcher import slurp_properties as slurp_properties

__osloxide_differs__ = True
__patched__ = ["connect", "Connect", "Connection", "connections"]

slurp_properties(_std, globals(), ignore=__patched__, srckeys=dir(_std))


def Connection(*arguments: Any, **keywords: Any) -> Any:  # noqa: N802  # eventlet's name
    """A connection, made on the pool; its methods run there, and those of its cursors.

    :raises MySQLdb.Error: as the connection of MySQLdb.
    """
    made = tpool.execute(_connections.Connection, *arguments, **keywords)
    return tpool.Proxy(made, autowrap_names=("cursor",))


connect = Connect = Connection


class MySQLdbConnectionsModule:
    """What ``MySQLdb.connections`` has, but for its class of connections."""


connections = MySQLdbConnectionsModule()
vars(connections).update(
    {name: value for name, value in vars(_connections).items() if not name.startswith("__")}
)
vars(connections)["Connection"] = Connection
