"""The options of ``osloxide serve``: gunicorn's names, on the command line or in the environment.

Owns names, checks and defaults; starts nothing. Each option ``--some-thing`` may be given as
``OSLOXIDE_SERVE_SOME_THING``; the command line wins. Table with uWSGI's names: docs/serve.md.

Rules: gunicorn's settings for the names.
"""

from __future__ import annotations

import argparse
import re
import shlex
from typing import TYPE_CHECKING, Any

from osloxide.cli import address, cpus, gunicorn, mount, recycling
from osloxide.cli.errors import CommandError
from osloxide.cli.option_values import value_of
from osloxide.server import forwarded
from osloxide.server.options import LONGEST_TIMEOUT, MOST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "OSLOXIDE_SERVE_"
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")

_KUBERNETES = re.compile(
    r"(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?"
    r"|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes calls the variables of a Service, behind the Service's own name."""
_WEB_CONCURRENCY = "WEB_CONCURRENCY"
"""Number of workers, as gunicorn, uvicorn and the platforms that start them call it."""
_MOST_BYTES = 2**63 - 1
_TOKEN = r"[-!#$%&'*+.^_`|~0-9A-Za-z]+"  # noqa: S105 - of HTTP
"""A name of a header (RFC 9110 section 5.6.2)."""
_SERVERS_OWN = (
    "connection", "content-length", "keep-alive", "proxy-authenticate", "proxy-authorization",
    "te", "trailer", "trailers", "transfer-encoding", "upgrade",
)  # fmt: skip
"""Headers that ``--add-header`` cannot add: an answer with one of them would be a failure."""
FIELDS = ("user-agent", "client", "host", "path", "uri")
"""What ``--no-access-log-for`` looks at."""


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    application = parser.add_argument(
        "application",
        metavar="MODULE:APP",
        help="the WSGI callable; MODULE alone means MODULE:application, MODULE:make() calls make; "
        "also the path of a script, PATH:APP, or config:PASTE_FILE#NAME. What follows -- at the "
        "end is the application's own command line",
    )
    # gunicorn's file may name it. With nargs="?" argparse would take it for missing where options
    # stand in front.
    application.required = False
    _declare_application(parser)
    _declare_addresses(parser)
    _declare_processes(parser)
    _declare_limits(parser)
    _declare_responses(parser)
    _declare_tls(parser)
    _declare_logs(parser)
    gunicorn.declare(parser)


def _declare_application(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", "--name",
        metavar="NAME",
        help="what status, top, metrics and the logs call the service, and the application's "
        "sys.argv[0] (default: the module's or the script's name)",
    )  # fmt: skip
    parser.add_argument(
        "--pyargv",
        type=_words,
        default=[],
        metavar="WORDS",
        help="the application's sys.argv[1:], in one string as a shell would write it",
    )
    parser.add_argument(
        "--program", metavar="NAME", help="the application's sys.argv[0] (default: --name)"
    )
    parser.add_argument(
        "--venv",
        metavar="DIR",
        help="load the application from this virtual environment, with its own osloxide where it "
        "has one",
    )
    parser.add_argument(
        "--uwsgi-module",
        action="store_true",
        help="let the application import a module uwsgi, as if uWSGI served it",
    )
    parser.add_argument(
        "--uwsgi-option",
        action="append",
        type=_assignment,
        metavar="NAME=VALUE",
        help="an entry of uwsgi.opt; may be repeated",
    )


def _declare_addresses(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-b", "--bind",
        action="append",
        type=address.parse_listener,
        metavar="ADDRESS",
        help="HOST:PORT, [IPV6]:PORT, unix:PATH, unix:@ABSTRACT, fd://NUMBER or fd://NAME of an "
        "inherited socket, any of them behind http:// or https://; may be repeated (default: all "
        "sockets that systemd passed, else 127.0.0.1:8000)",
    )  # fmt: skip
    parser.add_argument(
        "--backlog",
        type=_count(1),
        default=2048,
        metavar="N",
        help="kernel's queue (default: 2048)",
    )
    parser.add_argument(
        "-m", "--umask",
        type=_octal,
        metavar="MODE",
        help="octal; applies to unix sockets as well",
    )  # fmt: skip
    parser.add_argument(
        "--socket-mode",
        type=_octal,
        metavar="MODE",
        help="octal; permissions of unix sockets (default: the umask's)",
    )
    parser.add_argument(
        "--socket-owner", metavar="USER[:GROUP]", help="owner of unix sockets, where root starts"
    )


def _declare_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-w",
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="processes; auto = one for each processor that this process may use (default: "
        "WEB_CONCURRENCY, else 1)",
    )
    parser.add_argument(
        "--master",
        action="store_true",
        help="a parent also for one worker: it replaces a worker that dies, and SIGHUP starts the "
        "new one before the old one stops",
    )
    parser.add_argument(
        "--threads",
        type=_count(1),
        metavar="N",
        help="most requests in flight in each process (default: 100)",
    )
    parser.add_argument(
        "-t", "--timeout",
        type=_seconds(0),
        metavar="SECONDS",
        help="replace a worker that is busy with one and the same request, or stopped, for longer; "
        "0 = never (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--request-timeout",
        type=_seconds(0),
        metavar="SECONDS",
        help="answer a request 504 with which the application is busy for longer; its thread is "
        "logged, interrupted and replaced, and the worker lives on; 0 = never (default: 0)",
    )
    parser.add_argument(
        "--max-stuck-threads",
        type=_count(1),
        metavar="N",
        help="replace a worker in which N threads do not come back from such requests (default: a "
        "tenth of --threads, at least 1)",
    )
    parser.add_argument(
        "--graceful-timeout",
        type=_seconds(0),
        metavar="SECONDS",
        help="how long requests may still run after SIGTERM; 0 = for ever (default: 60)",
    )
    parser.add_argument(
        "--preload",
        action="store_true",
        help="import the application once, before the fork; connections that it opens are shared",
    )
    parser.add_argument(
        "--warm",
        action="store_true",
        help="load the application once, in a process that serves no request, and fork each worker "
        "from it: a replacement serves at once, memory is shared, SIGHUP loads new code",
    )
    parser.add_argument(
        "--reload",
        action="store_true",
        help="for development: replace the workers when a loaded module's file changes",
    )
    parser.add_argument(
        "--reload-extra-file",
        action="append",
        metavar="FILE",
        help="also watch FILE; may be repeated",
    )
    parser.add_argument(
        "--touch-reload",
        action="append",
        metavar="FILE",
        help="replace the workers when FILE changes; may be repeated",
    )
    parser.add_argument(
        "--max-requests",
        type=_count(0),
        metavar="N",
        help="replace a worker that has served N requests; 0 = never (default: 0)",
    )
    parser.add_argument(
        "--max-requests-jitter",
        type=_count(0),
        metavar="N",
        help="... and up to N more, by chance (default: 0)",
    )
    parser.add_argument(
        "--max-worker-lifetime",
        type=_seconds(0),
        metavar="SECONDS",
        help="replace a worker that has run for so long; 0 = never (default: 0)",
    )
    parser.add_argument(
        "--max-worker-lifetime-jitter",
        type=_seconds(0),
        metavar="SECONDS",
        help="... and up to so much longer, by chance (default: 0)",
    )
    parser.add_argument(
        "--max-worker-memory",
        type=_memory,
        metavar="SIZE",
        help="replace a worker that holds more memory, for example 512M; pss:SIZE or uss:SIZE "
        "count what it shares in part or not at all; 0 = never (default: 0)",
    )
    parser.add_argument("--user", metavar="USER", help="run as USER, where root starts")
    parser.add_argument("--group", metavar="GROUP", help="run as GROUP, where root starts")
    parser.add_argument(
        "--title-prefix", metavar="TEXT", help="what ps shows in front of a process's title"
    )
    parser.add_argument("--chdir", metavar="DIR", help="change to DIR before loading anything")
    parser.add_argument(
        "--pythonpath", metavar="DIRS", help="look for modules there first; separated by commas"
    )
    parser.add_argument(
        "-e", "--env",
        action="append",
        type=_assignment,
        metavar="NAME=VALUE",
        help="set an environment variable; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--unset-env",
        action="append",
        type=_variable,
        metavar="NAME",
        help="unset an environment variable; may be repeated",
    )
    parser.add_argument("-p", "--pid", metavar="FILE", help="write the parent's pid there")


