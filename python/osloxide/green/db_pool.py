"""``eventlet.db_pool``: lent database connections. Rules: eventlet.db_pool."""

from __future__ import annotations

import collections
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from osloxide._typing import override
from osloxide.green import hubs, timeout
from osloxide.green._core.turns import lock
from osloxide.green.greenthread import GreenThread
from osloxide.green.hubs.timer import Timer
from osloxide.green.pools import Pool

__all__ = [
    "BaseConnectionPool",
    "ConnectTimeout",
    "ConnectionPool",
    "DatabaseConnector",
    "GenericConnectionWrapper",
    "PooledConnectionWrapper",
    "RawConnectionPool",
    "TpooledConnectionPool",
    "cleanup_rollback",
]

_MISSING: Any = object()


class ConnectTimeout(Exception):
    """The database was not reached in time."""


def cleanup_rollback(conn: Any) -> None:
    """What is done to a connection that comes back, unless said otherwise."""
    conn.rollback()


class BaseConnectionPool(Pool):
    """Lends connections of a DB-API module.

    :param max_idle: seconds after which one that is not lent is closed.
    :param max_age: seconds after which one is closed; 0: none is kept.
    :param connect_timeout: seconds that connecting may take.
    :param cleanup: called with each that comes back; None: nothing is.
    """

    def __init__(
        self,
        db_module: Any,
        min_size: int = 0,
        max_size: int = 4,
        max_idle: float = 10,
        max_age: float = 30,
        connect_timeout: float = 5,
        cleanup: Any = cleanup_rollback,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        assert db_module
        self._db_module = db_module
        self._args = args
        self._kwargs = kwargs
        self.max_idle = max_idle
        self.max_age = max_age
        self.connect_timeout = connect_timeout
        self._expiration_timer: Any = None
        self.cleanup = cleanup
        super().__init__(min_size=min_size, max_size=max_size, order_as_stack=True)

    def _schedule_expiration(self) -> None:
        """Wake up when the first of those that are not lent may have to be closed."""
        if self.max_age == 0 or self.max_idle == 0:
            return
        if self._expiration_timer is not None and not self._expiration_timer.called:
            return
        now = time.time()
        self._expire_old_connections(now)
        if not self.free_items:
            self._expiration_timer = None
            return
        idle = self.free_items[-1][0] - now + self.max_idle
        age = min(item[1] for item in self.free_items) - now + self.max_age
        delay = min(idle, age)
        if delay > 0:
            g = GreenThread(hubs.get_hub().greenlet)
            self._expiration_timer = Timer(delay, g.switch, self._schedule_expiration, [], {})
            self._expiration_timer.schedule()

    def _expire_old_connections(self, now: float) -> None:
        with lock:  # another thread may give one back just now
            items = list(self.free_items)
            expired = [item for item in items if self._is_expired(now, item[0], item[1])]
            self.free_items.clear()
            self.free_items.extend(item for item in items if item not in expired)
            self.current_size -= len(expired)
        for item in expired:
            self._safe_close(item[2], quiet=True)

    def _is_expired(self, now: float, last_used: float, created_at: float) -> bool:
        return (
            self.max_idle <= 0
            or self.max_age <= 0
            or now - last_used > self.max_idle
            or now - created_at > self.max_age
        )

    def _unwrap_connection(self, conn: Any) -> Any:
        """The connection inside a wrapper that still has one, which then has none; else None."""
        base = None
        with contextlib.suppress(AttributeError):
            if conn:
                base = conn._base
                conn._destroy()
        return base

    def _safe_close(self, conn: Any, quiet: bool = False) -> None:
        try:
            conn.close()
        except AttributeError:
            pass  # None, or no connection
        except Exception:  # noqa: BLE001 - whatever a driver raises
            if not quiet:
                print(f"Connection.close raised: {sys.exc_info()[1]}")

    @override
    def get(self) -> Any:
        """Borrow one."""
        conn = super().get()
        if conn is None:
            try:
                conn = self.create()
            except Exception:
                self.current_size -= 1
                raise
        if isinstance(conn, tuple):
            _, created_at, conn = conn
        else:
            created_at = time.time()
        wrapped = PooledConnectionWrapper(conn, self)
        wrapped._db_pool_created_at = created_at
        return wrapped

    @override
    def put(self, conn: Any, cleanup: Any = _MISSING) -> None:
        """Give *conn* back.

        :param cleanup: instead of the pool's.
        """
        created_at = getattr(conn, "_db_pool_created_at", 0)
        now = time.time()
        conn = self._unwrap_connection(conn)
        if self._is_expired(now, now, created_at):
            self._safe_close(conn, quiet=False)
            conn = None
        elif cleanup is not None:
            if cleanup is _MISSING:
                cleanup = self.cleanup
            try:
                if conn:
                    cleanup(conn)
            except Exception as error:  # noqa: BLE001 - the connection is given up
                print(f"WARNING: cleanup {cleanup} raised: {error}")
                conn = None
            except BaseException:
                conn = None
                raise
        if conn is not None:
            super().put((now, created_at, conn))
        elif self.waiting() > 0:
            super().put(None)
        else:
            self.current_size -= 1
        self._schedule_expiration()

    @contextlib.contextmanager
    @override
    def item(self, cleanup: Any = _MISSING) -> Iterator[Any]:
        """Borrow one for a block."""
        conn = self.get()
        try:
            yield conn
        finally:
            self.put(conn, cleanup=cleanup)

    def clear(self) -> None:
        """Close those that are not lent."""
        if self._expiration_timer:
            self._expiration_timer.cancel()
        free_items, self.free_items = self.free_items, collections.deque()
        for item in free_items:
            self._safe_close(item[2] if isinstance(item, tuple) else item, quiet=True)
            self.current_size -= 1

    def __del__(self) -> None:
        self.clear()


class TpooledConnectionPool(BaseConnectionPool):
    """Lends connections whose methods run on the thread pool."""

    @override
    def create(self) -> Any:
        """Connect."""
        now = time.time()
        return (
            now,
            now,
            self.connect(self._db_module, self.connect_timeout, *self._args, **self._kwargs),
        )

    @classmethod
    def connect(cls, db_module: Any, connect_timeout: float, *args: Any, **kw: Any) -> Any:
        """Connect, or raise :class:`ConnectTimeout`."""
        from osloxide.green import tpool

        t = timeout.Timeout(connect_timeout, ConnectTimeout())
        try:
            conn = tpool.execute(db_module.connect, *args, **kw)
            return tpool.Proxy(conn, autowrap_names=("cursor",))
        finally:
            t.cancel()


class RawConnectionPool(TpooledConnectionPool):
    """Lends plain connections."""

    @classmethod
    @override
    def connect(cls, db_module: Any, connect_timeout: float, *args: Any, **kw: Any) -> Any:
        """Connect, or raise :class:`ConnectTimeout`."""
        t = timeout.Timeout(connect_timeout, ConnectTimeout())
        try:
            return db_module.connect(*args, **kw)
        finally:
            t.cancel()


ConnectionPool = TpooledConnectionPool


class GenericConnectionWrapper:
    """A connection, with the methods of DB-API modules."""

    _base: Any

    def __init__(self, baseconn: Any) -> None:
        self._base = baseconn

    def __enter__(self) -> Any:
        return self._base.__enter__()

    def __exit__(self, exc: Any, value: Any, tb: Any) -> Any:
        return self._base.__exit__(exc, value, tb)

    @override
    def __repr__(self) -> str:
        return repr(self._base)


def _forward(name: str) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._base, name)(*args, **kwargs)

    method.__name__ = name
    method.__qualname__ = f"GenericConnectionWrapper.{name}"
    return method


