"""``osloxide serve``: any WSGI application on osloxide's server and supervisor.

Owns the order of a start: everything is checked and bound before the first fork; the application is
loaded after it, so that connections it opens at import are its own worker's. What is done in each
step is another file's part.

Rules: PEP 3333; gunicorn's settings for the names; nothing else is shared with gunicorn.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osloxide.activation import eventlet_names, import_hook
from osloxide.cli import (
    contradictions,
    filters,
    gunicorn,
    listeners,
    log_file,
    mount,
    operator_signals,
    privileges,
    recycling,
    reloading,
    restart,
    serve_options,
    stats,
    unit,
)
from osloxide.cli.application import Application
from osloxide.cli.errors import CommandError
from osloxide.cli.preparation import Preparation
from osloxide.cli.site import BOOT_FAILED, Boot, report, site_service
from osloxide.cli.uwsgi import module as uwsgi_module
from osloxide.exceptions import ActivationError
from osloxide.server import forwarded

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``osloxide serve``; the environment may have set them."""
    serve_options.declare(parser)
    try:
        serve_options.take_from(os.environ, parser)
    except CommandError as error:
        parser.error(str(error))


def main(options: argparse.Namespace) -> int:
    """Serve until a signal ends it; returns the exit status."""
    if options.application is None:
        raise CommandError("name the application: osloxide serve MODULE:APP", 2)
    preparation = Preparation(options)
    preparation.apply()
    _serve_eventlet()
    site = Application.parse(options.application)
    options.name = options.name or site.title
    preparation.set_arguments(options.program or options.name)
    _check(options, site)
    if options.preload:
        if options.reload:
            raise CommandError(
                "--reload cannot replace what --preload loads; leave one of them out"
            )
        if options.warm:
            raise CommandError(
                "--preload has the parent load what --warm has a template load; leave one out"
            )
        _preload(site)
    identity = privileges.Identity.of(options.user, options.group)
    reloader = _reloader(options)
    restart.hold_signals()
    servers = listeners.bind(options)
    told = None if options.stats is None else stats.Stats(options.stats, options.stats_http)

    from osloxide import service
    from osloxide.launch import launcher_index, process_title, scoreboard

    scoreboard.call_program(options.name)
    process_title.prefix = options.title_prefix or ""
    has_parent = needs_parent(options)
    if options.uwsgi_module:
        uwsgi_module.offer(
            options.uwsgi_option or [],
            workers=options.workers,
            threads=options.threads or servers[0].pool_size,
            has_parent=has_parent,
        )
    between = filters.Filters(options, keeps_input=options.uwsgi_module)
    if options.no_access_log:
        logging.getLogger(listeners.ACCESS_LOGGER).setLevel(logging.WARNING)
    boot = Boot()

    def wrap(application: mount.Application) -> mount.Application:
        if options.mount is not None:
            application = mount.mounted(application, options.mount)
        application = between.wrap(application)
        if options.forwarded_allow_ips is not None:
            trusted = options.forwarded_allow_ips
            headers = options.forwarded_headers or forwarded.HEADERS[0]
            application = forwarded.believed(application, trusted, headers)
        return application

    def on_start() -> None:
        if has_parent:
            recycling.limit(options, servers[0].pool_size)
        if told is not None:
            told.answer(servers)

    def on_reset() -> None:
        if has_parent:
            preparation.apply_again()
        else:
            restart.execute_again(
                preparation,
                servers,
                lambda: _check_again(options, site, preparation.directory),
            )

    served = site_service(
        site,
        options.name,
        servers,
        boot,
        wrap=wrap,
        on_start=on_start,
        on_reset=on_reset,
        on_interrupted=lambda: None if has_parent else remove_pid_file(options.pid),
        on_stopped=uwsgi_module.run_atexit,
        reloader=reloader,
    )
    conf = servers[0].conf
    launcher: Any
    if has_parent:
        launcher = service.ProcessLauncher(conf)
        if options.warm:
            launcher.use_template(served.prepare)
        launcher.launch_service(served, workers=options.workers)
    else:
        launcher = service.launch(conf, served, workers=1)
    operator_signals.install(
        lambda: _processes_below(launcher),
        options.log_file,
        launcher.change_workers if has_parent else None,
    )
    restart.note_stops()
    restart.take_signals()
    unit.warn_of_short_stop(float(conf.graceful_shutdown_timeout or 0))
    with _pid_file(options.pid):
        if options.log_file is not None:
            log_file.redirect(options)
        with launcher_index.another_user():
            identity.assume()
        status = launcher.wait()
    return BOOT_FAILED if boot.has_given_up() else int(status or 0)


