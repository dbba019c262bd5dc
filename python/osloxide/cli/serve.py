"""``osloxide serve``: any WSGI application on osloxide's server and supervisor.

Owns gunicorn's option names, their checks, and the service that loads the application in each
worker. Everything is checked and bound before the first fork; the application is imported after it,
so that connections it opens at import are its own worker's.

Rules: PEP 3333; gunicorn's settings for the names; nothing else is shared with gunicorn.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import logging.config
import mmap
import os
import signal
import socket
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osloxide.cli import address
from osloxide.cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from oslo_config.cfg import ConfigOpts

    from osloxide.wsgi import Server

BOOT_FAILED = 3
"""Exit status when no worker could ever load the application, as for gunicorn."""

_LOG_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"
_LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
_ACCESS_LOGGER = "osloxide.access"
_LOADED, _GAVE_UP = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``osloxide serve``."""
    parser.add_argument(
        "application",
        metavar="MODULE:APP",
        help="the WSGI callable; MODULE alone means MODULE:application, MODULE:make() calls make",
    )
    parser.add_argument(
        "-b", "--bind",
        action="append",
        type=address.parse,
        metavar="ADDRESS",
        help="HOST:PORT, [IPV6]:PORT or unix:PATH; may be repeated (default: 127.0.0.1:8000)",
    )  # fmt: skip
    parser.add_argument(
        "-w", "--workers", type=_count(1), default=1, metavar="N", help="processes (default: 1)"
    )
    parser.add_argument(
        "--threads",
        type=_count(1),
        metavar="N",
        help="most requests in flight in each process (default: 100)",
    )
    parser.add_argument(
        "--graceful-timeout",
        type=_count(0),
        metavar="SECONDS",
        help="how long requests may still run after SIGTERM; 0 = for ever (default: 60)",
    )
    parser.add_argument(
        "-t", "--timeout",
        type=_count(0),
        metavar="SECONDS",
        help="how long a client may stay silent; 0 = for ever (default: 900)",
    )  # fmt: skip
    parser.add_argument(
        "--no-keep-alive", action="store_true", help="one request for each connection"
    )
    parser.add_argument("--certfile", metavar="FILE", help="PEM certificate chain: serve TLS")
    parser.add_argument("--keyfile", metavar="FILE", help="PEM private key of the certificate")
    parser.add_argument("--ca-certs", metavar="FILE", help="demand client certificates from these")
    parser.add_argument("--ciphers", metavar="NAMES", help="OpenSSL names, separated by colons")
    parser.add_argument(
        "--backlog",
        type=_count(1),
        default=2048,
        metavar="N",
        help="kernel's queue (default: 2048)",
    )
    parser.add_argument(
        "--limit-request-line",
        type=_count(1),
        metavar="BYTES",
        help="longest request line (default: 8192)",
    )
    parser.add_argument(
        "--umask", type=_octal, metavar="MODE", help="octal; applies to unix sockets as well"
    )
    parser.add_argument("--chdir", metavar="DIR", help="change to DIR before loading anything")
    parser.add_argument(
        "--preload",
        action="store_true",
        help="import the application once, before the fork; connections that it opens are shared",
    )
    parser.add_argument("--log-level", choices=_LOG_LEVELS, default="info")
    parser.add_argument("--log-config", metavar="FILE", help="logging configuration (INI)")
    parser.add_argument(
        "--access-logformat",
        metavar="FORMAT",
        help="with %%(client_ip)s and the other keys of wsgi_log_format",
    )


def main(options: argparse.Namespace) -> int:
    """Serve until a signal ends it; returns the exit status."""
    if options.chdir is not None:
        try:
            os.chdir(options.chdir)
        except OSError as error:
            raise CommandError(f"--chdir {options.chdir}: {error.strerror}") from error
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if options.umask is not None:
        os.umask(options.umask)
    _configure_logging(options)
    site = Application.parse(options.application)
    site.check()
    if options.preload:
        _preload(site)
    servers = _bind(options)

    from osloxide import service

    served = site_service(site, servers)
    launcher = service.launch(servers[0].conf, served, workers=options.workers)
    status = launcher.wait()
    return BOOT_FAILED if served.gave_up() else int(status or 0)


@dataclass
class Application:
    """What ``MODULE:APP`` names."""

    text: str
    module: str
    attribute: str
    is_factory: bool
    _loaded: Any = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Application:
        """Take ``MODULE``, ``MODULE:APP`` or ``MODULE:FACTORY()`` apart.

        :raises CommandError: it is none of these.
        """
        module, colon, attribute = text.partition(":")
        attribute = attribute if colon else "application"
        is_factory = attribute.endswith("()")
        attribute = attribute.removesuffix("()")
        names = [*module.split("."), *attribute.split(".")]
        if not all(name.isidentifier() for name in names):
            raise CommandError(
                f"{text!r} names no application; give MODULE:APP, for example mysite.wsgi:app"
            )
        return cls(text, module, attribute, is_factory)

    def check(self) -> None:
        """Look for the module without executing it.

        :raises CommandError: there is no such module.
        """
        try:
            spec = importlib.util.find_spec(self.module)
        except (ImportError, ValueError) as error:
            raise CommandError(f"cannot find module {self.module}: {error}") from error
        if spec is None:
            raise CommandError(
                f"cannot find module {self.module}; check the name, and --chdir or PYTHONPATH"
            )

    def load(self) -> Callable[..., Any]:
        """Import the module and return the application, the same one on every call.

        :raises CommandError: the module has no such attribute, or it cannot be called.
        """
        if self._loaded is not None:
            return self._loaded  # type: ignore[no-any-return]
        found: Any = importlib.import_module(self.module)
        for name in self.attribute.split("."):
            if not hasattr(found, name):
                raise CommandError(
                    f"{self.module} has no attribute {self.attribute!r}; name the application in "
                    "MODULE:APP"
                )
            found = getattr(found, name)
        if self.is_factory:
            found = found()
        if not callable(found):
            raise CommandError(
                f"{self.text} is of type {type(found).__name__}, which cannot be called; name a "
                "WSGI application"
            )
        self._loaded = found
        return found  # type: ignore[no-any-return]


