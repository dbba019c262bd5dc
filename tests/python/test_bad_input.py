"""Wrong values end a service when it starts: a clear error, a status, and nothing left behind.

Each message names the thing, its value and the remedy. run_command() proves that no process is
left; the tests prove that no port is.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from _children import environment, run_command
from conftest import APPS

OPTION = "conf.set_override({!r}, {!r})\n"
LAUNCH = "service.launch(conf, Site(), {}).wait()"


@pytest.fixture
def port() -> int:
    """A port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number: int = probe.getsockname()[1]
    return number


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except ConnectionRefusedError:
        return False
    return True


def refused(port: int, statements: str, **environ: str) -> str:
    """Run the statements; they must fail at once. Returns the error, in one line."""
    result = run_command(
        [sys.executable, str(APPS / "misconfigured.py"), str(port), statements],
        environ=environment(**environ),
    )

    assert result.returncode == 1, (result.returncode, result.stderr)
    assert not is_open(port)
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("workers='2'", "TypeError: Type of workers should be int! (got '2', a str)"),
        ("workers=1.5", "TypeError: Type of workers should be int! (got 1.5, a float)"),
        ("workers=0", "ValueError: Number of workers should be positive! (got 0)"),
        ("workers=-1", "ValueError: Number of workers should be positive! (got -1)"),
        ("workers=99999", "ValueError: 99999 workers are too many: a supervisor has room for"),
        (
            "restart_method='restart'",
            "ValueError: Invalid restart_method: restart (expected one of reload, mutate)",
        ),
        ("workers=2, restart_method=None", "ValueError: Invalid restart_method: None (expected"),
        ("start_method='thread'", "Invalid start_method 'thread'; leave it out or pass 'fork'"),
        ("start_method='spawn'", "start_method 'spawn' is not offered for Site"),
    ],
)
def test_launch_refuses(port: int, arguments: str, error: str) -> None:
    assert error in refused(port, LAUNCH.format(arguments))


@pytest.mark.parametrize("thing", ["object()", "Site", "None"])
@pytest.mark.parametrize("workers", [1, 2])
def test_launch_refuses_what_is_no_service(port: int, thing: str, workers: int) -> None:
    error = refused(port, f"Site()\nservice.launch(conf, {thing}, workers={workers}).wait()")
    assert error.startswith("TypeError: Service ")
    assert "must be an instance of <class 'oslo_service.backend.base.ServiceBase'>" in error


@pytest.mark.parametrize("launcher", ["ProcessLauncher", "ServiceLauncher", "Launcher"])
def test_launchers_refuse_an_unknown_restart_method(port: int, launcher: str) -> None:
    error = refused(port, f"Site()\nservice.{launcher}(conf, restart_method='x')")
    assert error == "ValueError: Invalid restart_method: x (expected one of reload, mutate)"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_negative_grace_period_is_refused(port: int, workers: int) -> None:
    statements = OPTION.format("graceful_shutdown_timeout", -1) + LAUNCH.format(
        f"workers={workers}"
    )
    assert refused(port, statements) == (
        "ValueError: graceful_shutdown_timeout is -1; give seconds, or 0 to wait for ever"
    )


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("wsgi_default_pool_size", 0, "pool_size is 0; give at least 1"),
        ("wsgi_default_pool_size", -4, "pool_size is -4; give at least 1"),
        ("client_socket_timeout", -1, "client_socket_timeout is -1; give at least 0"),
        ("max_header_line", 0, "max_header_line is 0; give at least 1"),
        ("max_header_line", -1, "max_header_line is -1; give at least 1"),
        ("tcp_keepidle", 0, "tcp_keepidle is 0; give 1 to 32767 seconds"),
        ("tcp_keepidle", 99999, "tcp_keepidle is 99999; give 1 to 32767 seconds"),
        ("wsgi_log_format", "%(user)s", "names the unknown key 'user'"),
        ("wsgi_log_format", "%(client_ip", "wsgi_log_format"),
    ],
)
def test_server_refuses_options_out_of_range(
    port: int, option: str, value: object, error: str
) -> None:
    statements = OPTION.format(option, value) + LAUNCH.format("workers=2")
    assert error in refused(port, statements)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("port=port, backlog=0", "backlog is 0; it must be more than 0"),
        ("port=port, pool_size=-1", "pool_size is -1; give at least 1"),
        ("port=port, max_url_len=-1", "max_url_len is -1; give at least 0"),
        ("port=70000", "site cannot listen on port 70000; configure one from 0 to 65535"),
        ("port=-1", "site cannot listen on port -1; configure one from 0 to 65535"),
        ("socket_family=99", "Unsupported socket family: 99; use AF_INET, AF_INET6 or AF_UNIX"),
        ("socket_family=1", "socket_file is not set; a unix socket needs its path"),
        (
            "socket_family=1, socket_file='/nowhere/s'",
            "site cannot listen on /nowhere/s: No such file or directory; the directory does not "
            "exist; create it or configure another path",
        ),
    ],
)
def test_server_refuses_arguments(port: int, arguments: str, error: str) -> None:
    assert error in refused(port, f"listen({arguments})")