def _declare_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--client-timeout",
        type=_count(0),
        metavar="SECONDS",
        help="how long a client may neither send nor take anything; 0 = for ever (default: 900)",
    )
    parser.add_argument(
        "--no-keep-alive", action="store_true", help="one request for each connection"
    )
    parser.add_argument(
        "--keep-alive", "--keep-alive-timeout",
        dest="keep_alive_timeout",
        type=_seconds(1),
        metavar="SECONDS",
        help="how long a connection may be idle between two requests (default: --client-timeout)",
    )  # fmt: skip
    parser.add_argument(
        "--max-connections", "--worker-connections",
        type=_count(1),
        metavar="N",
        help="most connections of a worker; the one that is idle for longest is closed for a new "
        "one (default: the limit of open files, less a reserve)",
    )  # fmt: skip
    parser.add_argument(
        "--max-waiting-requests",
        type=_count(0),
        metavar="N",
        help="requests of a worker that may wait while --threads are answered; more are answered "
        "503 with Retry-After; 0: none waits (default: any number)",
    )
    parser.add_argument(
        "--limit-request-line",
        type=_bytes(1),
        metavar="BYTES",
        help="longest request line (default: 8192)",
    )
    parser.add_argument(
        "--limit-request-body",
        type=_bytes(0),
        default=0,
        metavar="BYTES",
        help="longest body of a request; longer ones are answered 413; 0 = no limit (default: 0)",
    )
    parser.add_argument(
        "--limit-request-fields",
        type=_count(1),
        metavar="N",
        help="most header lines (default: 100)",
    )
    parser.add_argument(
        "--limit-request-field-size", "--limit-request-field_size",
        type=_bytes(1),
        metavar="BYTES",
        help="longest header line (default: 16384)",
    )  # fmt: skip


