"""TLS to the broker, made natively.

Owns the change to py-amqp's TLS transport: handshake and records are native (``src/amqp/tls.rs``),
so that everything that leaves and arrives without the interpreter's lock does so over TLS as well.
A connection has one owner: either this, from the handshake on, or Python's ``ssl``. Where options
ask for what rustls does not have (old versions, ciphers, a context), or where it refuses what
OpenSSL may take (a certificate of an old kind, an authority used as a broker's certificate), the
connection is made again by OpenSSL, which has the last word; only then do its heartbeats stop with
the interpreter.
Rules: amqp/transport.py (``SSLTransport``): certificates are verified, and names compared, exactly
where it does so; what is no file or no certificate is an error of it.
"""

from __future__ import annotations

import functools
import logging
import select
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from osloxide import _native
from osloxide.messaging.rabbit import heartbeats

LOG = logging.getLogger(__name__)

_KNOWN = {
    "keyfile", "certfile", "ca_certs", "cert_reqs", "server_hostname", "ssl_version",
    "do_handshake_on_connect", "suppress_ragged_eofs",
}  # fmt: skip
"""Parameters of a TLS connection that mean the same here. Others are OpenSSL's."""

_VERSIONS = {
    None,
    ssl.PROTOCOL_TLS,
    ssl.PROTOCOL_TLS_CLIENT,
    getattr(ssl, "PROTOCOL_TLSv1_2", None),
}
"""Values of ``ssl_version`` that TLS 1.2 satisfies."""


class _Fips:
    """Whether cryptography has to be a certified module's."""

    is_asked_for = False
    """``[oslo_messaging_rabbit] ssl_enforce_fips_mode`` of any transport."""

    @functools.cached_property
    def is_system(self) -> bool:
        """The kernel was started in that mode."""
        try:
            return Path("/proc/sys/crypto/fips_enabled").read_text().strip() == "1"
        except OSError:
            return False


_fips = _Fips()


class RefusedNatively(Exception):
    """The native handshake has failed; OpenSSL is asked."""


class _OfSeveralHosts(dict[str, Any]):
    """Options of a URL with several hosts. Kombu writes the first one's name into them, and would
    compare the certificates of all others with it."""


class TlsSocket:
    """In the place of an ``ssl.SSLSocket``: a plain socket, whose bytes a native session owns."""

    def __init__(self, plain: Any, native: _native.AmqpConnection) -> None:
        self.plain = plain
        self.native = native

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def pending(self) -> int:
        """More than 0: something can be read though the descriptor may not be readable."""
        return int(self.native.is_readable)

    def read(self, most: int) -> bytes:
        """At most *most* bytes, nothing at the end of the stream; waits for the socket's timeout.

        :raises TimeoutError: nothing has arrived until then.
        """
        timeout = self.plain.gettimeout()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            received = self.native.receive(most)
            if received is not None:
                return received
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("timed out")
            poll = select.poll()
            poll.register(self.plain.fileno(), select.POLLIN)
            poll.poll(None if left is None else left * 1000)

    recv = read

    def write(self, data: Any) -> int:
        """Send all of *data*; waits for the socket's timeout.

        :raises TimeoutError: the peer has not taken it until then.
        """
        self.native.write(data, self.plain.gettimeout())
        return len(data)

    sendall = write

    def unwrap(self) -> Any:
        """The plain socket, after a farewell that is not waited for."""
        self.native.close()
        return self.plain


def amend_transport(module: ModuleType) -> None:
    """Change ``amqp.transport.SSLTransport``."""
    cls = module.SSLTransport
    connect, set_up = cls.connect, cls._setup_transport
    left: dict[Any, str] = {}

    @functools.wraps(set_up)
    def set_up_natively(self: Any) -> None:
        if isinstance(self.sslopts, _OfSeveralHosts):
            self.sslopts["server_hostname"] = self.host
        key = self.host, self.port, repr(sorted(self.sslopts.items(), key=str))
        reason = left.get(key) or foreign(self.sslopts)
        if reason is None:
            reason = getattr(self, "_osloxide_refusal", None)
        if reason is not None:
            set_up(self)
            if key not in left:
                left[key] = reason
                LOG.warning(
                    "TLS to %s:%s is OpenSSL's (%s): its heartbeats stop while an endpoint holds "
                    "the interpreter, and it costs more",
                    self.host,
                    self.port,
                    reason,
                )
            return
        _wrap(self)

    @functools.wraps(connect)
    def connect_natively(self: Any) -> None:
        try:
            connect(self)
        except RefusedNatively as error:
            self.sock.close()
            self.sock = None
            self._osloxide_refusal = str(error)
            connect(self)

    cls.connect, cls._setup_transport = connect_natively, set_up_natively


