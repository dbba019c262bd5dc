"""The listening sockets of ``osloxide serve``, one server for each.

Owns which address becomes which socket: bound here, passed by systemd, or kept open by this
command across its own restart. Accepts nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osloxide.cli import address, contradictions, inherited, log_file, privileges
from osloxide.cli.application import require_readable
from osloxide.cli.errors import CommandError
from osloxide.cli.site import in_one_line
from osloxide.server import options as server_options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from oslo_config.cfg import ConfigOpts

    from osloxide import _native
    from osloxide.server import forwarded
    from osloxide.wsgi import Server

ACCESS_LOGGER = "osloxide.access"

_KEPT = "_OSLOXIDE_SERVE_KEPT"
"""Variable that tells the next program of this process which sockets it has already."""

_DEFAULT = address.Listener(("127.0.0.1", 8000))


def keep(servers: Sequence[Server]) -> dict[str, str]:
    """Let the sockets of *servers* survive execve(2).

    :returns: variables for the next program.
    """
    for server in servers:
        server.socket.set_inheritable(True)
    return {_KEPT: json.dumps([server.socket.fileno() for server in servers])}


def release(servers: Sequence[Server]) -> None:
    """Take back what :func:`keep` did: commands that the application starts inherit no socket."""
    for server in servers:
        server.socket.set_inheritable(False)


def bind(options: argparse.Namespace) -> list[Server]:
    """One server for each address, all listening.

    :raises CommandError: an address is taken, a file cannot be read, an option does not fit.
    """
    from osloxide import wsgi
    from osloxide._typing import override
    from osloxide.server.listener import address_of

    class SiteServer(wsgi.Server):
        """A server that may have been given its socket."""

        max_headers = options.limit_request_fields or wsgi.Server.max_headers
        keep_alive_timeout = options.keep_alive_timeout
        max_connections = options.max_connections
        proxies = _proxies(options)
        max_body = options.limit_request_body or None
        request_timeout = float(options.request_timeout or 0) or None
        max_waiting = options.max_waiting_requests
        access_log = _access_log(options)
        access_filter = _access_filter(options)
        key_passphrase_file = options.keyfile_passphrase_file
        client_certificates = options.cert_reqs or wsgi.Server.client_certificates
        is_logged = not (options.no_access_log or options.access_log)

        def __init__(
            self,
            conf: ConfigOpts,
            listener: socket.socket | None,
            protocol: str,
            use_ssl: bool,
            **place: Any,
        ) -> None:
            self._given = listener
            self.wire_protocol = protocol
            # Of a socket that was given it is not known: another program may have made it.
            self.backlog = options.backlog if listener is None else 0
            if protocol == "uwsgi":
                # Its proxies name the client in REMOTE_ADDR and put no header in front.
                self.proxies = None
            super().__init__(
                conf,
                options.name,
                None,
                backlog=options.backlog,
                use_ssl=use_ssl,
                max_url_len=options.limit_request_line,
                logger_name=ACCESS_LOGGER,
                **place,
            )

        @override
        def explain(self, error: Exception) -> str:
            return _in_own_names(in_one_line(error))

        @override
        def _get_socket(self, host: str, port: int, backlog: int) -> socket.socket:
            if self._given is None:
                return super()._get_socket(host, port, backlog)
            if self._given.family in (socket.AF_INET, socket.AF_INET6):
                self._set_socket_opts(self._given)
            where = ":".join(map(str, address_of(self._given))).replace("\0", "@", 1)
            logging.getLogger("osloxide.serve").info(
                "%s listening on %s, inherited as fd %d", self.name, where, self._given.fileno()
            )
            return self._given

    conf = _configuration(options)
    has_tls = _has_tls(options)
    kept = [
        socket.socket(fileno=descriptor) for descriptor in json.loads(os.environ.pop(_KEPT, "[]"))
    ]
    servers: list[Server] = []
    addresses = _addresses(options.bind)
    if options.proxy_protocol and all(listener.scheme == "uwsgi" for listener, _ in addresses):
        raise CommandError(
            "--proxy-protocol has no effect: every --bind is uwsgi://, where the proxy names the "
            "client in REMOTE_ADDR; leave the option out, or bind an address for HTTP"
        )
    _check_addresses(options, addresses)
    _check_repetitions(addresses)
    for index, (listener, where) in enumerate(addresses):
        if listener.scheme == "https" and not has_tls:
            raise CommandError("--bind https:// needs --certfile; give both")
        protocol = "uwsgi" if listener.scheme == "uwsgi" else "http"
        use_ssl = has_tls and listener.scheme in (None, "https")
        place: dict[str, Any] = {}
        given: socket.socket | None = None
        if kept:
            given = kept[index]
            given.set_inheritable(False)
        elif isinstance(where, socket.socket):
            given = where
        elif isinstance(where, str):
            place = {
                "socket_family": socket.AF_UNIX,
                "socket_file": where,
                "socket_mode": options.socket_mode,
            }
        else:
            place = {"host": where[0], "port": where[1]}
        try:
            servers.append(SiteServer(conf, given, protocol, use_ssl, **place))
        except (OSError, ValueError, RuntimeError, wsgi.InvalidInput) as error:
            raise CommandError(_in_own_names(in_one_line(error))) from error
        if options.socket_owner and isinstance(where, str) and not where.startswith("\0"):
            privileges.owner(options.socket_owner, "--socket-owner").give(where)
    return servers


def _addresses(
    bind: list[address.Listener] | None,
) -> list[tuple[address.Listener, tuple[str, int] | str | socket.socket]]:
    """Where to listen: as asked for, else on what systemd passed, else on port 8000."""
    passed = inherited.passed_by_systemd(os.environ)
    if not bind:
        found = [inherited.from_fd(descriptor) for descriptor, _ in passed]
        return [(_DEFAULT, listener) for listener in found] or [(_DEFAULT, ("127.0.0.1", 8000))]
    places: list[tuple[address.Listener, tuple[str, int] | str | socket.socket]] = []
    unused = {descriptor for descriptor, _ in passed}
    for listener in bind:
        where = listener.place
        if not isinstance(where, address.Inherited):
            places.append((listener, where))
            continue
        for descriptor in inherited.find(where.name, passed):
            unused.discard(descriptor)
            places.append((listener, inherited.from_fd(descriptor)))
    if unused:
        logging.getLogger("osloxide.serve").warning(
            "systemd passed sockets that --bind does not name: %s; no process accepts on them",
            ", ".join(f"fd://{descriptor}" for descriptor in sorted(unused)),
        )
    return places


def _check_repetitions(
    addresses: Sequence[tuple[address.Listener, tuple[str, int] | str | socket.socket]],
) -> None:
    """Refuse an address that is given twice, before the kernel blames another process.

    :raises CommandError: names it.
    """
    seen: dict[object, str] = {}
    for _, where in addresses:
        identity: object
        if isinstance(where, socket.socket):
            identity, shown = os.fstat(where.fileno()).st_ino, f"fd://{where.fileno()}"
        elif isinstance(where, tuple):
            if where[1] == 0:
                continue
            identity, shown = where, address.shown(*where)
        else:
            is_abstract = where.startswith("\0")
            identity = where if is_abstract else os.path.realpath(where)
            shown = f"unix:{address.shown(where, 0)}"
        if identity in seen:
            same = "" if seen[identity] == shown else f", the first time as {seen[identity]}"
            raise CommandError(f"--bind {shown} is given twice{same}; leave one of them out")
        seen[identity] = shown
    for (host, port), other in _clashes([it for _, it in addresses if isinstance(it, tuple)]):
        raise CommandError(
            f"--bind {other}:{port} leaves nothing of port {port} to --bind {host}:{port}; leave "
            "one of them out"
        )


def _clashes(places: Sequence[tuple[str, int]]) -> Iterator[tuple[tuple[str, int], str]]:
    """IPv4 addresses beside one that stands for all of them, with that one.

    ``[::]`` does, unless the host keeps IPv6 apart (``net.ipv6.bindv6only``).
    """
    everywhere = {"0.0.0.0": "0.0.0.0"}  # noqa: S104 - compared, not bound
    with contextlib.suppress(OSError):
        if Path("/proc/sys/net/ipv6/bindv6only").read_text().strip() == "0":
            everywhere["::"] = "[::]"
    for host, port in places:
        with contextlib.suppress(ValueError):
            for wide, shown in everywhere.items():
                is_other = host != wide and ipaddress.ip_address(host).version == 4
                if port and is_other and (wide, port) in places:
                    yield (host, port), shown


def _check_addresses(
    options: argparse.Namespace,
    addresses: Sequence[tuple[address.Listener, tuple[str, int] | str | socket.socket]],
) -> None:
    """Refuse options that no address, or not this one, can have an effect on.

    :raises CommandError: names option, value and remedy.
    """
    trusted: forwarded.Trusted | None = options.proxy_allow_from
    is_unix = [
        isinstance(where, str)
        or (isinstance(where, socket.socket) and where.family == socket.AF_UNIX)
        for _, where in addresses
    ]
    if options.proxy_protocol and trusted is not None and trusted.names_unix_alone():
        for (listener, where), unix in zip(addresses, is_unix, strict=True):
            if not unix and listener.scheme != "uwsgi":
                shown = ":".join(map(str, where)) if isinstance(where, tuple) else "a socket of TCP"
                raise CommandError(
                    f"--proxy-allow-from {trusted.text} admits unix sockets alone, so no proxy "
                    f"could connect to {shown}; add the addresses of proxies, or bind unix:PATH"
                )
    believed: forwarded.Trusted | None = options.forwarded_allow_ips
    if (
        believed is not None
        and contradictions.is_given(options, "forwarded_allow_ips")
        and believed.names_unix_alone()
        and not any(is_unix)
    ):
        raise CommandError(
            f"--forwarded-allow-ips {believed.text} has no effect: no --bind is a unix socket; "
            "give the addresses of proxies, or leave it out"
        )
    has_plain_only = all(listener.scheme in ("http", "uwsgi") for listener, _ in addresses)
    if has_plain_only and contradictions.is_given(options, "certfile"):
        raise CommandError(
            f"--certfile {options.certfile} has no effect: every --bind is http:// or uwsgi://; "
            "bind https://, or leave it out"
        )
    has_file = any(isinstance(where, str) and not where.startswith("\0") for _, where in addresses)
    for name in ("socket_mode", "socket_owner"):
        if contradictions.is_given(options, name) and not has_file:
            raise CommandError(
                f"{contradictions.shown(options, name)} has no effect: no --bind is unix:PATH; "
                "bind one, or leave it out"
            )


def _proxies(
    options: argparse.Namespace,
) -> list[tuple[forwarded.Address, forwarded.Address]] | None:
    """Whose connections begin with a header of the PROXY protocol; ``None``: no one's do.

    :raises CommandError: the list has no effect, or admits no proxy.
    """
    trusted: forwarded.Trusted | None = options.proxy_allow_from
    if not options.proxy_protocol:
        if trusted is None or "proxy_allow_from" in getattr(options, "set_by_config", ()):
            return None
        raise CommandError(
            f"--proxy-allow-from {trusted.text} has no effect without --proxy-protocol; give both, "
            "or leave it out"
        )
    try:
        return server_options.proxies(None if trusted is None else trusted.text)
    except ValueError as error:
        raise CommandError(f"--proxy-allow-from: {error}") from error


def _has_tls(options: argparse.Namespace) -> bool:
    """Whether a certificate was named.

    :raises CommandError: other options of TLS have no effect.
    """
    if options.certfile is None:
        for option, value in (
            ("--keyfile", options.keyfile),
            ("--keyfile-passphrase-file", options.keyfile_passphrase_file),
            ("--ca-certs", options.ca_certs),
            ("--cert-reqs", options.cert_reqs),
            ("--ciphers", options.ciphers),
            ("--ssl-version", options.ssl_version),
        ):
            if value is not None:
                raise CommandError(f"{option} {value} needs --certfile; give both")
        return False
    for option, path in (
        ("--certfile", options.certfile),
        ("--keyfile", options.keyfile),
        ("--ca-certs", options.ca_certs),
        ("--keyfile-passphrase-file", options.keyfile_passphrase_file),
    ):
        if path is not None:
            require_readable(option, path, "a file that this user may read")
    if options.cert_reqs and options.ca_certs is None:
        raise CommandError(f"--cert-reqs {options.cert_reqs} needs --ca-certs; give both")
    return True


def check_logs(options: argparse.Namespace) -> None:
    """Whether the access log could be opened, and judged, now.

    :raises CommandError: it could not.
    """
    _access_log(options)
    _access_filter(options)


def _access_log(options: argparse.Namespace) -> _native.AccessLog | None:
    """The access log that is written natively, if one was asked for.

    :raises CommandError: options contradict each other, the format is none, or the file cannot be
        opened.
    """
    from osloxide.server import access_logs

    if options.access_log is None:
        return None
    if options.no_access_log:
        raise CommandError(
            f"--access-log {options.access_log} and --no-access-log exclude each other; leave one "
            "of them out"
        )
    try:
        return access_logs.open_log(options.access_log, options.access_logformat or "combined")
    except ValueError as error:
        raise CommandError(f"--access-logformat {options.access_logformat}: {error}") from error
    except OSError as error:
        raise CommandError(
            f"--access-log {options.access_log} cannot be opened: {error.strerror}; "
            f"{log_file.remedy(error)}"
        ) from error


def _access_filter(options: argparse.Namespace) -> _native.AccessFilter | None:
    """Which requests have no line in the access log, wherever it goes.

    :raises CommandError: a pattern cannot be understood.
    """
    from osloxide import _native

    silent, classes = options.no_access_log_for or (), options.access_log_status or ()
    if not silent and not classes:
        return None
    for field, pattern in silent:
        try:
            _native.AccessFilter([(field, pattern)])
        except ValueError as error:
            raise CommandError(
                f"--no-access-log-for {field}={pattern}: {in_one_line(error)}; correct the pattern"
            ) from error
    return _native.AccessFilter(silent, classes)


_OWN_NAMES = {
    "cert_file": "--certfile",
    "key_file": "--keyfile",
    "ca_file": "--ca-certs",
    "ciphers": "--ciphers",
    "version": "--ssl-version",
    "wsgi_log_format": "--access-logformat",
}
"""Options of this command by what a server calls them."""


def _in_own_names(message: str) -> str:
    """A server's message about one of its options, with the name that the operator has given."""
    return re.sub(
        rf"^({'|'.join(_OWN_NAMES)})\b(?: =)?|(?<= in )(cert_file|ca_file)(?=[,;])",
        lambda found: _OWN_NAMES[found[1] or found[2]],
        message,
    )


