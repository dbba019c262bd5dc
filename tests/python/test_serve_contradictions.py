"""Options of ``osloxide serve`` that cannot work, alone or together: said at the start, all of it.

Each message names the option, its value and the remedy. run_command() proves that no process is
left.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest
from _children import environment, run_command
from conftest import wait_until
from support.serving import OSLOXIDE, Running, fetch, starter

from osloxide.cli import (
    address,
    contradictions,
    inherited,
    listeners,
    recycling,
    serve_options,
)
from osloxide.cli.errors import CommandError

SITE = """
def application(environ, start_response):
    start_response("200 OK", [])
    return [b"ok"]
"""
CERTIFICATES = Path(__file__).parents[1] / "certificates"
CERTIFICATE = ["--certfile", str(CERTIFICATES / "server.crt")]
KEY = ["--keyfile", str(CERTIFICATES / "server.key")]
#: Beyond every type that a number could be kept in.
HUGE = "9" * 40


def refused(tmp_path: Path, *arguments: str) -> str:
    """Start it; it must end by itself. Returns what it says."""
    (tmp_path / "mysite.py").write_text(SITE)
    serve = [*OSLOXIDE, "serve", "mysite"]
    result = run_command([*serve, *arguments], environ=environment(), cwd=tmp_path)

    assert result.returncode in (1, 2), result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("osloxide")
    return result.stderr


def refused_at_once(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said of options that need no look at anything else."""
    parser = argparse.ArgumentParser(prog="osloxide serve")
    serve_options.declare(parser)
    try:
        options = parser.parse_args(["mysite", *arguments])
        contradictions.check(options)
        recycling.check(options)
    except CommandError as error:
        return str(error)
    except SystemExit:
        return capsys.readouterr().err
    raise AssertionError(f"accepted: {arguments}")


TCP = ["-b", "127.0.0.1:0"]
PAIRS = [
    (["--log-file-mode", "640"], ["--log-file-mode 640", "--log-file"]),
    (["--log-file-owner", "root"], ["--log-file-owner root", "--log-file"]),
    (["--stats-http"], ["--stats-http", "without --stats;"]),
    (["--reload-extra-file", "x"], ["--reload-extra-file x", "--reload;"]),
    (["--uwsgi-option", "a=b"], ["--uwsgi-option a=b", "--uwsgi-module"]),
    (
        ["--forwarded-headers", "forwarded"],
        ["--forwarded-headers forwarded", "--forwarded-allow-ips"],
    ),
    (["--keep-alive", "9", "--no-keep-alive"], ["--keep-alive 9", "--no-keep-alive"]),
    (
        ["--no-access-log", "--no-access-log-for", "path=/up"],
        ["--no-access-log-for path=/up", "--no-access-log;"],
    ),
    (
        ["--no-access-log", "--access-log-status", "4xx,5xx"],
        ["--access-log-status 4xx,5xx", "--no-access-log;"],
    ),
    (
        ["--no-access-log", "--access-logformat", "%(client_ip)s"],
        ["--access-logformat %(client_ip)s", "--no-access-log;"],
    ),
    (["--add-header", "Transfer-Encoding: x"], ["--add-header", "belongs to the server"]),
    (["--add-header", "content-length: 5"], ["--add-header", "belongs to the server"]),
    (["--add-header", "X: \u20ac"], ["--add-header", "no header can carry"]),
    (["--max-requests-jitter", "5"], ["--max-requests-jitter 5", "--max-requests;"]),
]


@pytest.mark.parametrize(("options", "said"), PAIRS)
def test_options_without_an_effect_are_refused(
    capsys: pytest.CaptureFixture[str], options: list[str], said: list[str]
) -> None:
    message = refused_at_once(capsys, *options)

    assert [text for text in said if text not in message] == [], message


def test_the_command_refuses_options_without_an_effect(tmp_path: Path) -> None:
    assert "--keep-alive 9 has no effect" in refused(
        tmp_path, *TCP, "--keep-alive", "9", "--no-keep-alive"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--socket-mode", "660"], ["--socket-mode 660", "no --bind is unix:PATH"]),
        (["--socket-owner", "root"], ["--socket-owner root", "no --bind is unix:PATH"]),
        (
            ["--proxy-protocol", "--proxy-allow-from", "unix"],
            ["--proxy-allow-from unix", "127.0.0.1:0", "add the addresses of proxies"],
        ),
        (
            ["--forwarded-allow-ips", "unix"],
            ["--forwarded-allow-ips unix", "no --bind is a unix socket"],
        ),
    ],
)
def test_options_without_an_effect_on_any_address_are_refused(
    tmp_path: Path, options: list[str], said: list[str]
) -> None:
    message = refused(tmp_path, *TCP, *options)

    assert [text for text in said if text not in message] == [], message


