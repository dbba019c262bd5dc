"""``eventlet.wsgi``: a WSGI server in greenthreads.

Owns eventlet's server with all that programs reach into: its protocol class, the connection's
states, ``eventlet.*`` keys of the environment. One greenthread serves a connection. How an answer
is framed and how a server ends have files below ``_core``. oslo.service's ``wsgi.Server`` is the
native server and does not come here.

Rules: eventlet.wsgi; PEP 3333; RFC 9110 and 9112 as far as eventlet's server keeps them.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket as _socket
import ssl
import sys
import time
import traceback
import urllib.parse
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from osloxide._typing import override
from osloxide.green import greenio, greenpool, support
from osloxide.green._core import head
from osloxide.green._core.answer import Answer, format_date_time
from osloxide.green._core.answer import (
    encode_header_line as _encode_header_line,  # noqa: F401 - a name that eventlet.wsgi has
)
from osloxide.green._core.arrivals import Connection
from osloxide.green._core.body import ChunkReadError, Input
from osloxide.green._core.drain import STATE_CLOSE, STATE_IDLE, STATE_REQUEST, drain
from osloxide.green._core.logs import LoggerFileWrapper as LoggerFileWrapper
from osloxide.green._core.logs import LoggerNull, get_logger
from osloxide.green.corolocal import local
from osloxide.green.timeout import Timeout

__all__ = ["ChunkReadError", "HttpProtocol", "Input", "Server", "format_date_time", "server"]

DEFAULT_MAX_SIMULTANEOUS_REQUESTS = 1024
DEFAULT_MAX_HTTP_VERSION = "HTTP/1.1"
MAX_REQUEST_LINE = 8192
MAX_HEADER_LINE = 8192
MAX_TOTAL_HEADER_SIZE = 65536
MINIMUM_CHUNK_SIZE = 4096
DEFAULT_LOG_FORMAT = (
    '%(client_ip)s - - [%(date_time)s] "%(request_line)s"'
    " %(status_code)s %(body_length)s %(wall_seconds).6f"
)
RESPONSE_414 = (
    b"HTTP/1.0 414 Request URI Too Long\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)
BAD_SOCK = {errno.EBADF}
BROKEN_SOCK = {errno.EPIPE, errno.ECONNRESET, errno.ESHUTDOWN}
ACCEPT_EXCEPTIONS = (OSError, ssl.SSLError)
ACCEPT_ERRNO = {
    errno.EPIPE,
    errno.ECONNRESET,
    errno.ENOTCONN,
    errno.ESHUTDOWN,
    ssl.SSL_ERROR_EOF,
    ssl.SSL_ERROR_SSL,
}

is_accepting = True
"""Set to False, servers stop after the next connection."""

FIRST_REQUEST_SECONDS = 2.0
"""What a connection gets for its first request when its server ends; as the native server gives."""

WSGI_LOCAL = local()
"""``already_handled``: the application has answered on the socket itself."""


class _AlreadyHandled:
    """Returned by applications that have answered on the socket themselves."""

    def __iter__(self) -> _AlreadyHandled:
        return self

    def __next__(self) -> Any:
        raise StopIteration


ALREADY_HANDLED = _AlreadyHandled()


def addr_to_host_port(addr: Any) -> tuple[str, Any]:
    """Host and port of a socket's address; ``unix`` and nothing for a path."""
    host, port = "unix", ""
    if isinstance(addr, tuple):
        host, port = addr[:2]
    return host, port


class HeaderLineTooLong(Exception):
    """A line of the header is longer than MAX_HEADER_LINE."""


class HeadersTooLarge(Exception):
    """The header is longer than MAX_TOTAL_HEADER_SIZE."""


class FileObjectForHeaders:
    """A stream that bounds the header."""

    def __init__(self, fp: Any) -> None:
        self.fp = fp
        self.total_header_size = 0

    def readline(self, size: int = -1) -> bytes:
        """Read a line.

        :raises HeaderLineTooLong: it is too long.
        :raises HeadersTooLarge: all lines together are.
        """
        line: bytes = self.fp.readline(MAX_HEADER_LINE if size < 0 else size)
        if len(line) >= MAX_HEADER_LINE:
            raise HeaderLineTooLong
        self.total_header_size += len(line)
        if self.total_header_size > MAX_TOTAL_HEADER_SIZE:
            raise HeadersTooLarge
        return line


