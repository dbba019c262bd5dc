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

from osloxide.cli import listeners, operator_signals, reloading, restart, serve_options
from osloxide.cli.application import Application
from osloxide.cli.errors import CommandError
from osloxide.cli.preparation import Preparation
from osloxide.cli.site import BOOT_FAILED, Boot, report, site_service

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
    preparation = Preparation(options)
    preparation.apply()
    site = Application.parse(options.application)
    options.name = options.name or site.title
    preparation.set_arguments(options.program or options.name)
    site.check()
    if options.preload:
        if options.reload:
            raise CommandError(
                "--reload cannot replace what --preload loads; leave one of them out"
            )
        _preload(site)
    reloader = reloading.Reloader(options.reload_extra_file or ()) if options.reload else None
    restart.hold_signals()
    servers = listeners.bind(options)

    from osloxide import service
    from osloxide.launch import scoreboard

    scoreboard.call_program(options.name)
    # Only a parent can replace a worker.
    has_parent = options.workers > 1 or options.master or options.reload or options.timeout
    boot = Boot()

    def on_reset() -> None:
        if has_parent:
            preparation.apply_again()
        else:
            restart.execute_again(preparation, servers)

    served = site_service(site, servers, boot, on_reset=on_reset, reloader=reloader)
    conf = servers[0].conf
    launcher: Any
    if has_parent:
        launcher = service.ProcessLauncher(conf)
        launcher.launch_service(served, workers=options.workers)
    else:
        launcher = service.launch(conf, served, workers=1)
    operator_signals.install(lambda: getattr(launcher, "children", ()), None)
    restart.take_signals()
    with _pid_file(options.pid):
        status = launcher.wait()
    return BOOT_FAILED if boot.has_given_up() else int(status or 0)


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
        with contextlib.suppress(OSError):
            if file.read_text() == f"{os.getpid()}\n":
                file.unlink()


def _preload(site: Application) -> None:
    try:
        site.load()
    except (CommandError, KeyboardInterrupt):
        raise
    except BaseException as error:
        logging.getLogger("osloxide.serve").error("%s", report(site, error))
        raise CommandError(f"{site.text} could not be loaded, see above", BOOT_FAILED) from error
