"""gunicorn's configuration files and its own options: taken, needless by name, or refused.

Rules: gunicorn's settings and their order.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.serving import Running, fetch, starter

from osloxide import _native
from osloxide.cli import gunicorn, serve_options

# Every setting of gunicorn 27.0.
SETTINGS = """
access_log_format accesslog asgi_disconnect_grace_period asgi_lifespan asgi_loop backlog bind
ca_certs capture_output casefold_http_method cert_reqs certfile chdir check_config child_exit
ciphers config control_socket control_socket_disable control_socket_mode daemon default_proc_name
dirty_apps dirty_graceful_timeout dirty_post_fork dirty_threads dirty_timeout dirty_worker_exit
dirty_worker_init dirty_workers disable_redirect_access_to_syslog do_handshake_on_connect
dogstatsd_tags enable_backlog_metric enable_stdio_inheritance errorlog forwarded_allow_ips
forwarder_headers graceful_timeout group header_map http2_cleartext http2_initial_window_size
http2_max_concurrent_streams http2_max_frame_size http2_max_header_list_size http_parser
http_protocols initgroups keepalive keyfile limit_request_field_size limit_request_fields
limit_request_line logconfig logconfig_dict logconfig_json logger_class loglevel max_requests
max_requests_jitter nworkers_changed on_dirty_starting on_exit on_reload on_starting paste
permit_obsolete_folding permit_unconventional_http_method permit_unconventional_http_version pidfile
post_fork post_request post_worker_init pre_exec pre_fork pre_request preload_app print_config
proc_name protocol proxy_allow_ips proxy_protocol pythonpath raw_env raw_paste_global_conf
reload reload_engine reload_extra_files reuse_port root_path secure_scheme_headers sendfile spew
ssl_context ssl_version statsd_host statsd_prefix strip_header_spaces suppress_ragged_eofs
syslog syslog_addr syslog_facility syslog_prefix threads timeout tmp_upload_dir umask user
uwsgi_allow_ips
websocket_max_message_size when_ready worker_abort worker_class worker_connections worker_exit
worker_int worker_tmp_dir workers wsgi_app
"""
# As an installer writes it for one service of several.
FILE = """
import multiprocessing
import os

bind = ["127.0.0.1:0", "unix:{directory}/socket"]
workers = min(2, multiprocessing.cpu_count() * 2 + 1)
worker_class = "gthread"
threads = 3
worker_tmp_dir = "/dev/shm"
timeout = 60
keepalive = 5
max_requests = 1000
accesslog = "-"
access_log_format = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
errorlog = "-"
proc_name = "barbican-api"
raw_env = ["A=1,2", "B=" + os.path.basename("/x/y")]
umask = 0o027
proxy_protocol = False
proxy_allow_ips = "*"
wsgi_app = "told:application"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gunicorn.conf.py"
    path.write_text(FILE.replace("{directory}", str(tmp_path)))
    return path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "told.py").write_text(
        "import os\ndef application(environ, start_response):\n"
        '    start_response("200 OK", [])\n    return [os.environ["A"].encode()]\n'
    )
    with starter(tmp_path) as begin:
        yield begin


def parsed(*words: str, **environment: str) -> argparse.Namespace:
    parser = gunicorn.Parser()
    serve_options.declare(parser)
    serve_options.take_from(environment, parser)
    return parser.parse_args(list(words))


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parsed(*words)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_every_setting_of_gunicorn_has_a_verdict() -> None:
    assert [name for name in SETTINGS.split() if not gunicorn.has_verdict(name)] == []