class HttpProtocol(BaseHTTPRequestHandler):
    """Serves one connection.

    :param conn_state: ``[address, socket, state]``.
    """

    protocol_version = "HTTP/1.1"
    minimum_chunk_size = MINIMUM_CHUNK_SIZE
    capitalize_response_headers = True
    reject_bad_requests = True
    wbufsize = 16 << 10
    _own_address: tuple[str, Any] | None = None
    server: Any
    environ: dict[str, Any]
    application: Any

    def __init__(self, conn_state: list[Any], server: Any) -> None:
        self.request = conn_state[1]
        self.client_address = conn_state[0]
        self.conn_state = conn_state
        self.server = server
        if server.minimum_chunk_size is not None:
            self.minimum_chunk_size = server.minimum_chunk_size
        self.capitalize_response_headers = server.capitalize_response_headers
        self.setup()
        try:
            self.handle()
        finally:
            self.finish()

    @override
    def setup(self) -> None:
        """Open the streams."""
        self.connection = self.request
        with contextlib.suppress(OSError, AttributeError):
            self.connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_QUICKACK, True)
        try:
            self.rfile = self.connection.makefile("rb", self.rbufsize)
            self.wfile = self.connection.makefile("wb", self.wbufsize)
        except (AttributeError, NotImplementedError):
            raise NotImplementedError(
                f"eventlet.wsgi doesn't support sockets of type {type(self.connection)}"
            ) from None

    @override
    def handle(self) -> None:
        """Serve requests until the connection ends."""
        self.close_connection = True
        while True:
            self.handle_one_request()
            if self.conn_state[2] == STATE_CLOSE:
                self.close_connection = True
            else:
                self.conn_state[2] = STATE_IDLE
            if self.close_connection:
                break

    def _read_request_line(self) -> bytes:
        if self.rfile.closed:
            self.close_connection = True
            return b""
        try:
            keepalive = self.server.keepalive
            if keepalive and not isinstance(keepalive, bool):
                self.connection.settimeout(keepalive)
            line: bytes = self.rfile.readline(self.server.url_length_limit)
            self.connection.settimeout(self.server.socket_timeout)
        except OSError as error:
            number = support.get_errno(error)
            if number in BROKEN_SOCK:
                self.server.log.debug(
                    "(%s) connection reset by peer %r", self.server.pid, self.client_address
                )
            elif number not in BAD_SOCK:
                raise
            return b""
        return line

    def _refuse(self, response: bytes) -> None:
        self.wfile.write(response)
        self.close_connection = True

    @override
    def handle_one_request(self) -> None:
        """Read a request and answer it."""
        if self.server.max_http_version:
            self.protocol_version = self.server.max_http_version
        self.raw_requestline = self._read_request_line()
        self.conn_state[2] = STATE_REQUEST
        if not self.raw_requestline:
            self.close_connection = True
            return
        if len(self.raw_requestline) >= self.server.url_length_limit:
            self._refuse(RESPONSE_414)
            return
        if not self._read_header() or not self._check_framing():
            return
        self.environ = self.get_environ()
        self.application = self.server.app
        self.server.outstanding_requests += 1
        try:
            self.handle_one_response()
        except OSError as error:
            if support.get_errno(error) not in BROKEN_SOCK:
                raise
        finally:
            self.server.outstanding_requests -= 1

    @override
    def parse_request(self) -> bool:
        """Read the header of the request whose first line was read.

        :returns: False when it was refused, with an answer.
        """
        match = head.REQUEST_LINE.fullmatch(self.raw_requestline)
        if match is None:
            return super().parse_request()
        lines = head.read_lines(self.rfile)
        headers = head.plain_headers(lines, self.MessageClass)
        if headers is None:
            rfile, self.rfile = self.rfile, io.BytesIO(b"".join(lines))
            try:
                return super().parse_request()
            finally:
                self.rfile = rfile
        self.requestline = str(self.raw_requestline, "latin-1").rstrip("\r\n")
        self.command, self.path, self.request_version = map(str, match.groups(), ("latin-1",) * 3)
        self.headers = headers
        modern = self.protocol_version >= "HTTP/1.1"
        wanted = headers.get("Connection", "").lower()
        persists = self.request_version == "HTTP/1.1" or wanted == "keep-alive"
        self.close_connection = wanted == "close" or not (modern and persists)
        if (
            modern
            and self.request_version == "HTTP/1.1"
            and headers.get("Expect", "").lower() == "100-continue"
        ):
            return self.handle_expect_100()
        return True

    def _read_header(self) -> bool:
        rfile = self.rfile
        self.rfile = FileObjectForHeaders(rfile)  # type: ignore[assignment]
        try:
            return self.parse_request()
        except HeaderLineTooLong:
            reason = b"Header Line Too Long"
        except HeadersTooLarge:
            reason = b"Headers Too Large"
        finally:
            self.rfile = rfile
        self._refuse(
            b"HTTP/1.0 400 " + reason + b"\r\nConnection: close\r\nContent-length: 0\r\n\r\n"
        )
        return False

    def _check_framing(self) -> bool:
        length = self.headers.get("content-length")
        if length is None:
            return True
        if not length.strip().isdigit():
            self._refuse(
                b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\nContent-length: 0\r\n\r\n"
            )
            return False
        if self.headers.get("transfer-encoding") is not None and self.reject_bad_requests:
            message = b"Content-Length and Transfer-Encoding are not allowed together\n"
            self._refuse(
                b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(message), message)
            )
            return False
        return True

    # ---- the answer -----------------------------------------------------------------------------

    def handle_one_response(self) -> None:
        """Call the application and send what it answers."""
        start = time.time()
        answer = Answer(self)
        request_input = self.environ["eventlet.input"]
        request_input.headers_sent = answer.sent
        result = None
        try:
            try:
                WSGI_LOCAL.already_handled = False
                result = self.application(self.environ, answer.start_response)
                if result is ALREADY_HANDLED:
                    WSGI_LOCAL.already_handled = True
                answer.complete(result)
                whole = (
                    answer.headers is not None and not answer.sent and hasattr(result, "__len__")
                )
                if whole and request_input.should_send_hundred_continue:
                    # The body was not asked for, and never will be.
                    self.close_connection = True
                if self._send_body(answer, result):
                    return
            except (Exception, Timeout):  # noqa: BLE001 - whatever applications raise
                self._fail(answer)
        finally:
            if hasattr(result, "close"):
                result.close()  # type: ignore[union-attr]
            self._after(request_input)
            finish = time.time()
            for hook, args, kwargs in self.environ["eventlet.posthooks"]:
                hook(self.environ, *args, **kwargs)
            if self.server.log_output:
                self._log(answer, finish - start)

    def _send_body(self, answer: Answer, result: Any) -> bool:
        """Send the body; True when the application has answered by itself."""
        minimum = int(
            self.environ.get("eventlet.minimum_write_chunk_size", self.minimum_chunk_size)
        )
        waiting: list[bytes] = []
        size = last = 0
        for data in result:
            if len(data) == 0:
                continue
            waiting.append(data.encode("ascii") if isinstance(data, str) else data)
            size += len(data)
            if size >= minimum:
                answer.write(b"".join(waiting))
                waiting, last, size = [], size, 0
        if WSGI_LOCAL.already_handled:
            self.close_connection = True
            return True
        if waiting:
            last = size
            answer.write(b"".join(waiting))
        if not answer.sent or (answer.chunked and last):
            answer.write(b"")
        return False

    def _fail(self, answer: Answer) -> None:
        self.close_connection = True
        text = traceback.format_exc()
        self.server.log.info(text)
        if not answer.sent:
            body = text.encode() if self.server.debug else b""
            answer.start_response(
                "500 Internal Server Error",
                [("Content-type", "text/plain"), ("Content-length", len(body))],
            )
            answer.write(body)

    def _after(self, request_input: Input) -> None:
        if request_input.should_send_hundred_continue:
            # Whether the client sends its body now cannot be told.
            self.close_connection = True
        unread = request_input.chunked_input or (
            request_input.position < (request_input.content_length or 0)
        )
        if not unread or self.close_connection:
            return
        try:
            request_input.discard()
        except (ChunkReadError, OSError) as error:
            self.close_connection = True
            kind = "chunked encoding" if isinstance(error, ChunkReadError) else "I/O"
            self.server.log.error(
                '%s error while discarding request body. client=%s request="%s" error="%s"',
                kind,
                self.get_client_address()[0],
                self.requestline,
                error,
            )

    def _log(self, answer: Answer, seconds: float) -> None:
        host, port = self.get_client_address()
        line = self.server.log_format % {
            "client_ip": host,
            "client_port": port,
            "date_time": self.log_date_time_string(),
            "request_line": self.requestline,
            "status_code": answer.code,
            "body_length": answer.length,
            "wall_seconds": seconds,
        }
        self.server.log.info(line)

    def get_client_address(self) -> tuple[str, Any]:
        """Host, after those that X-Forwarded-For names, and port."""
        host, port = addr_to_host_port(self.client_address)
        if self.server.log_x_forwarded_for:
            forward = self.headers.get("X-Forwarded-For", "").replace(" ", "")
            if forward:
                host = f"{forward},{host}"
        return host, port

    # ---- the environment ------------------------------------------------------------------------

    def formalize_key_naming(self, k: str) -> str | None:
        """A header's name in the environment; None for names with underscores, which could be
        mistaken for others."""
        return None if "_" in k else k.replace("-", "_").upper()

    def get_environ(self) -> dict[str, Any]:
        """PEP 3333's environment of the request that was read."""
        env: dict[str, Any] = self.server.get_environ()
        path, mark, query = self.path.partition("?")
        env |= {
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "RAW_PATH_INFO": path,
            "PATH_INFO": urllib.parse.unquote(path, encoding="latin-1"),
        }
        if mark:
            env["QUERY_STRING"] = query
        kind = self.headers.get("content-type")
        env["CONTENT_TYPE"] = self.headers.get_content_type() if kind is None else kind
        length = self.headers.get("content-length")
        if length:
            env["CONTENT_LENGTH"] = length
        if self._own_address is None:
            self._own_address = addr_to_host_port(self.request.getsockname())
        host, port = self._own_address
        client, client_port = addr_to_host_port(self.client_address)
        env |= {
            "SERVER_PROTOCOL": "HTTP/1.0",
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "REMOTE_ADDR": client,
            "REMOTE_PORT": str(client_port),
            "GATEWAY_INTERFACE": "CGI/1.1",
        }
        raw = tuple((name, value.strip(" \t\n\r")) for name, value in self.headers._headers)  # type: ignore[attr-defined]
        env["headers_raw"] = raw
        for name, value in raw:
            key = self.formalize_key_naming(name)
            if key and key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                key = f"HTTP_{key}"
                env[key] = f"{env[key]},{value}" if key in env else value
        expects = env.get("HTTP_EXPECT", "").lower() == "100-continue"
        chunked = env.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked"
        env["wsgi.input"] = env["eventlet.input"] = Input(
            self.rfile,
            "0" if not chunked and length is None else length,
            self.connection,
            wfile=self.wfile if expects else None,
            wfile_line=b"HTTP/1.1 100 Continue\r\n" if expects else None,
            chunked_input=chunked,
        )
        env["eventlet.posthooks"] = []
        env["eventlet.set_idle"] = self._set_idle
        return env

    def _set_idle(self) -> None:
        """A websocket waits for its client: at the end of the server it may be closed."""
        self.conn_state[2] = STATE_IDLE
        if isinstance(self.conn_state, Connection):
            self.conn_state.is_released = True

    @override
    def finish(self) -> None:
        """Close the connection."""
        try:
            super().finish()
        except OSError as error:
            if support.get_errno(error) not in BROKEN_SOCK:
                raise
        greenio.shutdown_safe(self.connection)
        self.connection.close()

    @override
    def handle_expect_100(self) -> bool:
        """Sent when the application reads, see :class:`Input`."""
        return True