def _check(options: argparse.Namespace, site: Application) -> None:
    """What can be said of the options before anything is bound or loaded.

    :raises CommandError: they cannot work.
    """
    site.check()
    contradictions.check(options)
    recycling.check(options)
    filters.check(options)


def _check_again(options: argparse.Namespace, site: Application, directory: str) -> None:
    """Whether the same command would start now: files may have changed.

    :param directory: where the command was started; the path of ``--config`` begins there, and all
        others in ``--chdir``.
    :raises CommandError: it would not.
    """
    if config := getattr(options, "config", None):
        gunicorn.read(config, directory)
    _check(options, site)
    listeners.check_logs(options)


def _processes_below(launcher: Any) -> list[int]:
    """Workers, and what they are forked from; none where the command serves by itself."""
    if not hasattr(launcher, "template_pids"):
        return []
    return [*launcher.children, *launcher.template_pids()]


def _serve_eventlet() -> None:
    """Serve eventlet's names to the application where the operator asks for that.

    :raises CommandError: the variable has another value than those that it knows.
    """
    if not os.environ.get(eventlet_names.VARIABLE):
        return
    try:
        if eventlet_names.wants_native(os.environ):
            import_hook.install(deferred=True, serve_eventlet=True)
    except ActivationError as error:
        raise CommandError(str(error)) from error


def needs_parent(options: argparse.Namespace) -> bool:
    """Whether workers have a parent; only a parent can replace a worker."""
    return bool(
        options.workers > 1
        or options.master
        or options.warm
        or options.reload
        or options.touch_reload
        or recycling.is_wanted(options)
        or options.timeout
    )


def _reloader(options: argparse.Namespace) -> reloading.Reloader | None:
    extra = [*(options.touch_reload or ()), *(options.reload_extra_file or ())]
    if options.reload:
        return reloading.Reloader(extra)
    return reloading.Reloader(extra, modules=False) if options.touch_reload else None


@contextlib.contextmanager
def _pid_file(path: str | None) -> Iterator[None]:
    """The parent's pid in a file, for as long as it runs.

    :raises CommandError: the file cannot be written.
    """
    if path is None:
        yield
        return
    try:
        with os.fdopen(log_file.open_for_writing(path, os.O_TRUNC), "w") as opened:
            opened.write(f"{os.getpid()}\n")
    except OSError as error:
        raise CommandError(f"--pid {path}: {error.strerror}; {log_file.remedy(error)}") from error
    try:
        yield
    finally:
        remove_pid_file(path)


def remove_pid_file(path: str | None) -> None:
    """Remove the pid file, unless a successor has written its own."""
    if path is not None:
        file = Path(path)
        with contextlib.suppress(OSError):
            if file.read_text() == f"{os.getpid()}\n":
                file.unlink()


def _preload(site: Application) -> None:
    try:
        with restart.stops_heard():
            site.load()
    except (CommandError, KeyboardInterrupt):
        raise
    except BaseException as error:
        logging.getLogger("osloxide.serve").error("%s", report(site, error))
        raise CommandError(f"{site.text} could not be loaded, see above", BOOT_FAILED) from error
