"""gunicorn's own options and its configuration file, ``gunicorn.conf.py``, for ``osloxide serve``.

Owns what becomes of each setting of gunicorn: taken by an option of ``serve``, needless, or refused
with the remedy. Reads the file, which is Python and is executed, as gunicorn does. Starts nothing.

Rules: gunicorn's settings (docs.gunicorn.org, "Settings") and their order: defaults, file,
environment, command line.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osloxide._typing import override
from osloxide.cli.errors import CommandError
from osloxide.cli.option_values import ListOfDefaults, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULTS = {"threads": 1, "timeout": 30, "graceful_timeout": 30}
"""What a file of gunicorn leaves to gunicorn's own defaults, where those of ``serve`` differ."""

TAKEN = {
    "bind": "--bind", "workers": "--workers", "threads": "--threads", "timeout": "--timeout",
    "graceful_timeout": "--graceful-timeout", "keepalive": "--keep-alive",
    "backlog": "--backlog", "max_requests": "--max-requests",
    "max_requests_jitter": "--max-requests-jitter", "worker_connections": "--worker-connections",
    "limit_request_line": "--limit-request-line", "limit_request_fields": "--limit-request-fields",
    "limit_request_field_size": "--limit-request-field-size", "preload_app": "--preload",
    "reload": "--reload", "reload_extra_files": "--reload-extra-file", "chdir": "--chdir",
    "pidfile": "--pid", "user": "--user", "group": "--group", "umask": "--umask",
    "raw_env": "--env", "pythonpath": "--pythonpath", "accesslog": "--access-logfile",
    "access_log_format": "--access-logformat", "errorlog": "--log-file",
    "loglevel": "--log-level", "logconfig": "--log-config", "proc_name": "--name",
    "certfile": "--certfile", "keyfile": "--keyfile", "ca_certs": "--ca-certs",
    "cert_reqs": "--cert-reqs", "ciphers": "--ciphers", "ssl_version": "--ssl-version",
    "proxy_protocol": "--proxy-protocol", "proxy_allow_ips": "--proxy-allow-from",
    "forwarded_allow_ips": "--forwarded-allow-ips",
}  # fmt: skip
"""Settings of the file, and the options of ``serve`` that they set."""

NEEDLESS = {
    "worker_tmp_dir": "no file tells that a worker lives",
    "reuse_port": "all workers share one listening socket",
    "sendfile": "files are sent by the kernel",
    "capture_output": "stdout and stderr always go to --log-file",
    "enable_stdio_inheritance": "stdout and stderr are always inherited",
    "disable_redirect_access_to_syslog": "nothing goes to syslog",
    "initgroups": "the groups of --user are taken",
    "reload_engine": "--reload compares times and sizes",
    "do_handshake_on_connect": "a handshake never holds up a worker",
    "suppress_ragged_eofs": "a TLS stream that ends early is no error",
    "tmp_upload_dir": "bodies stream",
    "http_parser": "there is one parser",
    "control_socket": "osloxide status looks at the service without a socket",
    "control_socket_mode": "osloxide status looks at the service without a socket",
    "control_socket_disable": "there is no such socket",
    "enable_backlog_metric": "osloxide metrics has the queue",
    "default_proc_name": "--name is the application's name",
}
"""Settings without an effect here, and why."""

_BAD_REQUEST = "such requests are answered 400; let the client be mended"
REFUSED = {
    "daemon": "let the service manager start it in the background",
    "check_config": "start it: what is wrong with options, files and addresses is said first",
    "print_config": "osloxide serve --help names the options",
    "spew": "kill -WINCH shows the requests that run",
    "statsd_host": "osloxide metrics offers the figures to Prometheus",
    "statsd_prefix": "osloxide metrics offers the figures to Prometheus",
    "dogstatsd_tags": "osloxide metrics offers the figures to Prometheus",
    "syslog": "let journald read stdout, or give --log-config",
    "syslog_addr": "let journald read stdout, or give --log-config",
    "syslog_facility": "let journald read stdout, or give --log-config",
    "syslog_prefix": "let journald read stdout, or give --log-config",
    "logger_class": "give --log-config",
    "logconfig_dict": "write it to an INI file and give --log-config",
    "logconfig_json": "write it to an INI file and give --log-config",
    "secure_scheme_headers": "give --forwarded-allow-ips, and --forwarded-headers with its kind",
    "forwarder_headers": "give --mount for SCRIPT_NAME; let the proxy set no PATH_INFO",
    "header_map": "header names with underscores are left out; let the proxy rename them",
    "strip_header_spaces": _BAD_REQUEST,
    "permit_obsolete_folding": _BAD_REQUEST,
    "permit_unconventional_http_method": _BAD_REQUEST,
    "permit_unconventional_http_version": _BAD_REQUEST,
    "casefold_http_method": "methods are case-sensitive; let the client be mended",
    "paste": "give config:FILE as the application",
    "raw_paste_global_conf": "write it into [DEFAULT] of the Paste Deploy file",
    "root_path": "give --mount",
    "protocol": "give --bind uwsgi://ADDRESS",
    "uwsgi_allow_ips": "give --bind uwsgi://unix:PATH with --socket-mode, or a firewall",
    "http_protocols": "HTTP/2 is not spoken; let the proxy in front speak it",
    "websocket_max_message_size": "WebSocket is not spoken",
    "ssl_context": "give --certfile, --ca-certs, --ciphers and --ssl-version",
}
"""Settings that are an error unless they have gunicorn's default, and the remedy."""