class Server(HTTPServer):
    """What the connections of a server share; see :func:`server` for the arguments."""

    is_ending = False
    """Whether it accepts no more: each connection ends with its next answer."""

    def __init__(
        self,
        socket: Any,
        address: Any,
        app: Any,
        log: Any = None,
        environ: dict[str, Any] | None = None,
        max_http_version: str | None = None,
        protocol: Any = HttpProtocol,
        minimum_chunk_size: int | None = None,
        log_x_forwarded_for: bool = True,
        keepalive: Any = True,
        log_output: bool = True,
        log_format: str = DEFAULT_LOG_FORMAT,
        url_length_limit: int = MAX_REQUEST_LINE,
        debug: bool = True,
        socket_timeout: float | None = None,
        capitalize_response_headers: bool = True,
    ) -> None:
        self.outstanding_requests = 0
        self.socket = socket
        self.address = address
        self.log: Any = get_logger(log, debug) if log_output else LoggerNull()
        self.app = app
        self.keepalive = keepalive
        self.environ = environ
        self.max_http_version = max_http_version
        self.protocol = protocol
        self.pid = os.getpid()
        self.minimum_chunk_size = minimum_chunk_size
        self.log_x_forwarded_for = log_x_forwarded_for
        self.log_output = log_output
        self.log_format = log_format
        self.url_length_limit = url_length_limit
        self.debug = debug
        self.socket_timeout = socket_timeout
        self.capitalize_response_headers = capitalize_response_headers
        if not capitalize_response_headers:
            warnings.warn(
                "capitalize_response_headers is disabled. Please, make sure you know what you are "
                "doing. HTTP headers names are case-insensitive per RFC standard. Most likely, you "
                "need to fix HTTP parsing in your client software.",
                DeprecationWarning,
                stacklevel=3,
            )

    def get_environ(self) -> dict[str, Any]:
        """What every request's environment begins with."""
        d: dict[str, Any] = {
            "wsgi.errors": sys.stderr,
            "wsgi.version": (1, 0),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.url_scheme": "http",
        }
        if hasattr(self.socket, "do_handshake"):
            d["wsgi.url_scheme"] = "https"
            d["HTTPS"] = "on"
        if self.environ is not None:
            d.update(self.environ)
        return d

    def process_request(self, conn_state: list[Any]) -> None:  # type: ignore[override,explicit-override]
        """Serve a connection until it ends."""
        try:
            self.protocol(conn_state, self)
        except TimeoutError:
            conn_state[1].close()
            self.log.debug("(%s) timed out %r", self.pid, conn_state[0])

    def log_message(self, message: str) -> None:
        """Gone.

        :raises AttributeError: always.
        """
        raise AttributeError(
            "eventlet.wsgi.server.log_message was deprecated and deleted.\n"
            "Please use server.log.info instead."
        )