def _wrap(transport: Any) -> None:
    plain, options = transport.sock, transport.sslopts
    paths = root_paths(options)
    roots = None if paths is None else b"\n".join(_native.read_file(path) for path in paths)
    identity = None
    if options.get("certfile"):
        certificate = _native.read_file(options["certfile"])
        key = options.get("keyfile")
        identity = certificate, _native.read_file(key) if key else certificate
    try:
        native = heartbeats.own().add_tls(
            plain.fileno(),
            roots=roots,
            server_name=options.get("server_hostname"),
            identity=identity,
            timeout=transport.connect_timeout,
        )
    except ValueError as error:
        raise RefusedNatively(str(error)) from error
    plain.settimeout(transport.connect_timeout)
    transport.sock = TlsSocket(plain, native)
    transport._quick_recv = transport.sock.read
    transport._write = transport.sock.write


def foreign(options: dict[str, Any]) -> str | None:
    """What only OpenSSL can do of *options*."""
    for name, value in options.items():
        if name not in _KNOWN and value is not None:
            return f"option {name}"
    if _fips.is_asked_for or _fips.is_system:
        return "FIPS 140, of which its modules may be certified"
    if options.get("cert_reqs") == ssl.CERT_NONE and options.get("server_hostname") is not None:
        return "a name without verification"
    if options.get("ssl_version") not in _VERSIONS:
        return f"version {options['ssl_version']!r}"
    if _verifies(options) and options.get("ca_certs") is None and not _default_roots():
        return "no file of authorities that the system trusts"
    return None


def _verifies(options: dict[str, Any]) -> bool:
    """Whether Python's ``ssl`` verifies the broker's certificate."""
    required = options.get("cert_reqs")
    if required is None:
        version = options.get("ssl_version")
        has_name = options.get("server_hostname") is not None
        return has_name or version is None or version == ssl.PROTOCOL_TLS_CLIENT
    return bool(required != ssl.CERT_NONE)


def root_paths(options: dict[str, Any]) -> list[Path] | None:
    """Files of the authorities that *options* make Python's ``ssl`` trust; None when it verifies
    nothing."""
    if not _verifies(options):
        return None
    if options.get("ca_certs") is not None:
        return [Path(options["ca_certs"])]
    return _default_roots()


def _default_roots() -> list[Path]:
    """The files that ``ssl.SSLContext.load_default_certs`` makes OpenSSL read."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return [Path(paths.cafile)]
    if paths.capath:
        return [path for path in sorted(Path(paths.capath).glob("*.[0-9]")) if path.is_file()]
    return []


def check_options(connection: Any) -> None:
    """Read what ``[oslo_messaging_rabbit] ssl_*`` names, before it is connected with.

    :param connection: ``impl_rabbit.Connection``.
    :raises ConfigurationError: a file cannot be used. To try again would not help.
    """
    if not getattr(connection, "ssl", False):
        return
    if getattr(connection, "ssl_enforce_fips_mode", False):
        _fips.is_asked_for = True
    if connection.ssl_ca_file:
        _check(
            "ssl_ca_file",
            connection.ssl_ca_file,
            lambda context: context.load_verify_locations(connection.ssl_ca_file),
            "give a file of certificates in PEM",
        )
    certificate, key = connection.ssl_cert_file, connection.ssl_key_file
    if certificate:
        _check(
            "ssl_cert_file",
            certificate,
            lambda context: context.load_verify_locations(certificate),
            "give the client's certificate in PEM",
        )
        _check(
            "ssl_key_file" if key else "ssl_cert_file",
            key or certificate,
            lambda context: context.load_cert_chain(certificate, key or None),
            f"give the key, in PEM and without a passphrase, of {certificate}",
        )
    elif key:
        raise _configuration_error(
            f"ssl_key_file = {key!r} is of no use without ssl_cert_file; set both or none"
        )


def _check(option: str, path: str, load: Callable[[ssl.SSLContext], object], remedy: str) -> None:
    try:
        _native.read_file(path)
        if Path(path).is_file():
            load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        # A pipe has given what it had: the first connection finds out what that is worth.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        text = f"{option} = {path!r}: {reason}; {remedy}"
        raise _configuration_error(text) from error


def _configuration_error(text: str) -> Exception:
    from oslo_messaging.exceptions import ConfigurationError

    error: Exception = ConfigurationError(f"[oslo_messaging_rabbit] {text}")
    return error


def amend_connection(impl_rabbit: ModuleType) -> None:
    """Change ``oslo_messaging._drivers.impl_rabbit.Connection``."""
    cls = impl_rabbit.Connection
    ensure_connection, fetch_params = cls.ensure_connection, cls._fetch_ssl_params

    @functools.wraps(fetch_params)
    def fetch_for_each_host(self: Any) -> Any:
        params = fetch_params(self)
        if isinstance(params, dict) and params.get("server_hostname", "") is None:
            return _OfSeveralHosts(params)
        return params

    @functools.wraps(ensure_connection)
    def check_and_ensure(self: Any) -> Any:
        # Later on files may be missing for a moment, while they are renewed.
        if getattr(self, "channel", None) is None and not hasattr(self, "_osloxide_is_checked"):
            check_options(self)
            self._osloxide_is_checked = True
        return ensure_connection(self)

    cls.ensure_connection, cls._fetch_ssl_params = check_and_ensure, fetch_for_each_host