def test_an_unknown_host_is_named(port: int) -> None:
    error = refused(
        port, "wsgi.Server(conf, 'site', application, host='nowhere.invalid', port=port)"
    )
    assert f"site cannot listen on nowhere.invalid:{port}: " in error
    assert "check the configured address" in error


def test_a_port_in_use_is_named_and_stays_its_owner_s(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        result = run_command(
            [sys.executable, str(APPS / "misconfigured.py"), str(port), LAUNCH.format("workers=2")]
        )
        assert is_open(port)

    assert result.returncode == 1
    assert (
        f"site cannot listen on 127.0.0.1:{port}: Address already in use; another process listens "
        "there; stop it or configure another port"
    ) in result.stderr


@pytest.mark.parametrize(
    ("certificate", "key", "error"),
    [
        (None, None, "cert_file and key_file of group [ssl] are not set; set both"),
        ("/nowhere/cert", "/nowhere/key", "/nowhere/cert"),
        ("{garbage}", "{garbage}", "cert_file = {garbage}"),
    ],
)
def test_an_unusable_certificate_is_named(
    port: int, tmp_path: Path, certificate: str | None, key: str | None, error: str
) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    statements = ""
    for option, value in (("cert_file", certificate), ("key_file", key)):
        if value is not None:
            path = value.format(garbage=garbage)
            statements += f"conf.set_override({option!r}, {path!r}, 'ssl')\n"

    found = refused(port, statements + "listen(port=port, use_ssl=True)")

    assert error.format(garbage=garbage) in found


def test_an_unsupported_oslo_service_is_refused(port: int, tmp_path: Path) -> None:
    info = tmp_path / "oslo_service-3.5.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: oslo.service\nVersion: 3.5.0\n")

    error = refused(port, LAUNCH.format("workers=2"), PYTHONPATH=str(tmp_path))

    assert error == (
        "osloxide.exceptions.ActivationError: osloxide cannot replace oslo.service 3.5.0: it has "
        "no threading backend whose place could be taken; install oslo.service >= 4.2, < 5"
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_patching_after_the_imports_is_refused_at_launch(port: int, workers: int) -> None:
    pytest.importorskip("eventlet")
    patch = "import eventlet\neventlet.monkey_patch()\n"

    error = refused(port, patch + LAUNCH.format(f"workers={workers}"))

    assert "eventlet has monkey-patched it" in error


def test_a_monkey_patched_process_is_refused(port: int, tmp_path: Path) -> None:
    pytest.importorskip("eventlet")
    # As a service that patches before anything else does.
    (tmp_path / "sitecustomize.py").write_text("import eventlet\neventlet.monkey_patch()\n")

    error = refused(port, LAUNCH.format("workers=2"), PYTHONPATH=str(tmp_path))

    assert error.startswith("osloxide.exceptions.ActivationError: osloxide cannot work in process")
    assert "eventlet has monkey-patched it" in error
    assert "OS_<PROJECT>_DISABLE_EVENTLET_PATCHING=1" in error