def _declare_responses(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--add-header",
        action="append",
        type=_header,
        metavar="NAME:VALUE",
        help="add a header to each answer of the application; may be repeated",
    )
    parser.add_argument(
        "--remove-header",
        action="append",
        type=_header_name,
        metavar="NAME",
        help="take a header out of each answer of the application; may be repeated",
    )
    parser.add_argument(
        "--proxy-protocol",
        action="store_true",
        help="each connection begins with a header of the PROXY protocol (haproxy's send-proxy or "
        "send-proxy-v2), whose address is the client's",
    )
    parser.add_argument(
        "--proxy-allow-from",
        type=_explained(forwarded.Trusted),
        metavar="LIST",
        help="proxies that may connect where --proxy-protocol is on: addresses and networks "
        "separated by commas, * for all (default: 127.0.0.1,::1; unix sockets always)",
    )
    parser.add_argument(
        "--forwarded-allow-ips",
        type=_explained(forwarded.Trusted),
        metavar="LIST",
        help="proxies whose word on the client's address, scheme and host is taken: addresses and "
        "networks separated by commas, unix for unix sockets, * for all (default: none)",
    )
    parser.add_argument(
        "--forwarded-headers",
        choices=forwarded.HEADERS,
        help="which headers these proxies set: X-Forwarded-For, -Proto, -Host and -Port, or "
        "Forwarded of RFC 7239 (default: x-forwarded)",
    )
    parser.add_argument(
        "--mount",
        type=_explained(mount.prefix),
        metavar="/PREFIX",
        help="the application's place: SCRIPT_NAME of its requests; paths outside are answered 404 "
        "(default: the root)",
    )
    parser.add_argument(
        "--static-map",
        action="append",
        type=_mapping,
        metavar="/PREFIX=DIR",
        help="send files below DIR; where there is none, the application answers; may be repeated",
    )


def _declare_tls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--certfile", metavar="FILE", help="PEM certificate chain: serve TLS")
    parser.add_argument(
        "--keyfile", metavar="FILE", help="PEM private key (default: the one in --certfile)"
    )
    parser.add_argument(
        "--keyfile-passphrase-file",
        metavar="FILE",
        help="its first line is the passphrase of an encrypted --keyfile",
    )
    parser.add_argument("--ca-certs", metavar="FILE", help="demand client certificates from these")
    parser.add_argument(
        "--cert-reqs",
        choices=("optional", "required"),
        help="whether a client without certificate is served, with --ca-certs (default: required)",
    )
    parser.add_argument("--ciphers", metavar="NAMES", help="OpenSSL names, separated by colons")
    parser.add_argument(
        "--ssl-version", metavar="NAME", help="TLSv1_2 or TLSv1_3 alone (default: both)"
    )


def _declare_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log-file", metavar="FILE", help="send stdout and stderr there")
    parser.add_argument("--log-file-mode", type=_octal, metavar="MODE", help="octal")
    parser.add_argument(
        "--log-file-owner", metavar="USER[:GROUP]", help="owner of --log-file, where root starts"
    )
    parser.add_argument("--no-access-log", action="store_true", help="no line for a request")
    parser.add_argument(
        "--no-access-log-for",
        action="append",
        type=_pattern,
        metavar="FIELD=REGEX",
        help="no line for requests whose user-agent, client, host, path or uri matches; may be "
        "repeated",
    )
    parser.add_argument(
        "--access-log-status",
        type=_statuses,
        metavar="CLASSES",
        help="lines for these statuses alone, for example 4xx,5xx",
    )
    parser.add_argument(
        "--stats",
        type=address.parse,
        metavar="ADDRESS",
        help="tell statistics there, in the JSON of uWSGI's stats server",
    )
    parser.add_argument("--stats-http", action="store_true", help="... as an answer of HTTP")
    parser.add_argument("--log-level", choices=LOG_LEVELS, default="info")
    parser.add_argument("--log-config", metavar="FILE", help="logging configuration (INI)")
    parser.add_argument(
        "--access-logformat",
        metavar="FORMAT",
        help="with %%(client_ip)s and the other keys of wsgi_log_format; with --access-log also "
        "combined (its default) or common",
    )
    parser.add_argument(
        "--access-log", "--access-logfile",
        metavar="FILE",
        help="write the access log to FILE, - is standard output, instead of the logger "
        "osloxide.access; USR1 opens it again",
    )  # fmt: skip