@pytest.mark.parametrize(
    "option",
    [
        "--certfile", "--keyfile", "--user", "--group", "--chdir", "--pid", "--log-file",
        "--access-log", "--access-logformat", "--name", "--touch-reload", "--unset-env",
    ],
)  # fmt: skip
def test_the_value_of_a_variable_that_is_not_set_is_refused(
    capsys: pytest.CaptureFixture[str], option: str
) -> None:
    message = refused_at_once(capsys, f"{option}=")

    assert f"{option} is empty" in message
    assert "leave it out" in message


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ftp://127.0.0.1:0", ["ftp is not spoken", "https://"]),
        ("unix:@", ["unix:@ needs a name"]),
        (f"fd://{HUGE}", [HUGE, "no descriptor"]),
        ("http://fd://2147483648", ["2147483648", "no descriptor"]),
    ],
)
def test_what_is_no_address_is_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str], address: str, said: list[str]
) -> None:
    message = refused_at_once(capsys, "-b", address)

    assert [text for text in ["--bind", *said] if text not in message] == [], message


def test_a_scheme_may_be_written_in_either_case() -> None:
    parsed = address.parse_listener("HTTPS://127.0.0.1:8443")

    assert parsed == address.Listener(("127.0.0.1", 8443), "https")


def test_tcp_is_a_scheme_as_gunicorn_has_it() -> None:
    assert address.parse_listener("tcp://127.0.0.1:80") == address.parse_listener("127.0.0.1:80")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-b", "unix:a.sock", "-b", "unix:./a.sock"], ["unix:./a.sock is given twice", "unix:a"]),
        (["-b", "unix:@two", "-b", "unix:@two"], ["--bind unix:@two is given twice"]),
        (["-b", "127.0.0.1:47", "-b", "http://127.0.0.1:47"], ["127.0.0.1:47 is given twice"]),
        (["-b", "127.0.0.1:47", "-b", ":47"], ["0.0.0.0:47 leaves nothing", "127.0.0.1:47"]),
        (["-b", f"{'a' * 70}.invalid:0"], ["no host has such a name", "aaa.invalid:0"]),
        (["-b", "a..invalid:0"], ["no host has such a name", "a..invalid:0"]),
        ([*TCP, "--user", HUGE], [f"--user {HUGE}", "4294967294 at most"]),
        ([*TCP, "--group", HUGE], [f"--group {HUGE}", "4294967294 at most"]),
        (
            [*TCP, "--access-logformat", "combined"],
            ["--access-logformat combined", "--access-log;"],
        ),
        ([*TCP, "--access-logformat", "%(x)s"], ["--access-logformat", "unknown key"]),
        ([*TCP, "--certfile", "/tmp"], ["--certfile /tmp", "directory"]),
        ([*TCP, "--remove-header", "X-A: b"], ["--remove-header", "no name of a header"]),
        ([*TCP, "--unset-env", "A=b"], ["--unset-env", "no NAME of a variable"]),
        ([*TCP, *CERTIFICATE, *KEY, "--ciphers", "AES128-SHA"], ["--ciphers AES128-SHA"]),
        ([*TCP, *CERTIFICATE, *KEY, "--ssl-version", "TLSv1"], ["--ssl-version TLSv1:"]),
        ([*TCP, *KEY, "--certfile", "/etc/passwd"], ["--certfile /etc/passwd:"]),
    ],
)
def test_the_message_names_the_option_as_the_operator_wrote_it(
    tmp_path: Path, options: list[str], said: list[str]
) -> None:
    message = refused(tmp_path, *options)

    assert [text for text in said if text not in message] == [], message


@pytest.mark.parametrize("option", ["--pid", "--log-file", "--access-log"])
def test_a_pipe_that_nothing_reads_is_not_waited_for(tmp_path: Path, option: str) -> None:
    os.mkfifo(tmp_path / "pipe")

    message = refused(tmp_path, *TCP, option, str(tmp_path / "pipe"))

    assert f"{option} {tmp_path / 'pipe'}" in message
    assert "start its reader first" in message


@pytest.mark.parametrize("count", ["9" * 30, "\u0663"])
def test_a_number_of_sockets_that_is_none_is_refused(count: str) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}

    with pytest.raises(CommandError, match="is no number of sockets"):
        inherited.passed_by_systemd(environ)


def test_a_socket_that_is_inherited_twice_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, listener.dup() as copy:
        places = [(address.Listener(address.Inherited("x")), each) for each in (listener, copy)]

        with pytest.raises(CommandError, match=f"fd://{copy.fileno()} is given twice"):
            listeners._check_repetitions(places)


def test_a_dollar_sign_in_a_value_is_no_other_options_value(tmp_path: Path) -> None:
    (tmp_path / "mysite.py").write_text(SITE)
    shutil.copy(CERTIFICATE[1], tmp_path / "$tls.crt")
    with starter(tmp_path) as start:
        running = start(
            "serve", "mysite", "-b", "http://127.0.0.1:0", "-b", "https://127.0.0.1:0", *KEY,
            "--certfile", str(tmp_path / "$tls.crt"),
            "--access-logformat", "cost $5 %(status_code)d",
        )  # fmt: skip

        assert fetch(running.port()) == ["ok"]
        wait_until(lambda: "cost $5 200" in running.log, f"the line\n{running.log}")
        assert running.stop() == 0, running.log