_PREFIXES = {
    "asgi_": "an ASGI application needs an ASGI server",
    "dirty_": "give such jobs a service of their own",
    "http2_": "HTTP/2 is not spoken; let the proxy in front speak it",
}
_HOOKS = {
    "on_starting": "use ExecStartPre= of the service unit",
    "on_dirty_starting": "give such jobs a service of their own",
    "when_ready": "use ExecStartPost= of the service unit, with Type=notify",
    "on_reload": "use ExecReload= of the service unit",
    "on_exit": "use ExecStopPost= of the service unit",
    "pre_fork": "do it when the application's module is imported: each worker imports it",
    "post_fork": "do it when the application's module is imported: each worker imports it",
    "post_worker_init": "do it when the application's module is imported: each worker imports it",
    "worker_int": "osloxide answers what is in flight; take it out",
    "worker_abort": "the log has the traceback of a request that takes too long; take it out",
    "worker_exit": "register it with atexit in the application's module",
    "child_exit": "osloxide status and the log tell how a worker ended; take it out",
    "pre_exec": "use ExecStartPre= of the service unit",
    "nworkers_changed": "osloxide metrics has the number of workers",
    "pre_request": "put a WSGI middleware around the application",
    "post_request": "put a WSGI middleware around the application",
}
_LIKE_THREADS = ("sync", "gthread", "gunicorn.workers.sync.SyncWorker",
                 "gunicorn.workers.gthread.ThreadWorker")  # fmt: skip
_WORKER_CLASS = "requests run on native threads: give --threads N, and take it out"
_ASGI = "it is for ASGI applications, which need an ASGI server: WSGI applications are served here"

_FLAGS = ("-D/--daemon", "-R/--enable-stdio-inheritance", "--reuse-port", "--no-sendfile",
          "--capture-output", "--disable-redirect-access-to-syslog", "--initgroups",
          "--do-handshake-on-connect", "--suppress-ragged-eofs", "--check-config",
          "--print-config", "--spew", "--log-syslog", "--strip-header-spaces",
          "--permit-obsolete-folding", "--permit-unconventional-http-method",
          "--permit-unconventional-http-version", "--casefold-http-method",
          "--no-control-socket", "--enable-backlog-metric")  # fmt: skip
_VALUES = ("-k/--worker-class", "--worker-tmp-dir", "--reload-engine", "--http-parser",
           "--control-socket", "--control-socket-mode", "--statsd-host", "--statsd-prefix",
           "--dogstatsd-tags", "--log-syslog-to", "--log-syslog-facility", "--log-syslog-prefix",
           "--logger-class", "--log-config-json", "--forwarder-headers", "--header-map",
           "--paste/--paster", "--paste-global", "--root-path", "--protocol", "--uwsgi-allow-from",
           "--http-protocols", "--websocket-max-message-size", "--asgi-loop", "--asgi-lifespan",
           "--asgi-disconnect-grace-period", "--dirty-app", "--dirty-workers", "--dirty-threads",
           "--dirty-timeout", "--dirty-graceful-timeout")  # fmt: skip
_SETTINGS = {
    "--no-sendfile": "sendfile", "--log-syslog": "syslog", "--log-syslog-to": "syslog_addr",
    "--log-syslog-facility": "syslog_facility", "--log-syslog-prefix": "syslog_prefix",
    "--log-config-json": "logconfig_json", "--paste-global": "raw_paste_global_conf",
    "--uwsgi-allow-from": "uwsgi_allow_ips", "--no-control-socket": "control_socket_disable",
}  # fmt: skip
"""Settings whose names are not those of their options."""

