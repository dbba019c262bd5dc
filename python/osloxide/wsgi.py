"""A WSGI server for OpenStack services, in place of ``oslo_service.wsgi``.

Owns the listening socket and the names that services import from ``oslo_service.wsgi``; the native
server accepts, reads and writes. Works under both backend types and without any launcher, and
never imports eventlet. What needs WebOb, Routes or Paste imports them on first use.

Contract: oslo.service 4.8, ``oslo_service/wsgi.py``. What differs is listed in docs/options.md.
"""

from __future__ import annotations

import copy
import functools
import os
import socket
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from logging import ERROR, INFO
from typing import TYPE_CHECKING, Any

from oslo_log import log as logging
from oslo_service import _options, backend
from oslo_service.backend.base import ServiceBase

from osloxide import _native
from osloxide.activation import environment
from osloxide.server import forwarded, options, slow_requests
from osloxide.server.listener import address_of, listen_tcp, listen_unix
from osloxide.signals import shutdown
from osloxide.threads import at_end, identity

if TYPE_CHECKING:
    from osloxide.server.routing import Request as Request
    from osloxide.server.routing import Router as Router

__all__ = [
    "ConfigNotFound",
    "InvalidInput",
    "Loader",
    "PasteAppNotFound",
    "Request",
    "Router",
    "Server",
    "list_opts",
    "register_opts",
]

# The name that oslo.log gives oslo_service.wsgi; log settings of existing deployments match it.
LOG = logging.getLogger("oslo_service.wsgi")

WSGIApplication = Callable[..., Iterable[bytes]]

#: Variable that names a file with the passphrase of the TLS key, for services: oslo.service's group
#: ssl has no option for it.
KEY_FILE_VARIABLE = "OSLOXIDE_KEY_PASSPHRASE_FILE"

#: Longest request line in bytes, method and version included, unless a server says otherwise.
DEFAULT_MAX_URL_LEN = 8192

#: How long a program that ends without having stopped its servers waits for requests in flight, in
#: seconds. Launchers stop servers themselves and have a deadline of their own.
EXIT_GRACE_SECONDS = 60.0


def __getattr__(name: str) -> Any:
    """Import ``Request`` and ``Router``, and with them WebOb and Routes, when first asked for."""
    if name in ("Request", "Router"):
        from osloxide.server import routing

        globals().update(Request=routing.Request, Router=routing.Router)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "Request", "Router"})


def _check_backend_compatibility() -> None:
    """Refuse the threading backend, but only where ``OSLOXIDE_STRICT=1`` asks for it.

    :raises UnsupportedBackendError: as oslo.service does always. This server needs no eventlet, so
        the reason for the refusal is gone.
    """
    if os.environ.get("OSLOXIDE_STRICT") != "1":
        return
    if backend.get_backend_type() == backend.BackendType.THREADING:
        # oslo.service refuses, and has the exception, since 4.4.
        from oslo_service.backend.exceptions import UnsupportedBackendError

        raise UnsupportedBackendError(
            "oslo.service.wsgi.Server is refused with the threading backend because "
            "OSLOXIDE_STRICT is 1; unset it, or deploy the application behind standard WSGI "
            "servers"
        )


def list_opts() -> list[tuple[str | None, list[Any]]]:
    """Options of this module, for oslo-config-generator.

    :returns: one pair of group (``None`` for DEFAULT) and options; the options are copies.
    """
    return [(None, copy.deepcopy(_options.wsgi_opts))]


def register_opts(conf: Any) -> None:
    """Register the options of this module in the group DEFAULT of *conf*."""
    conf.register_opts(_options.wsgi_opts)


class InvalidInput(Exception):
    """An argument has a value that cannot be honoured.

    :param reason: names the argument, its value and the remedy.
    """

    def __init__(self, reason: str = "unexpected argument") -> None:
        super().__init__(f"Invalid input received: {reason}")


class ConfigNotFound(Exception):
    """The paste configuration does not exist.

    :param path: what ``api_paste_config`` names.
    """

    def __init__(self, path: str) -> None:
        super().__init__(f"Could not find config at {path}")


class PasteAppNotFound(Exception):
    """The paste configuration has no such application.

    :param name: the application that was asked for.
    :param path: the configuration that was searched.
    """

    def __init__(self, name: str, path: str) -> None:
        super().__init__(f"Could not load paste app '{name}' from {path}")


