"""What a parent of workers has loaded: each module of it is memory that uWSGI's parent has not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from oslo_service import _options
from support.serving import fetch, starter

from osloxide.launch import settings as launch_settings
from osloxide.server import settings as server_settings

SITE = """
import sys

loaded = sorted({name.split(".")[0] for name in sys.modules})

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [" ".join(loaded).encode()]
"""

FOR_SERVICES_ONLY = {
    *("oslo_config", "oslo_log", "oslo_context", "oslo_serialization", "oslo_utils", "stevedore"),
    *("debtcollector", "netaddr", "rfc3986", "idna", "dateutil", "ssl", "xmlrpc"),
    *("http", "multiprocessing", "socketserver"),
}


@pytest.mark.parametrize(
    "command",
    [
        ("serve", "site_of_test", "--bind", "127.0.0.1:0"),
        ("uwsgi", "--http-socket", "127.0.0.1:0", "--master", "--lazy-apps", "--module"),
    ],
    ids=lambda command: command[0],
)
def test_parent_has_nothing_loaded_that_only_services_need(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "site_of_test.py").write_text(SITE)
    with starter(tmp_path) as start:
        if command[0] == "serve":
            server = start(*command, "--workers", "2")
        else:
            server = start(*command, "site_of_test:application", "--processes", "2")
        # Loaded by a worker, which had what its parent has and more.
        loaded = set(fetch(server.port()))
        server.stop()

    assert "osloxide" in loaded
    assert not loaded & FOR_SERVICES_ONLY


def test_commands_have_the_defaults_of_services() -> None:
    def defaults(options: list[object]) -> dict[str, object]:
        return {option.name: option.default for option in options}  # type: ignore[attr-defined]

    ours = dataclasses.asdict(server_settings.Settings())
    theirs = defaults(_options.wsgi_opts)
    del theirs["api_paste_config"]  # for a Loader, and no command has one
    assert ours == {**theirs, "ssl": defaults(_options.ssl_opts)}

    grace = launch_settings.Settings().graceful_shutdown_timeout
    assert grace == defaults(_options.service_opts)["graceful_shutdown_timeout"]


def test_commands_have_no_worker_timeout_unless_told() -> None:
    from osloxide.launch import configuration

    defaults = {option.name: option.default for option in configuration.OPTIONS}
    assert dataclasses.asdict(launch_settings.WorkerSettings()) == defaults