def test_a_file_sets_options_and_says_what_is_needless(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = parsed("-c", str(file))

    assert options.application == "told:application"
    assert [bind.place for bind in options.bind] == [
        ("127.0.0.1", 0),
        f"{tmp_path}/socket",
    ]
    assert (options.workers, options.threads, options.timeout) == (2, 3, 60)
    assert (options.keep_alive_timeout, options.max_requests, options.umask) == (5, 1000, 0o027)
    assert options.name == "barbican-api"
    assert dict(options.env) == {"A": "1,2", "B": "y"}
    assert "%(client_ip)s" in options.access_logformat
    assert options.log_file is None
    assert options.proxy_protocol is False
    told = capsys.readouterr().err
    assert "worker_class is needless" in told
    assert "worker_tmp_dir is needless" in told


def test_a_file_brings_defaults_of_gunicorn_where_those_of_serve_differ(tmp_path: Path) -> None:
    empty = tmp_path / "empty.py"
    empty.touch()
    options = parsed("-c", str(empty), "told")

    assert (options.threads, options.timeout, options.graceful_timeout) == (1, 30, 30)


def test_a_file_may_spell_out_gunicorns_defaults_and_levels_in_capitals(tmp_path: Path) -> None:
    path = tmp_path / "site.py"
    path.write_text(
        "loglevel = 'INFO'\nforwarder_headers = 'SCRIPT_NAME,PATH_INFO'\n"
        "syslog_addr = 'udp://localhost:514'\nsyslog_facility = 'user'\n"
    )

    assert parsed("-c", str(path), "told").log_level == "info"


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(file: Path) -> None:
    for words in (["-c", str(file), "-b", ":1"], ["-b", ":1", "-c", str(file)]):
        options = parsed(*words, OSLOXIDE_SERVE_THREADS="7")

        assert [bind.place for bind in options.bind] == [("0.0.0.0", 1)]
        assert options.threads == 7
        assert options.workers == 2


def test_a_word_of_the_command_line_wins_also_where_it_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "site.py"
    path.write_text(
        "workers = 4\nthreads = 8\ntimeout = 60\nbacklog = 7\nkeepalive = 5\nloglevel = 'debug'\n"
        "bind = ':8001'\nraw_env = ['A=1']\nproxy_protocol = True\nwsgi_app = 'other:app'\n"
    )
    line = "-w 1 --threads 100 -t 0 --backlog 2048 --log-level info -b :8000 -e B=2 told"
    given = line.split()

    for words in (["-c", str(path), *given], [*given, "-c", str(path)]):
        options = parsed(*words)
        assert (options.workers, options.threads, options.timeout) == (1, 100, 0)
        assert (options.backlog, options.log_level, options.application) == (2048, "info", "told")
        assert [bind.place for bind in options.bind] == [("0.0.0.0", 8000)]
        assert dict(options.env) == {"B": "2"}
        assert options.keep_alive_timeout == 5  # the file alone says it


def test_the_letters_of_a_log_format_become_keys(tmp_path: Path) -> None:
    path = tmp_path / "site.py"
    path.write_text(
        "accesslog = '-'\n"
        "access_log_format = '%(h)s %(p)s %(m)s %(U)s %(q)s %(H)s %(T)s %(M)s %(D)s %({x-id}i)s"
        " %({http_x_id}e)s'\n"
    )

    options = parsed("-c", str(path), "told")

    assert options.access_logformat == (
        "%(client_ip)s <%(process_id)s> %(method)s %({PATH_INFO}e)s %({QUERY_STRING}e)s "
        "%(protocol)s %(wall_seconds)d %(wall_milliseconds)s %(wall_microseconds)s %({x-id}i)s "
        "%({HTTP_X_ID}e)s"
    )
    _native.AccessLog(str(tmp_path / "log"), options.access_logformat)


def test_the_command_line_wins_over_the_file_by_another_option_too(tmp_path: Path) -> None:
    path = tmp_path / "site.py"
    path.write_text("keepalive = 0\naccesslog = '-'\naccess_log_format = '%(h)s'\n")

    assert parsed("-c", str(path), "told").no_keep_alive
    options = parsed("-c", str(path), "--keep-alive", "5", "--no-access-log", "told")

    assert (options.no_keep_alive, options.keep_alive_timeout) == (False, 5)
    assert (options.access_log, options.access_logformat) == (None, None)


def test_web_concurrency_is_the_default_of_workers_and_a_file_wins_over_it(
    file: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.py"
    empty.touch()

    assert parsed("told", WEB_CONCURRENCY="5").workers == 5
    assert parsed("-c", str(empty), "told", WEB_CONCURRENCY="5").workers == 5
    assert parsed("-c", str(file), WEB_CONCURRENCY="5").workers == 2
    assert parsed("-c", str(file), "-w", "1", WEB_CONCURRENCY="5").workers == 1
    own = {"WEB_CONCURRENCY": "5", "OSLOXIDE_SERVE_WORKERS": "6"}
    assert parsed("-c", str(file), **own).workers == 6


def test_what_gunicorn_reads_unasked_is_named_and_not_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--workers 9")
    monkeypatch.chdir(file.parent)

    assert parsed("told").workers == 1
    told = capsys.readouterr().err
    assert "GUNICORN_CMD_ARGS is not read" in told
    assert "./gunicorn.conf.py is not read; give --config gunicorn.conf.py" in told
    assert parsed("-c", "gunicorn.conf.py").workers == 2
    assert "./gunicorn.conf.py is not read" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("worker_class = 'gevent'", "give --threads N"),
        ("worker_class = 'asgi'", "ASGI applications"),
        ("statsd_host = 'x:1'", "osloxide metrics"),
        ("daemon = True", "service manager"),
        ("def post_fork(server, worker): pass", "each worker imports it"),
        ("def when_ready(server): pass", "ExecStartPost="),
        ("def worker_exit(server, worker): pass", "atexit"),
        ("secure_scheme_headers = {'X-SCHEME': 'https'}", "--forwarded-headers"),
        ("http2_cleartext = 'on'", "HTTP/2 is not spoken"),
        ("accesslog = '-'; access_log_format = '%({x-id}o)s'", "%({x-id}o)s is not logged"),
        ("workers = 'many'", "no whole number"),
        ("raise SystemExit(1)", "cannot be executed: SystemExit: 1"),
        ("this is no Python", "cannot be executed: SyntaxError"),
    ],
)
def test_what_a_file_may_not_say_is_refused_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, remedy: str
) -> None:
    path = tmp_path / "site.py"
    path.write_text(line + "\n")
    told = refusal(capsys, "-c", str(path), "told")

    assert remedy in told
    assert str(path) in told


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config /absent.py: No such file" in refusal(capsys, "-c", "/absent.py", "told")


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("-D", "service manager"),
        ("-k eventlet", "native threads"),
        ("-k uvicorn.workers.UvicornWorker", "ASGI"),
        ("--statsd-host x:1", "osloxide metrics"),
        ("--paste /etc/x.ini", "config:FILE"),
        ("--log-syslog", "--log-config"),
        ("--dirty-workers 2", "service of their own"),
        ("--strip-header-spaces", "400"),
        ("--protocol uwsgi", "uwsgi://"),
    ],
)
def test_options_that_gunicorn_alone_has_are_refused_with_the_remedy(
    capsys: pytest.CaptureFixture[str], words: str, remedy: str
) -> None:
    told = refusal(capsys, *words.split(), "told")

    assert f"{words.split()[0]} is an option of gunicorn" in told
    assert remedy in told


def test_needless_options_of_gunicorn_are_named_and_taken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "-k gthread --worker-tmp-dir /dev/shm --reuse-port --error-logfile - --protocol http"
    options = parsed(*words.split(), "-u", "nova", "told")

    assert (options.application, options.log_file, options.user) == ("told", None, "nova")
    told = capsys.readouterr().err
    for name in ("-k", "--worker-tmp-dir", "--reuse-port", "--protocol"):
        assert f"{name} is needless" in told


def test_a_service_starts_from_its_file_alone(start: Callable[..., Running], file: Path) -> None:
    site = start("serve", "-c", str(file), PYTHONPATH=str(file.parent))

    assert fetch(site.port()) == ["1,2"]
    assert len(site.running(2)) == 2
    assert site.stop() == 0, site.log