def socket_repr(sock: Any) -> str:
    """What a server listens on, as a URL."""
    scheme = "https" if hasattr(sock, "do_handshake") else "http"
    name = sock.getsockname()
    if sock.family == _socket.AF_INET:
        rest = "//{}:{}".format(*name)
    elif sock.family == _socket.AF_INET6:
        rest = "//[{}]:{}".format(*name[:2])
    else:
        rest = name if sock.family == _socket.AF_UNIX else repr(name)
    return f"{scheme}:{rest}"


def server(
    sock: Any,
    site: Any,
    log: Any = None,
    environ: dict[str, Any] | None = None,
    max_size: int | None = None,
    max_http_version: str = DEFAULT_MAX_HTTP_VERSION,
    protocol: Any = HttpProtocol,
    server_event: Any = None,
    minimum_chunk_size: int | None = None,
    log_x_forwarded_for: bool = True,
    custom_pool: Any = None,
    keepalive: Any = True,
    log_output: bool = True,
    log_format: str = DEFAULT_LOG_FORMAT,
    url_length_limit: int = MAX_REQUEST_LINE,
    debug: bool = True,
    socket_timeout: float | None = None,
    capitalize_response_headers: bool = True,
) -> None:
    """Serve *site*, a WSGI application, on *sock*, which listens; until killed.

    Then requests in flight are answered, and connections that are idle between two are closed.
    Requests that the kernel holds are answered: on idle connections, on those that wait for room in
    the pool, and on those in the queue of *sock*. One on which no request has come at all gets
    :data:`FIRST_REQUEST_SECONDS` for it. With TLS, idle connections are closed at once. At last
    *sock* is closed.

    :param log: a logger, or a file; standard error when None.
    :param environ: keys of every request's environment.
    :param max_size: most connections at once; 1024 when None.
    :param max_http_version: ``HTTP/1.0``: answer as such.
    :param server_event: gets the :class:`Server`; deprecated.
    :param minimum_chunk_size: bytes that are collected before they are sent; 4096 when None. A
        request may set its own as ``eventlet.minimum_write_chunk_size``.
    :param custom_pool: a pool for the connections instead of one of *max_size*.
    :param keepalive: False or 0: one request for each connection; a number: seconds that the next
        request is waited for.
    :param log_output: whether anything is logged.
    :param log_format: of the access log: client_ip, client_port, date_time, request_line,
        status_code, body_length, wall_seconds.
    :param url_length_limit: bytes of a request line.
    :param debug: whether a client gets the traceback of a failed application.
    :param socket_timeout: seconds that a client may stay silent; None: for ever.
    """
    serv = Server(
        sock,
        sock.getsockname(),
        site,
        log,
        environ=environ,
        max_http_version=max_http_version,
        protocol=protocol,
        minimum_chunk_size=minimum_chunk_size,
        log_x_forwarded_for=log_x_forwarded_for,
        keepalive=keepalive,
        log_output=log_output,
        log_format=log_format,
        url_length_limit=url_length_limit,
        debug=debug,
        socket_timeout=socket_timeout,
        capitalize_response_headers=capitalize_response_headers,
    )
    if server_event is not None:
        warnings.warn(
            "eventlet.wsgi.Server() server_event kwarg is deprecated and will be removed soon",
            DeprecationWarning,
            stacklevel=2,
        )
        server_event.send(serv)
    if custom_pool is not None:
        pool = custom_pool
    else:
        size = DEFAULT_MAX_SIMULTANEOUS_REQUESTS if max_size is None else max_size
        pool = greenpool.GreenPool(size)
    if not (hasattr(pool, "spawn") and hasattr(pool, "waitall")):
        raise AttributeError(
            "eventlet.wsgi.Server pool must provide methods: `spawn`, `waitall`.\n"
            "If unsure, use eventlet.GreenPool."
        )
    connections: dict[int, Connection] = {}

    def clean(_: object, conn: Connection) -> None:
        connections.pop(id(conn), None)
        conn[2] = STATE_CLOSE
        greenio.shutdown_safe(conn[1])
        conn[1].close()

    try:
        serv.log.info("(%s) wsgi starting up on %s", serv.pid, socket_repr(sock))
        while is_accepting:
            try:
                client, address = sock.accept()
                client.settimeout(serv.socket_timeout)
                serv.log.debug("(%s) accepted %r", serv.pid, address)
                connection = Connection((address, client, STATE_IDLE))
                connections[id(connection)] = connection
                greenlet = pool.spawn(serv.process_request, connection)
                connection.is_begun = True
                greenlet.link(clean, connection)
            except ACCEPT_EXCEPTIONS as error:
                if support.get_errno(error) not in ACCEPT_ERRNO:
                    raise
                break
            except (KeyboardInterrupt, SystemExit):
                serv.log.info("wsgi exiting")
                break
    finally:
        drain(serv, sock, pool, connections, clean, FIRST_REQUEST_SECONDS)
        serv.log.info("(%s) wsgi exited, is_accepting=%s", serv.pid, is_accepting)
        try:
            sock.close()
        except OSError as error:
            if support.get_errno(error) not in BROKEN_SOCK:
                traceback.print_exc()