@pytest.mark.parametrize("scheme", ["http", "uwsgi"])
def test_a_certificate_that_no_address_serves_is_refused(tmp_path: Path, scheme: str) -> None:
    message = refused(tmp_path, "-b", f"{scheme}://127.0.0.1:0", *CERTIFICATE, *KEY)

    assert f"{CERTIFICATE[1]} has no effect" in message
    assert "bind https://" in message


@pytest.mark.parametrize(
    "option",
    [
        "--workers", "--threads", "--timeout", "--request-timeout", "--graceful-timeout",
        "--max-requests", "--max-worker-lifetime", "--max-worker-memory", "--client-timeout",
        "--keep-alive", "--max-connections", "--max-waiting-requests", "--limit-request-line",
        "--limit-request-body", "--limit-request-fields", "--limit-request-field-size",
        "--backlog",
    ],
)  # fmt: skip
def test_a_number_beyond_all_bounds_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], option: str
) -> None:
    message = refused_at_once(capsys, option, HUGE)

    assert option in message
    assert HUGE in message


@pytest.mark.parametrize(
    "options",
    [
        ["--pid", "/nonexistent/pid"], ["-w", "2", "--pid", "/"],
        ["--log-file", "/nonexistent/log"], ["-w", "2", "--log-file", "/"],
        ["--access-log", "/nonexistent/log"], ["--access-log", "/"],
        ["--log-config", "/nonexistent"], ["--log-config", "/"],
        ["--chdir", "/nonexistent"], ["--chdir", "/etc/passwd"],
        ["--venv", "/nonexistent"],
        ["--static-map", "/static=/nonexistent"], ["--static-map", "/static=/etc/passwd"],
        ["--stats", "unix:/nonexistent/stats"],
        ["--certfile", "/nonexistent"], ["--certfile", "/"],
        ["--certfile", "/etc/passwd"],
        [*CERTIFICATE, "--keyfile", "/nonexistent"], [*CERTIFICATE, "--keyfile", "/"],
        [*CERTIFICATE, *KEY, "--ca-certs", "/nonexistent"],
        [*CERTIFICATE, *KEY, "--ca-certs", "/"],
        [*CERTIFICATE, *KEY, "--ca-certs", "/etc/passwd"],
        ["--user", "no-such-user"], ["--group", "no-such-group"],
        ["--config", "/nonexistent"],
    ],
)  # fmt: skip
def test_a_file_that_is_of_no_use_is_named_with_its_option(
    tmp_path: Path, options: list[str]
) -> None:
    message = refused(tmp_path, *TCP, *options)

    assert options[-2] in message
    assert options[-1].rpartition("=")[2].removeprefix("unix:") in message


def test_a_hangup_reads_a_relative_configuration_where_the_command_was_started(
    tmp_path: Path,
) -> None:
    site = tmp_path / "app" / "mysite.py"
    site.parent.mkdir()
    site.write_text(SITE)
    (tmp_path / "gunicorn.conf.py").write_text("timeout = 0\nchdir = 'app'\n")
    with starter(tmp_path) as start:
        running = start("serve", "mysite", *TCP, "--config", "gunicorn.conf.py")
        port = running.port()
        assert fetch(port) == ["ok"]

        site.write_text(SITE.replace("ok", "new"))
        running.process.send_signal(signal.SIGHUP)

        wait_until(lambda: fetch(port) == ["new"], f"the new code\n{running.log}")
        assert running.stop() == 0, running.log


def test_a_hangup_with_files_of_no_use_leaves_a_single_process_serving(tmp_path: Path) -> None:
    (tmp_path / "mysite.py").write_text(SITE)
    config, logs, static = tmp_path / "gunicorn.conf.py", tmp_path / "logs", tmp_path / "static"
    config.write_text("timeout = 0\n")
    certificate = shutil.copy(CERTIFICATE[1], tmp_path / "server.crt")
    for directory in (logs, static):
        directory.mkdir()
    with starter(tmp_path) as start:
        site: Running = start(
            "serve", "mysite", *TCP, "-b", "http://127.0.0.1:0", "--config", str(config),
            "--access-log", str(logs / "access"), "--static-map", f"/static={static}",
            "--certfile", str(certificate), *KEY,
        )  # fmt: skip
        port = site.port(1)
        for path, broken in (
            (config, lambda: config.write_text("keepalive = (")),
            (static, lambda: static.rmdir()),
            (logs, lambda: shutil.rmtree(logs)),
            (Path(certificate), lambda: Path(certificate).write_text("no certificate")),
        ):
            broken()
            before = len(site.log)
            site.process.send_signal(signal.SIGHUP)
            wait_until(
                lambda before=before: "this program goes on" in site.log[before:],  # type: ignore[misc]
                f"the report\n{site.log}",
            )
            assert str(path) in site.log[before:]
            assert fetch(port) == ["ok"]
            if path is config:
                config.write_text("timeout = 0\n")
            elif path in (static, logs):
                path.mkdir()
        assert site.stop() == 0, site.log
