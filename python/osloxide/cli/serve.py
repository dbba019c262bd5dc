"""``osloxide serve``: any WSGI application on osloxide's server and supervisor.

Owns the service that loads the application in each worker, and what it listens on. Everything is
checked and bound before the first fork; the application is imported after it, so that connections
it opens at import are its own worker's.

Rules: PEP 3333; gunicorn's settings for the names; nothing else is shared with gunicorn.
"""

from __future__ import annotations

import argparse
import contextlib
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

from osloxide.cli import address, inherited, reloading, serve_options
from osloxide.cli.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from oslo_config.cfg import ConfigOpts

    from osloxide.wsgi import Server

BOOT_FAILED = 3
"""Exit status when no worker could ever load the application, as for gunicorn."""

_LOG_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s %(message)s"
_ACCESS_LOGGER = "osloxide.access"
_LOADED, _GAVE_UP = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``osloxide serve``; the environment may have set them."""
    serve_options.declare(parser)
    try:
        serve_options.take_from(os.environ, parser)
    except CommandError as error:
        parser.error(str(error))


def main(options: argparse.Namespace) -> int:
    """Serve until a signal ends it; returns the exit status."""
    _prepare(options)
    _configure_logging(options)
    site = Application.parse(options.application)
    site.check()
    if options.preload:
        if options.reload:
            raise CommandError(
                "--reload cannot replace what --preload loads; leave one of them out"
            )
        _preload(site)
    reloader = reloading.Reloader(options.reload_extra_file or ()) if options.reload else None
    servers = _bind(options)

    from osloxide import service

    served = site_service(site, servers, reloader)
    conf = servers[0].conf
    # Only a parent can replace a worker.
    needs_parent = options.workers > 1 or options.reload or options.timeout
    launcher: Any
    if needs_parent:
        launcher = service.ProcessLauncher(conf)
        launcher.launch_service(served, workers=options.workers)
    else:
        launcher = service.launch(conf, served, workers=1)
    with _pid_file(options.pid):
        status = launcher.wait()
    return BOOT_FAILED if served.gave_up() else int(status or 0)


def _prepare(options: argparse.Namespace) -> None:
    """Directory, path, environment and umask, before anything is loaded."""
    os.environ.update(options.env or ())
    if options.chdir is not None:
        try:
            os.chdir(options.chdir)
        except OSError as error:
            raise CommandError(f"--chdir {options.chdir}: {error.strerror}") from error
    directories = (options.pythonpath or "").split(",")
    for directory in (str(Path.cwd()), *(os.path.abspath(d) for d in directories if d)):
        if directory not in sys.path:
            sys.path.insert(0, directory)
    if options.umask is not None:
        os.umask(options.umask)


@contextlib.contextmanager
def _pid_file(path: str | None) -> Iterator[None]:
    """The parent's pid in a file, for as long as it runs.

    :raises CommandError: the file cannot be written.
    """
    if path is None:
        yield
        return
    file = Path(path)
    try:
        file.write_text(f"{os.getpid()}\n")
    except OSError as error:
        raise CommandError(f"--pid {path}: {error.strerror}") from error
    try:
        yield
    finally:
        # A successor may have written its own.
        if file.exists() and file.read_text() == f"{os.getpid()}\n":
            file.unlink()


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


def site_service(
    site: Application, servers: Sequence[Server], reloader: reloading.Reloader | None = None
) -> Any:
    """The service that loads *site* and serves it on all *servers*, and watches what it loaded."""
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
            if reloader is not None:
                reloader.watch()

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
    from osloxide._typing import override
    from osloxide.server.listener import address_of

    class SiteServer(wsgi.Server):
        """A server that may have been given its socket."""

        max_headers = options.limit_request_fields or wsgi.Server.max_headers

        def __init__(self, listener: socket.socket | None, **place: Any) -> None:
            self._given = listener
            super().__init__(
                conf,
                options.application,
                None,
                backlog=options.backlog,
                use_ssl=options.certfile is not None or options.keyfile is not None,
                max_url_len=options.limit_request_line,
                logger_name=_ACCESS_LOGGER,
                **place,
            )

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
    servers: list[Server] = []
    for where in _addresses(options.bind):
        place: dict[str, Any] = {}
        listener: socket.socket | None = None
        if isinstance(where, socket.socket):
            listener = where
        elif isinstance(where, str):
            place = {"socket_family": socket.AF_UNIX, "socket_file": where}
        else:
            place = {"host": where[0], "port": where[1]}
        try:
            servers.append(SiteServer(listener, **place))
        except (OSError, ValueError, RuntimeError, wsgi.InvalidInput) as error:
            raise CommandError(_in_one_line(error)) from error
    return servers


def _addresses(
    bind: list[tuple[str, int] | str | address.Inherited] | None,
) -> list[tuple[str, int] | str | socket.socket]:
    """Where to listen: as asked for, else on what systemd passed, else on port 8000."""
    passed = inherited.passed_by_systemd(os.environ)
    if not bind:
        found = [inherited.from_fd(descriptor) for descriptor, _ in passed]
        return [*found] or [("127.0.0.1", 8000)]
    places: list[tuple[str, int] | str | socket.socket] = []
    unused = {descriptor for descriptor, _ in passed}
    for where in bind:
        if not isinstance(where, address.Inherited):
            places.append(where)
            continue
        for descriptor in inherited.find(where.name, passed):
            unused.discard(descriptor)
            places.append(inherited.from_fd(descriptor))
    if unused:
        logging.getLogger("osloxide.serve").warning(
            "systemd passed sockets that --bind does not name: %s; no process accepts on them",
            ", ".join(f"fd://{descriptor}" for descriptor in sorted(unused)),
        )
    return places


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
        ("wsgi_log_format", options.access_logformat),
    ):
        if value is not None:
            conf.set_override(name, value)
    for name, value in (
        ("cert_file", options.certfile),
        ("key_file", options.keyfile),
        ("ca_file", options.ca_certs),
        ("ciphers", options.ciphers),
        ("version", options.ssl_version),
    ):
        conf.set_override(name, value, "ssl")
    if options.timeout:
        conf.set_override("worker_timeout", options.timeout, configuration.GROUP)
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