class Loader:
    """Loads WSGI applications from a paste configuration.

    :param conf: names the configuration in ``api_paste_config``: an absolute path, or one that is
        searched for in the configuration directories.
    :raises ConfigNotFound: there is no such file.
    """

    config_path: str

    def __init__(self, conf: Any) -> None:
        register_opts(conf)
        wanted: str = conf.api_paste_config
        if os.path.isabs(wanted):
            found = wanted if os.path.exists(wanted) else None
        else:
            found = conf.find_file(wanted)
        if not found:
            raise ConfigNotFound(path=wanted)
        self.config_path = found

    def load_app(self, name: str) -> Any:
        """Load the application *name*.

        :returns: what its factory made: a WSGI application.
        :raises PasteAppNotFound: the configuration has no section for it.
        """
        from paste import deploy

        LOG.debug("Loading app %(name)s from %(path)s", {"name": name, "path": self.config_path})
        try:
            return deploy.loadapp(f"config:{self.config_path}", name=name)
        except LookupError:
            LOG.exception("Couldn't lookup app: %s", name)
            raise PasteAppNotFound(name=name, path=self.config_path) from None


class Server(ServiceBase):
    """Serves a WSGI application on a socket that it binds when it is made.

    The socket listens from the start, so that workers which are forked later share it; nothing is
    accepted, and no thread is started, before :meth:`start`.

    :param conf: options of group DEFAULT (docs/options.md), of group osloxide, which set the
        attributes below, and, with *use_ssl*, of group ssl.
    :param name: names the server in logs.
    :param app: a PEP 3333 application, called on several threads at once.
    :param host: address or name to listen on; the first address that it resolves to is taken.
    :param port: port; 0 lets the kernel choose, see the attribute ``port``.
    :param pool_size: most requests in flight at once in a process; 0 or ``None`` means
        ``wsgi_default_pool_size``. Idle connections do not count.
    :param protocol: accepted for compatibility, without effect.
    :param backlog: length of the kernel's queue of connections that wait to be accepted, at least
        1; the kernel caps it at ``net.core.somaxconn``.
    :param use_ssl: encrypt connections as the options of group ssl say.
    :param max_url_len: longest request line in bytes; ``None`` or 0 means 8192.
    :param logger_name: logger of the access log (INFO) and of failed applications (ERROR).
    :param socket_family: ``AF_INET``, ``AF_INET6``, ``AF_UNIX`` or ``None``; *host* decides
        between the first two.
    :param socket_file: path of a unix socket. A file left behind by an earlier process is
        replaced; one with a listener is not. A NUL in front means an abstract name.
    :param socket_mode: permissions of *socket_file*, or ``None`` to leave them to the umask.
    :raises InvalidInput: *backlog* or *pool_size* is out of range.
    :raises ValueError: *socket_family* is not supported, or an option has an impossible value.
    :raises OSError: the socket cannot be bound, or a TLS file cannot be read.
    :raises RuntimeError: *use_ssl* without a certificate and a key.
    """

    #: Most header lines in a request; more are answered with 431. Subclasses may change it.
    max_headers = 100
    #: Seconds that a connection may be idle between two requests; None = ``client_socket_timeout``.
    keep_alive_timeout: float | None = None
    #: Most connections of the process; None = the limit of open files, less a reserve.
    max_connections: int | None = None
    #: Addresses, as ranges, of the proxies that begin each connection with a header of the PROXY
    #: protocol; others may not connect. None = no header, and everyone may.
    proxies: Sequence[tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address]] | None = None
    #: Longest body of a request, in bytes; longer ones are answered with 413; None = no limit.
    max_body: int | None = None
    #: Requests that may wait while ``pool_size`` are answered; more are answered with 503. 0: none
    #: waits; None: any number.
    max_waiting: int | None = None
    #: Percent of the pool's threads that slow clients may hold while requests wait for one; uploads
    #: beyond it wait without a thread. 100: none is cut off for others.
    slow_client_share = 50
    #: Most bytes of memory of complete answers that clients have not taken yet; beyond it threads
    #: wait for the clients, or the slowest clients are cut off where threads are needed.
    max_unsent = 128 << 20
    #: Proxies whose headers say who the client is; None = no header is believed.
    forwarded_from: forwarded.Trusted | None = None
    #: Which headers they set: one of ``osloxide.server.forwarded.HEADERS``.
    forwarded_headers: str = forwarded.HEADERS[0]
    #: Threads in requests that were given up, at which a worker asks for its successor; None = a
    #: tenth of ``pool_size``. Holds where the group osloxide sets ``request_timeout``; of several
    #: servers of a process the smallest.
    max_stuck_threads: int | None = None
    #: Written natively, besides the logger.
    access_log: _native.AccessLog | None = None
    #: Requests that have no line, in this log or that of the logger.
    access_filter: _native.AccessFilter | None = None
    #: Seconds for which the application may be busy with one request; None = for ever.
    request_timeout: float | None = None
    #: Requests are logged by the logger.
    is_logged = True

    #: What clients speak: ``"http"`` or ``"uwsgi"``. Subclasses may change it.
    wire_protocol = "http"

    #: File whose first line is the TLS key's passphrase; None = ``OSLOXIDE_KEY_PASSPHRASE_FILE``.
    key_passphrase_file: str | None = None
    #: With ``ca_file``: ``"required"`` of every client, or ``"optional"``.
    client_certificates = "required"

    def __init__(
        self,
        conf: Any,
        name: str,
        app: WSGIApplication | None,
        host: str = "0.0.0.0",  # noqa: S104 - the default of oslo.service
        port: int = 0,
        pool_size: int | None = None,
        protocol: Any = None,
        backlog: int = 128,
        use_ssl: bool = False,
        max_url_len: int | None = None,
        logger_name: str = "eventlet.wsgi.server",
        socket_family: int | None = None,
        socket_file: str | None = None,
        socket_mode: int | None = None,
    ) -> None:
        _check_backend_compatibility()
        register_opts(conf)
        self.conf = conf
        self.name = name
        self.app = app
        self.default_pool_size: int = conf.wsgi_default_pool_size
        self.pool_size: int = pool_size or self.default_pool_size
        self.client_socket_timeout: float | None = conf.client_socket_timeout or None
        self.dup_socket: socket.socket | None = None
        self._protocol = protocol
        self._logger = logging.getLogger(logger_name)
        self._use_ssl = use_ssl
        self._max_url_len = max_url_len
        self._pid = os.getpid()
        self._engines: list[_native.Server] = []
        weakref.finalize(self, _outlive, self._engines).atexit = False
        self._pool = _Pool(self)
        self._server: _Acceptor | None = None

        # Refused here and not by start(): that runs in workers, which would be forked for ever.
        if backlog < 1:
            raise InvalidInput(reason=f"backlog is {backlog}; it must be more than 0")
        try:
            options.check_number("pool_size", self.pool_size, 1, options.MOST)
            options.check_number("backlog", backlog, 1, options.MOST)
        except ValueError as error:
            raise InvalidInput(reason=str(error)) from None
        _native.check_log_format(conf.wsgi_log_format)
        options.check_number("max_header_line", conf.max_header_line, 1)
        options.check_number("max_url_len", max_url_len or 0, 0)
        timeout, most = conf.client_socket_timeout, options.LONGEST_TIMEOUT
        options.check_number("client_socket_timeout", timeout, 0, most, "0 to wait for ever")
        configured = options.attributes(conf, is_unix=socket_family == socket.AF_UNIX)
        for attribute, configured_value in configured.items():
            setattr(self, attribute, configured_value)
        self._limits_stuck_threads = configured.get("request_timeout") is not None
        if self._limits_stuck_threads:
            self._check_request_timeout()
        self._tls = self._load_tls() if use_ssl else None

        if not socket_family or socket_family in (socket.AF_INET, socket.AF_INET6):
            self.socket = self._get_socket(host, port, backlog)
            self.host, self.port = address_of(self.socket)
        elif socket_family == socket.AF_UNIX:
            if not socket_file:
                raise InvalidInput(reason="socket_file is not set; a unix socket needs its path")
            self.socket = self._get_unix_socket(socket_file, socket_mode, backlog)
            self.host, self.port = socket_file, 0
        else:
            raise ValueError(
                f"Unsupported socket family: {socket_family}; use AF_INET, AF_INET6 or AF_UNIX"
            )
        shutdown.register_listener(self.socket)

    def _get_socket(self, host: str, port: int, backlog: int) -> socket.socket:
        """Bind and listen; subclasses may replace it."""
        try:
            listener = listen_tcp(self.name, host, port, backlog)
        except OSError:
            LOG.error("Could not bind to %(host)s:%(port)s", {"host": host, "port": port})
            raise
        try:
            listener = self._set_socket_opts(listener)
        except BaseException:
            listener.close()
            raise
        LOG.info(
            "%(name)s listening on %(host)s:%(port)s",
            {"name": self.name, "host": host, "port": listener.getsockname()[1]},
        )
        return listener

    def _get_unix_socket(
        self, socket_file: str, socket_mode: int | None, backlog: int
    ) -> socket.socket:
        """Bind and listen on a path; subclasses may replace it."""
        try:
            listener = listen_unix(self.name, socket_file, socket_mode, backlog)
        except OSError:
            LOG.error("Could not bind to %(socket_file)s", {"socket_file": socket_file})
            raise
        LOG.info(
            "%(name)s listening on %(socket_file)s:",
            {"name": self.name, "socket_file": socket_file.replace("\0", "@", 1)},
        )
        return listener

    def _set_socket_opts(self, listener: socket.socket) -> socket.socket:
        """Set options that accepted connections inherit; cinder and others override it.

        :returns: the socket to listen on.
        """
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        idle = self.conf.tcp_keepidle
        try:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        except (OSError, OverflowError, TypeError) as error:
            # Python takes what does not fit into an int of C, or is none, for a buffer.
            shown = "empty" if idle is None else idle
            raise ValueError(f"tcp_keepidle is {shown}; give 1 to 32767 seconds") from error
        return listener

    def _check_request_timeout(self) -> None:
        from osloxide.launch import configuration

        self.conf.register_opts(configuration.OPTIONS, group=configuration.GROUP)
        worker_timeout = self.conf[configuration.GROUP].worker_timeout
        if 0 < worker_timeout <= (self.request_timeout or 0):
            raise ValueError(
                f"option worker_timeout of [{configuration.GROUP}] is {worker_timeout:g} and "
                f"replaces the worker before request_timeout ({self.request_timeout:g}) can answer "
                "a request 504; give worker_timeout a larger number, or 0"
            )

    def _load_tls(self, *, quiet: bool = False) -> _native.TlsConfig:
        return _native.TlsConfig(**self._tls_options(), quiet=quiet)

    def check_tls(self) -> None:
        """Read the files of TLS, where it is spoken, as a start would.

        The start itself warns of what does not keep it from serving.

        :raises OSError, ValueError, RuntimeError: they cannot serve; the text says why.
        """
        if self._tls is not None:
            self._load_tls(quiet=True)

    def _tls_options(self) -> dict[str, Any]:
        with warnings.catch_warnings():
            # Upstream's module announces its removal whenever it is imported.
            warnings.simplefilter("ignore", DeprecationWarning)
            from oslo_service import sslutils

        if not sslutils.is_enabled(self.conf):
            raise RuntimeError(
                f"{self.name} was asked to serve TLS, but cert_file and key_file of group [ssl] "
                "are not set; set both"
            )
        ssl = self.conf.ssl
        return {
            "cert_file": ssl.cert_file,
            "key_file": ssl.key_file,
            "ca_file": ssl.ca_file,
            "version": ssl.version,
            "ciphers": ssl.ciphers,
            "passphrase_file": self.key_passphrase_file
            or os.environ.get(KEY_FILE_VARIABLE)
            or None,
            "client_certificates": self.client_certificates,
        }

    def start(self) -> None:
        """Start accepting. Threads live from here on: this process must not fork any more.

        Options are read now; a start after :meth:`stop` honours a changed configuration. Does
        nothing while the server runs.

        :raises OSError: the listening socket was closed, or resources are exhausted.
        """
        if self._server is not None and not self._server.is_stopped:
            return
        if self.dup_socket is not None:
            self.dup_socket.close()
        # dup() hands the timeout of the socket object on, and with it O_NONBLOCK, which all workers
        # share: without this line each start would make accept() blocking in all of them.
        self.socket.setblocking(False)
        self.dup_socket = self.socket.dup()
        if self._limits_stuck_threads:
            self._limit_stuck_threads()
        engine = _native.Server(
            self._application(),
            self.dup_socket.fileno(),
            name=self.name,
            pool_size=self.pool_size,
            keep_alive=self.conf.wsgi_keep_alive,
            client_socket_timeout=self.client_socket_timeout,
            max_header_line=self.conf.max_header_line,
            max_url_len=self._max_url_len or DEFAULT_MAX_URL_LEN,
            max_headers=self.max_headers,
            log=self._logger.info if self.is_logged else None,
            log_format=self.conf.wsgi_log_format,
            log_enabled=functools.partial(self._logger.isEnabledFor, INFO),
            log_error=self._logger.error,
            debug=self.conf.wsgi_server_debug,
            # A process that was forked after the socket was bound has siblings on it.
            multiprocess=os.getpid() != self._pid,
            tls=self._tls,
            protocol=self.wire_protocol,
            environ={"wsgi.errors": _ErrorStream(self._logger)},
            # oslo.service's own tests send requests without Host and answer with str.
            lenient=environment.is_testing(),
            keep_alive_timeout=self.keep_alive_timeout,
            max_connections=self.max_connections,
            max_body=self.max_body,
            max_waiting=self.max_waiting,
            proxies=self.proxies,
            access_log=self.access_log,
            access_filter=self.access_filter,
            request_timeout=self.request_timeout,
            slow_client_share=self.slow_client_share,
            max_unsent=self.max_unsent,
        )
        # What ends a process late must be loaded before the interpreter shuts down.
        from osloxide.launch import ending as _ending  # noqa: F401

        engine.start()
        slow_requests.install()
        # In place: what happens when this object is collected knows the list.
        self._engines[:] = [*(old for old in self._engines if not old.wait(0)), engine]
        self._pool.size = self.pool_size
        self._server = _Acceptor(engine)
        _started.add(self)
        _running[:] = [*(old for old in _running if _is_busy(old)), engine]

    def _limit_stuck_threads(self) -> None:
        """Set after how many stuck threads this process asks for its successor.

        They are counted for the process, so the strictest of its servers decides.
        """
        others = (it for it in _started if it._server is not None and not it._server.is_stopped)
        servers = [self, *(server for server in others if server._limits_stuck_threads)]
        bounds = (it.max_stuck_threads or max(1, it.pool_size // 10) for it in servers)
        _native.limit_worker(stuck=min(bounds))

    def _application(self) -> Any:
        """What requests are given to."""
        if self.forwarded_from is None or self.app is None:
            return self.app
        return forwarded.believed(self.app, self.forwarded_from, self.forwarded_headers)

    def stop(self) -> None:
        """Stop accepting and drain: requests in flight are answered, idle connections closed.

        Returns at once; see :meth:`wait`. At the end of the process (a launcher is stopping) the
        socket is closed too, after the connections that wait in its backlog were served; during a
        reload in place it is kept for :meth:`start`.
        """
        LOG.info("Stopping WSGI server.")
        if self._server is None:
            return
        self._pool.resize(0)
        if shutdown.is_stopping():
            # Before the engine serves its backlog and closes its copy: a connection that comes
            # between the two would be reset by the last close.
            self._close_sockets()
        self._server.kill()

    def _close_sockets(self) -> None:
        self.socket.close()
        if self.dup_socket is not None:
            self.dup_socket.close()

    def wait(self) -> None:
        """Block until the server was stopped and has answered every request.

        Returns at once if it was never started. Signal handlers run during the wait.
        """
        if self._server is None:
            return
        LOG.debug("Waiting WSGI server to finish %d requests.", self._pool.running())
        self._pool.waitall()

    def reset(self) -> None:
        """Bring the pool back to its size after :meth:`stop`; also called on SIGHUP.

        Certificate and key are read again: connections accepted from now on use them. If they
        cannot be used, that is logged and the earlier ones stay.
        """
        self._pool.resize(self.pool_size)
        _native.reread_log_levels()
        if self._tls is not None:
            try:
                self._tls = self._load_tls()
            except (OSError, ValueError, RuntimeError) as error:
                LOG.error("%s keeps its TLS files: %s", self.name, self.explain(error))
                return
            for engine in self._engines:
                engine.replace_tls(self._tls)

    def explain(self, error: Exception) -> str:
        """What *error*, which is about this server's options, says to its operator.

        Subclasses whose options have other names may replace it.
        """
        return str(error)


class _Acceptor:
    """What stands where oslo.service keeps the green thread of its accept loop."""

    def __init__(self, engine: _native.Server) -> None:
        self._engine = engine
        self.is_stopped = False

    @property
    def dead(self) -> bool:
        """Whether the server was stopped and has no connection left."""
        return self._engine.wait(0)

    def kill(self, *_args: object) -> None:
        """Stop accepting; requests in flight are still answered."""
        self.is_stopped = True
        self._engine.stop(close=shutdown.is_stopping())


class _Pool:
    """What stands where oslo.service keeps its green pool: the same questions, honest answers.

    :ivar size: most requests in flight at once; 0 once the server was stopped.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.size = server.pool_size

    def resize(self, size: int) -> None:
        """Change the size; 0 only records that nothing new is taken on."""
        self.size = size
        if size > 0:
            for engine in self._server._engines:
                engine.resize(size)

    def running(self) -> int:
        """Count the requests that the application is answering."""
        return sum(engine.stats()["busy"] for engine in self._server._engines)

    def waiting(self) -> int:
        """Count the requests that wait for a thread."""
        return sum(engine.stats()["queued"] for engine in self._server._engines)

    def free(self) -> int:
        """Count the requests that could be taken on at once."""
        return max(0, self.size - self.running())

    def waitall(self) -> None:
        """Block until every start of the server was stopped and drained."""
        for engine in tuple(self._server._engines):
            engine.wait()


class _ErrorStream:
    """``wsgi.errors``: what applications write there goes to the log, line by line.

    Lines that are not finished are kept apart for each thread and logged by :meth:`flush`.
    """

    encoding = "utf-8"

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._unfinished = threading.local()

    def write(self, text: str) -> int:
        """Log the lines that *text* completes at level ERROR.

        :returns: the number of characters, as files do.
        """
        *lines, rest = (getattr(self._unfinished, "text", "") + text).split("\n")
        self._unfinished.text = rest
        for line in lines:
            self._log(line)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of *lines*, which bring their own line ends."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Log what has no line end yet."""
        rest, self._unfinished.text = getattr(self._unfinished, "text", ""), ""
        self._log(rest)

    def isatty(self) -> bool:
        """Say that no terminal is attached."""
        return False

    def _log(self, line: str) -> None:
        if line.strip():
            self._logger.log(ERROR, "%s", line.rstrip("\r"))


_started: identity.WeakIdentitySet[Server] = identity.WeakIdentitySet()

_running: list[_native.Server] = []
"""Engines that were started in this process, also those whose server was collected: their threads
run the application until the last request was answered."""


def _forget_started() -> None:
    """A forked child has none of the threads."""
    _started.clear()
    _running.clear()


os.register_at_fork(after_in_child=_forget_started)


def _is_busy(engine: _native.Server) -> bool:
    """Whether it has threads or connections. Runs no signal handler: a finalizer calls it."""
    stats = engine.stats()
    return bool(stats["threads"] or stats["connections"])


def _outlive(engines: list[_native.Server]) -> None:
    """A server was collected: it takes no more connections, and answers what it has begun."""
    for engine in engines:
        if engine in _running:
            engine.stop(close=True)
    _running[:] = [engine for engine in _running if _is_busy(engine)]


def _drain_at_exit() -> None:
    """Drain servers that were not stopped before the interpreter goes away under their threads.

    A thread that wants the interpreter back afterwards would abort the process, so requests that
    are still in flight after EXIT_GRACE_SECONDS end with it.
    """
    servers, engines = tuple(_started), tuple(_running)
    for server in servers:
        server._close_sockets()
    for engine in engines:
        engine.stop(close=True)
    deadline = time.monotonic() + EXIT_GRACE_SECONDS
    try:
        # All of them are asked, also after a late one.
        late = [not engine.wait(max(0.0, deadline - time.monotonic())) for engine in engines]
    except KeyboardInterrupt:
        late = [True]
    if any(late):
        from osloxide.launch.ending import leave

        for server in servers:
            if running := server._pool.running():
                LOG.error(
                    "%(name)s left with %(running)d requests still running; stop it and wait() "
                    "before the program ends",
                    {"name": server.name, "running": running},
                )
        leave(1)


at_end.call(at_end.Turn.SERVERS, _drain_at_exit)