_ARGUMENTS, _USUAL = "GUNICORN_CMD_ARGS", "gunicorn.conf.py"
"""What gunicorn reads without being told to."""
_ATOMS = {
    "h": "%(client_ip)s", "l": "-", "u": "-", "t": "[%(time_local)s]", "r": "%(request_line)s",
    "s": "%(status_code)s", "b": "%(body_length)s", "B": "%(body_length)s",
    "f": "%(referer)s", "a": "%(user_agent)s", "L": "%(wall_seconds)s",
    "m": "%(method)s", "U": "%({PATH_INFO}e)s", "q": "%({QUERY_STRING}e)s", "H": "%(protocol)s",
    "T": "%(wall_seconds)d", "M": "%(wall_milliseconds)s", "D": "%(wall_microseconds)s",
    "p": "<%(process_id)s>",
}  # fmt: skip
"""What gunicorn's letters are called in ``--access-logformat``."""


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare ``--config``, and the options that only gunicorn has."""
    parser.add_argument(
        "-c", "--config",
        metavar="FILE",
        help="gunicorn's configuration file, which is executed; options and OSLOXIDE_SERVE_* "
        "variables win over it",
    )  # fmt: skip
    parser.add_argument("-u", dest="user", help=argparse.SUPPRESS)
    parser.add_argument("-g", dest="group", help=argparse.SUPPRESS)
    parser.add_argument(
        "--error-logfile", dest="log_file", action=_ErrorLog, help=argparse.SUPPRESS
    )
    for names, count in ((_FLAGS, 0), (_VALUES, None)):
        for name in names:
            parser.add_argument(
                *name.split("/"), action=_Foreign, nargs=count, help=argparse.SUPPRESS
            )


def read(path: str, directory: str = "") -> dict[str, Any]:
    """The settings that a configuration file makes.

    :param directory: where a relative *path* begins; empty = the working directory.
    :raises CommandError: it cannot be read or executed.
    """
    if path.startswith("python:"):
        raise CommandError(f"--config {path}: give the path of its file", 2)
    file = Path(directory, path.removeprefix("file:"))
    found: dict[str, Any] = {"__file__": str(file), "__name__": "__config__"}
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), found)  # noqa: S102 - gunicorn's way
    except OSError as error:
        raise CommandError(f"--config {path}: {error.strerror}", 2) from error
    except BaseException as error:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise CommandError(f"--config {path} cannot be executed: {what}", 2) from error
    return {name: value for name, value in found.items() if not name.startswith("_")}


def judged(name: str, value: Any) -> str | None:
    """Why a setting that is not taken is needless; None where it is no setting at all.

    :raises CommandError: it is refused.
    """
    if name == "worker_class":
        if str(value) in _LIKE_THREADS:
            return "there is one kind of worker"
        is_asgi = any(word in str(value).lower() for word in ("asgi", "uvicorn"))
        raise CommandError(_ASGI if is_asgi else _WORKER_CLASS)
    if name in NEEDLESS:
        return NEEDLESS[name]
    prefixed = [remedy for prefix, remedy in _PREFIXES.items() if name.startswith(prefix)]
    remedy = REFUSED.get(name) or _HOOKS.get(name) or next(iter(prefixed), None)
    if remedy is None:
        return None
    if name in _HOOKS and not callable(value):
        return None
    if _says_nothing(name, value):
        return "it is so anyway"
    raise CommandError(remedy)


def _says_nothing(name: str, value: Any) -> bool:
    """Whether *value* is what gunicorn does without it."""
    usual = {
        "protocol": "http", "header_map": "drop", "http_protocols": "h1",
        "forwarder_headers": "SCRIPT_NAME,PATH_INFO",
        "syslog_addr": "udp://localhost:514", "syslog_facility": "user",
    }  # fmt: skip
    return not value or value == usual.get(name)


def text_of(name: str, value: Any) -> str | None:
    """A value of the file as the command line has it; None where that is to say nothing."""
    if value is None or (name in ("accesslog", "errorlog") and value == ""):
        return None
    if name == "errorlog" and value == "-":
        return None
    if name == "loglevel":
        return str(value).lower()
    if name == "umask":
        return f"{value:o}" if isinstance(value, int) else str(value)
    if name == "cert_reqs":
        return {0: None, 1: "optional", 2: "required"}.get(int(value))
    if name == "access_log_format":
        return log_format(str(value))
    if name == "proxy_protocol":
        return "0" if value in (False, "off", "") else "1"
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value)


def log_format(text: str) -> str:
    """gunicorn's format in the names of ``--access-logformat``.

    :raises CommandError: it has a letter for something that is not logged.
    """

    def named(found: re.Match[str]) -> str:
        if found[1] in _ATOMS:
            return _ATOMS[found[1]]
        if re.fullmatch(r"\{[^{}]+\}i", found[1]) or re.fullmatch(r"\w\w+", found[1]):
            return found[0]
        if re.fullmatch(r"\{[A-Za-z][A-Za-z0-9_]*\}e", found[1]):
            # gunicorn writes the keys of environ in lower case there.
            return f"%({{{found[1][1:-2].upper()}}}e)s"
        raise CommandError(
            f"%({found[1]})s is not logged; name one of {', '.join(_ATOMS)}, {{HEADER}}i, or "
            "{VARIABLE}e for a CGI variable"
        )

    return re.sub(r"%\(([^)]+)\)s", named, text)


class Parser(argparse.ArgumentParser):
    """Takes what ``--config`` names as defaults, so that a word of the command line always wins.

    argparse does not tell a default from the same value on the command line. The words are
    therefore taken twice: for the name of the file, and again with what it says.
    """

    @override
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = sys.argv[1:] if args is None else list(args)
        before = {} if namespace is None else dict(vars(namespace))
        found, rest = super().parse_known_args(words, namespace)
        if getattr(found, "config", None) is not None:
            try:
                settings = _settings_of(self, found.config)
            except CommandError as error:
                self.error(str(error))
            self.set_defaults(**settings)
            found, rest = super().parse_known_args(words, argparse.Namespace(**before))
            _give_way(found, settings)
        elif Path(_USUAL).is_file():
            print(f"osloxide: ./{_USUAL} is not read; give --config {_USUAL}", file=sys.stderr)
        for note in getattr(found, "notes", ()):
            print(f"osloxide: {note}", file=sys.stderr)
        if os.environ.get(_ARGUMENTS, "").strip():
            print(
                f"osloxide: {_ARGUMENTS} is not read; give its options on the command line, or as "
                "OSLOXIDE_SERVE_* variables",
                file=sys.stderr,
            )
        return found, rest


def _settings_of(parser: argparse.ArgumentParser, path: str) -> dict[str, Any]:
    """What the file makes of the options, save those that ``OSLOXIDE_SERVE_*`` sets.

    :raises CommandError: the file cannot be used, or has a setting that is refused.
    """
    settings = DEFAULTS | read(path)
    if not settings.get("accesslog"):
        settings.pop("access_log_format", None)  # gunicorn writes no access log then
    found = {
        dest: value
        for name, setting in settings.items()
        for dest, value in _option(parser, path, name, setting).items()
        if dest not in parser._defaults
    }
    # Such files often keep a list of proxies for a protocol that they leave off.
    return found | {"set_by_config": frozenset(found)}


def _option(parser: argparse.ArgumentParser, path: str, name: str, value: Any) -> dict[str, Any]:
    """What one setting of the file makes of the options."""
    try:
        if name == "wsgi_app":
            return {"application": value} if value else {}
        if name not in TAKEN:
            reason = judged(name, value)
            if reason is not None:
                print(f"osloxide: {path}: {name} is needless: {reason}", file=sys.stderr)
            return {}
        if name == "keepalive" and value == 0:
            return {"no_keep_alive": True}
        action = parser._option_string_actions[TAKEN[name]]
        if isinstance(value, list | tuple):
            text: str | None = ",".join(map(str, value))
            if name == "raw_env":
                convert: Callable[[str], Any] = action.type  # type: ignore[assignment]
                return {action.dest: ListOfDefaults(map(convert, map(str, value)))}
        else:
            text = text_of(name, value)
        return {} if text is None else {action.dest: value_of(action, text)}
    except CommandError as error:
        raise CommandError(f"{path}: {name} is refused: {error}", 2) from error
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise CommandError(f"{path}: {name}: {error}", 2) from error


def _give_way(found: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Drop what the file says by one option where the command line says the contrary by another."""
    if settings.get("no_keep_alive") and found.keep_alive_timeout is not None:
        found.no_keep_alive = False
    if found.no_access_log and found.access_log == settings.get("access_log"):
        found.access_log = found.access_logformat = None