def _literal(value: Any) -> Any:
    """*value* for oslo.config, which would take ``$name`` for another option's value."""
    return value.replace("$", "$$") if isinstance(value, str) else value


def _configuration(options: argparse.Namespace) -> ConfigOpts:
    """oslo.service's options, as the command line sets them."""
    from oslo_config import cfg
    from oslo_service import _options

    from osloxide.launch import configuration

    conf = cfg.ConfigOpts()
    conf([], project="osloxide", default_config_files=[], default_config_dirs=[])
    conf.register_opts(_options.service_opts)
    conf.register_opts(_options.wsgi_opts)
    conf.register_opts(_options.ssl_opts, "ssl")
    conf.register_opts(configuration.OPTIONS, configuration.GROUP)
    for name, value in (
        ("log_options", False),
        ("graceful_shutdown_timeout", options.graceful_timeout),
        ("wsgi_default_pool_size", options.threads),
        ("client_socket_timeout", options.client_timeout),
        ("max_header_line", options.limit_request_field_size),
        ("wsgi_keep_alive", False if options.no_keep_alive else None),
        ("wsgi_log_format", None if options.access_log else options.access_logformat),
    ):
        if value is not None:
            conf.set_override(name, _literal(value))
    for name, value in (
        ("cert_file", options.certfile),
        ("key_file", options.keyfile or options.certfile),
        ("ca_file", options.ca_certs),
        ("ciphers", options.ciphers),
        ("version", options.ssl_version),
    ):
        conf.set_override(name, _literal(value), "ssl")
    if options.timeout:
        conf.set_override("worker_timeout", options.timeout, configuration.GROUP)
    return conf