_METHODS = """
    affected_rows autocommit begin change_user character_set_name close commit cursor
    dump_debug_info errno error errorhandler get_server_info insert_id literal ping query
    rollback select_db server_capabilities set_character_set set_isolation_level
    set_server_option set_sql_mode show_warnings shutdown sqlstate stat store_result
    string_literal thread_id use_result warning_count
"""

for _name in _METHODS.split():
    setattr(GenericConnectionWrapper, _name, _forward(_name))
del _name


class PooledConnectionWrapper(GenericConnectionWrapper):
    """A lent connection: ``close()`` gives it back. True while it is lent."""

    _db_pool_created_at: float

    def __init__(self, baseconn: Any, pool: Any) -> None:
        super().__init__(baseconn)
        self._pool = pool

    def __bool__(self) -> bool:
        return hasattr(self, "_base") and bool(self._base)

    def _destroy(self) -> None:
        self._pool = None
        with contextlib.suppress(AttributeError):
            del self._base

    def close(self) -> None:
        """Give it back."""
        if self and self._pool:
            self._pool.put(self)
        self._destroy()


class DatabaseConnector:
    """Connection pools by host and schema.

    :param credentials: connection arguments by host, ``default`` for others.
    :param conn_pool: class of the pools.
    """

    def __init__(
        self, module: Any, credentials: Any, conn_pool: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        assert module
        self._conn_pool_class = conn_pool or ConnectionPool
        self._module = module
        self._args = args
        self._kwargs = kwargs
        self._credentials = credentials
        self._databases: dict[Any, Any] = {}

    def credentials_for(self, host: str) -> Any:
        """The connection arguments for *host*."""
        return self._credentials.get(host, self._credentials.get("default"))

    def get(self, host: str, dbname: str) -> Any:
        """The pool for a host and a schema."""
        key = (host, dbname)
        if key not in self._databases:
            kwargs = {**self._kwargs, "db": dbname, "host": host}
            kwargs.update(self.credentials_for(host))
            self._databases[key] = self._conn_pool_class(self._module, *self._args, **kwargs)
        return self._databases[key]