class _ErrorLog(argparse.Action):
    """``--error-logfile``: ``-`` is where stderr goes anyway."""

    @override
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
        values: str | Sequence[Any] | None, option_string: str | None = None,
    ) -> None:  # fmt: skip
        setattr(namespace, self.dest, None if values == "-" else values)


class _Foreign(argparse.Action):
    """An option of gunicorn that ``serve`` has not."""

    @override
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
        values: str | Sequence[Any] | None, option_string: str | None = None,
    ) -> None:  # fmt: skip
        long = self.option_strings[-1] if self.option_strings[0] != "--paste" else "--paste"
        name = _SETTINGS.get(long, long.removeprefix("--").replace("-", "_"))
        try:
            reason = judged(name, True if self.nargs == 0 else values)
        except CommandError as error:
            parser.error(f"{option_string} is an option of gunicorn: {error}")
        namespace.notes = [
            *getattr(namespace, "notes", ()),
            f"{option_string} is needless: {reason}",
        ]


def names() -> set[str]:
    """Every setting of gunicorn that has a verdict here."""
    return {*TAKEN, *NEEDLESS, *REFUSED, *_HOOKS, "worker_class", "wsgi_app", "config"}


def has_verdict(name: str) -> bool:
    """Whether a setting of gunicorn is taken, needless or refused."""
    return name in names() or name.startswith(tuple(_PREFIXES))