def take_from(environ: Mapping[str, str], parser: argparse.ArgumentParser) -> None:
    """Make what *environ* says the defaults of *parser*.

    A blank variable is none: unit files and containers cannot unset one. Variables that Kubernetes
    sets for a Service called ``osloxide-serve`` are not meant for this command.

    :raises CommandError: a variable names no option, or has a value that its option refuses.
    """
    actions = {
        PREFIX + option.removeprefix("--").replace("-", "_").upper(): action
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and option not in ("--help", "--config")
        if action.help is not argparse.SUPPRESS
    }
    defaults: dict[str, Any] = {}
    actions[_WEB_CONCURRENCY] = actions[PREFIX + "WORKERS"]
    ours = [name for name in environ if name.startswith(PREFIX)]
    for variable, text in ((name, environ.get(name, "")) for name in (_WEB_CONCURRENCY, *ours)):
        if not text.strip():
            continue
        action = actions.get(variable)
        if action is None and _KUBERNETES.fullmatch(variable.removeprefix(PREFIX)):
            continue
        if action is None:
            option = "--" + variable.removeprefix(PREFIX).lower().replace("_", "-")
            raise CommandError(
                f"environment variable {variable}: osloxide serve has no option {option}"
            )
        try:
            value = value_of(action, text)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise CommandError(f"environment variable {variable}: {error}") from error
        if variable == _WEB_CONCURRENCY:
            # As for gunicorn no more than the option's default: a configuration file wins over it.
            action.default = value
        else:
            defaults[action.dest] = value
    parser.set_defaults(**defaults)


def is_of_kubernetes(name: str) -> bool:
    """Whether *name*, an option's or a variable's, is what Kubernetes makes of a Service's name."""
    return _KUBERNETES.fullmatch(name.upper().replace("-", "_")) is not None


def _count(least: int, most: int = MOST) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # What is longer has more digits than int() takes.
        is_number = text.isascii() and text.isdigit() and len(text) < 1000
        if not is_number or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        if int(text) > most:
            raise argparse.ArgumentTypeError(f"{text!r} is too large; give {most} at most")
        return int(text)

    return parse


def _seconds(least: int) -> Callable[[str], int]:
    return _count(least, LONGEST_TIMEOUT)


def _bytes(least: int) -> Callable[[str], int]:
    return _count(least, _MOST_BYTES)


def _workers(text: str) -> int:
    return cpus.count() if text == "auto" else _count(1)(text)


def _memory(text: str) -> tuple[str, int]:
    try:
        return recycling.memory(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {str(error).lower()}") from error


def _octal(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is no octal mode from 0 to 777")
    return mode


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(_TOKEN, name):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME:VALUE of a header")
    if name.lower() in _SERVERS_OWN:
        raise argparse.ArgumentTypeError(
            f"{text!r}: {name} belongs to the server and to each answer; leave it out"
        )
    if not value.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} has control characters in its value")
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} has a character in its value that no header can carry (RFC 9110 section "
            "5.5); encode it"
        ) from None
    return name, value.strip()


def _header_name(text: str) -> str:
    if not re.fullmatch(_TOKEN, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a header")
    return text


def _variable(text: str) -> str:
    if "=" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME of a variable; leave the value out")
    return text


def _explained(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """*convert* for argparse, which shows the reason of no other ValueError."""

    def parse(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def _mapping(text: str) -> tuple[str, str]:
    prefix, equals, directory = text.partition("=")
    if not equals or not directory or not prefix.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is no /PREFIX=DIR")
    return prefix, directory


def _pattern(text: str) -> tuple[str, str]:
    field, equals, expression = text.partition("=")
    if not equals or field not in FIELDS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no FIELD=REGEX with a field of {', '.join(FIELDS)}"
        )
    return field, expression


def _statuses(text: str) -> tuple[int, ...]:
    found = [word.strip().lower().removesuffix("xx") for word in text.split(",")]
    if not all(word in ("1", "2", "3", "4", "5") for word in found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of 1xx to 5xx, for example 4xx,5xx")
    return tuple(int(word) for word in found)


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE")
    return name, value
