"""What libraries make in their first use, made in the process that workers are forked from.

Owns the table of preparations and the order in which they are called. Tables of routes and mappers
of a database are computed from what the import has left, by the first request: after a fork each
worker would compute its own, and keep it in memory of its own. A preparation is given its module,
and calls what that request would call. It never opens a connection, starts a thread or asks a
network, and prepares no library that the application has not imported. One that fails is named in
the log at DEBUG, and the first request meets what it would have met.

Rules: the libraries' own documentation; each preparation says which call it is.
"""

from __future__ import annotations

import logging
import sys
import time

from osloxide.activation.amendments import found

LOG = logging.getLogger("osloxide")

_LIBRARIES = "osloxide.adapters.first_use"

TABLE: dict[str, str] = {
    "oslo_db.sqlalchemy.engines": f"{_LIBRARIES}:import_drivers",
    "routes.mapper": f"{_LIBRARIES}:compile_routes",
    "sqlalchemy.orm.mapper": f"{_LIBRARIES}:configure_mappers",
    "werkzeug.routing.map": f"{_LIBRARIES}:sort_rules",
}
"""Module -> its preparation, ``"package.module:function"``, called if the module was imported."""


def prepare() -> None:
    """Call the preparations of all libraries that this process has imported."""
    for name, target in TABLE.items():
        module = sys.modules.get(name)
        if module is None:
            continue
        began = time.monotonic()
        try:
            found(target)(module)
        except Exception:
            LOG.debug("%s is not prepared before the fork", name, exc_info=True)
        else:
            LOG.debug("%s is prepared before the fork: %.3f s", name, time.monotonic() - began)
