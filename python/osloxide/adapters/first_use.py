"""What Routes, Werkzeug, SQLAlchemy and oslo.db leave to the first request, called before the fork.

Owns the calls of osloxide.activation.before_fork's table. Each is one that the library makes by
itself at its first use, computes from what has been imported, and is remembered by the library: a
worker that finds it done behaves as if it had done it. What is remembered of a failure is forgotten
again. Opens no connection: a database's driver is imported, and not called.

Rules: Routes, "Mapper.create_regs"; Werkzeug, "Map.update"; SQLAlchemy,
"sqlalchemy.orm.configure_mappers", "URL.get_dialect" and "Dialect.import_dbapi".
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import ModuleType
from typing import Any


def _instances(kind: type) -> list[Any]:
    """The instances of *kind* that the collector knows; what it was kept from is not among them."""
    # By type and not isinstance(), which asks proxies what they stand for.
    return [item for item in gc.get_objects() if kind in type(item).__mro__]


def compile_routes(module: ModuleType) -> None:
    """Compile the tables of ``routes.Mapper``: some hundred regular expressions for an API.

    One that looks for its controllers in a directory, or asks for them again and again, is left
    alone.
    """
    for mapper in _instances(module.Mapper):
        is_scanned = mapper.directory is not None or mapper.always_scan
        if mapper.controller_scan and not is_scanned and not mapper._created_regs:
            mapper.create_regs()


def sort_rules(module: ModuleType) -> None:
    """Sort the rules of ``werkzeug.routing.Map``, which is Flask's ``url_map``."""
    for rules in _instances(module.Map):
        rules.update()


def configure_mappers(module: ModuleType) -> None:
    """Configure the mappers of all models; where one cannot be yet, as if nobody had tried.

    It may name a model that a request imports.
    """
    try:
        module.configure_mappers()
    except Exception:
        for registry in list(module._all_registries()):
            for mapper in list(registry.mappers):
                vars(mapper).pop("_configure_failed", None)
                for prop in list(mapper._props.values()):
                    prop._configure_started = prop._configure_finished
        raise


def import_drivers(_module: ModuleType) -> None:
    """Import SQLAlchemy's dialect and the driver of each database that the configuration names."""
    from sqlalchemy.engine import make_url

    for address in {*_addresses()}:
        make_url(address).get_dialect().import_dbapi()


def _addresses() -> Iterator[str]:
    """The URLs of databases in every configuration: the options ``connection`` of all groups."""
    from oslo_config import cfg

    # That of the module was perhaps made by the parent of a template, which keeps the collector
    # from it.
    for conf in {id(one): one for one in (cfg.CONF, *_instances(cfg.ConfigOpts))}.values():
        for name in list(conf):
            group = conf[name] if name.endswith("database") else None
            if isinstance(group, cfg.ConfigOpts.GroupAttr) and group.get("connection"):
                yield group.connection