def site_service(site: Application, servers: Sequence[Server]) -> Any:
    """The service that loads *site* and serves it on all *servers*."""
    # Not at module level: osloxide.cli is imported before oslo.service may be.
    from osloxide.service import ServiceBase

    class SiteService(ServiceBase):  # type: ignore[misc, unused-ignore]
        """One application on several listening sockets."""

        def __init__(self) -> None:
            self._supervisor = os.getpid()
            # One flag each, shared with all workers.
            self._outcome = mmap.mmap(-1, 2)

        def start(self) -> None:
            try:
                application = site.load()
            except Exception as error:
                self._boot_failed(error)
                raise SystemExit(BOOT_FAILED) from error
            self._outcome[_LOADED] = 1
            for server in servers:
                server.app = application
                server.start()

        def stop(self, *_args: object) -> None:
            for server in servers:
                server.stop()

        def wait(self) -> None:
            for server in servers:
                server.wait()

        def reset(self) -> None:
            for server in servers:
                server.reset()

        def gave_up(self) -> bool:
            """Whether everything was ended because the application could not be loaded."""
            return self._outcome[_GAVE_UP] == 1

        def _boot_failed(self, error: Exception) -> None:
            """End everything when no worker has ever been able to load the application.

            It would fail again and again. Once it has been loaded, a failure is a respawn's: the
            supervisor retries with back-off while the other workers serve.
            """
            log = logging.getLogger("osloxide.serve")
            if isinstance(error, CommandError):
                log.error("%s", error)
            else:
                log.error("cannot load %s\n%s", site.text, traceback.format_exc().rstrip())
            if self._outcome[_LOADED]:
                return
            self._outcome[_GAVE_UP] = 1
            if os.getpid() != self._supervisor:
                os.kill(os.getppid(), signal.SIGTERM)

    return SiteService()


def _bind(options: argparse.Namespace) -> list[Server]:
    """One server for each address, all listening.

    :raises CommandError: an address is taken, a file cannot be read, an option does not fit.
    """
    from osloxide import wsgi

    conf = _configuration(options)
    servers: list[Server] = []
    for where in options.bind or [("127.0.0.1", 8000)]:
        place: dict[str, Any]
        if isinstance(where, str):
            place = {"socket_family": socket.AF_UNIX, "socket_file": where}
        else:
            place = {"host": where[0], "port": where[1]}
        try:
            servers.append(
                wsgi.Server(
                    conf,
                    options.application,
                    None,
                    backlog=options.backlog,
                    use_ssl=options.certfile is not None or options.keyfile is not None,
                    max_url_len=options.limit_request_line,
                    logger_name=_ACCESS_LOGGER,
                    **place,
                )
            )
        except (OSError, ValueError, RuntimeError, wsgi.InvalidInput) as error:
            raise CommandError(_in_one_line(error)) from error
    return servers


def _configuration(options: argparse.Namespace) -> ConfigOpts:
    """oslo.service's options, as the command line sets them."""
    from oslo_config import cfg
    from oslo_service import _options

    conf = cfg.ConfigOpts()
    conf([], project="osloxide", default_config_files=[], default_config_dirs=[])
    conf.register_opts(_options.service_opts)
    conf.register_opts(_options.wsgi_opts)
    conf.register_opts(_options.ssl_opts, "ssl")
    for name, value in (
        ("log_options", False),
        ("graceful_shutdown_timeout", options.graceful_timeout),
        ("wsgi_default_pool_size", options.threads),
        ("client_socket_timeout", options.timeout),
        ("wsgi_keep_alive", False if options.no_keep_alive else None),
        ("wsgi_log_format", options.access_logformat),
    ):
        if value is not None:
            conf.set_override(name, value)
    for name, value in (
        ("cert_file", options.certfile),
        ("key_file", options.keyfile),
        ("ca_file", options.ca_certs),
        ("ciphers", options.ciphers),
    ):
        conf.set_override(name, value, "ssl")
    return conf


def _preload(site: Application) -> None:
    try:
        site.load()
    except CommandError:
        raise
    except Exception as error:
        logging.getLogger("osloxide.serve").exception("cannot load %s", site.text)
        raise CommandError(
            f"cannot load {site.text}: {_in_one_line(error)}", BOOT_FAILED
        ) from error


def _configure_logging(options: argparse.Namespace) -> None:
    if options.log_config is None:
        logging.basicConfig(level=options.log_level.upper(), format=_LOG_FORMAT)
        return
    if not Path(options.log_config).is_file():
        raise CommandError(f"--log-config {options.log_config}: no such file")
    try:
        logging.config.fileConfig(options.log_config, disable_existing_loggers=False)
    except Exception as error:
        raise CommandError(f"--log-config {options.log_config}: {_in_one_line(error)}") from error


def _in_one_line(error: Exception) -> str:
    text = str(error) if not isinstance(error, OSError) else (error.strerror or str(error))
    return " ".join(text.split()) or type(error).__name__


def _count(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return parse


def _octal(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is no octal mode from 0 to 777")
    return mode
