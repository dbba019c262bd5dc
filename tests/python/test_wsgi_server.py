"""osloxide.wsgi in place of oslo_service.wsgi: names, attributes, sockets, life cycle."""

from __future__ import annotations

import contextvars
import errno
import inspect
import os
import socket
import stat
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from _children import run_python
from oslo_service import _options
from oslo_service.backend.base import ServiceBase
from support.raw_http import DEADLINE, Connection, configuration, connect, serving
from waiting import until

from osloxide import wsgi
from osloxide.server import listener
from osloxide.signals import shutdown

# WebOb and Paste still import what Python has deprecated.
web_framework = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"ok"]


@pytest.fixture
def made() -> Iterator[list[wsgi.Server]]:
    """Servers that a test makes; their sockets are closed behind it."""
    servers: list[wsgi.Server] = []
    yield servers
    for server in servers:
        server.stop()
        for engine in server._engines:
            assert engine.wait(DEADLINE)
        server.socket.close()
        if server.dup_socket is not None:
            server.dup_socket.close()


def make(
    made: list[wsgi.Server], *, options: dict[str, Any] | None = None, **arguments: Any
) -> Any:
    arguments.setdefault("host", "127.0.0.1")
    server = wsgi.Server(configuration(**options or {}), "test", app, **arguments)
    made.append(server)
    return server


# ---- names --------------------------------------------------------------------------------------


@web_framework
def test_the_module_has_every_name_of_oslo_service_wsgi() -> None:
    names = (
        "Server Request Router Loader InvalidInput ConfigNotFound PasteAppNotFound list_opts "
        "register_opts _check_backend_compatibility backend"
    )
    for name in names.split():
        assert getattr(wsgi, name), name
    with pytest.raises(AttributeError, match="nonsense"):
        wsgi.nonsense  # noqa: B018


def test_the_constructor_takes_what_oslo_service_takes() -> None:
    assert " ".join(inspect.signature(wsgi.Server).parameters) == (
        "conf name app host port pool_size protocol backlog use_ssl max_url_len logger_name "
        "socket_family socket_file socket_mode"
    )
    assert issubclass(wsgi.Server, ServiceBase)


def test_options_are_those_of_oslo_service() -> None:
    ((group, options),) = wsgi.list_opts()

    assert group is None
    assert [option.name for option in options] == [option.name for option in _options.wsgi_opts]
    assert options[0] is not _options.wsgi_opts[0]


def test_importing_and_serving_needs_no_eventlet_and_no_web_framework() -> None:
    outcome = run_python(
        """
        import socket, sys
        from oslo_config import cfg
        from osloxide import wsgi

        conf = cfg.ConfigOpts()
        conf([], default_config_files=[])

        def app(environ, start_response):
            start_response("200 OK", [])
            return [b"served"]

        server = wsgi.Server(conf, "test", app, host="127.0.0.1")
        server.start()
        with socket.create_connection((server.host, server.port), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
            answer = b"".join(iter(lambda: client.recv(4096), b""))
        assert answer.endswith(b"served"), answer
        loaded = [name for name in ("eventlet", "greenlet", "webob", "routes", "paste.deploy")
                  if name in sys.modules]
        assert not loaded, loaded
        """  # and leaves without stopping its server
    )

    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr == ""


# ---- sockets ------------------------------------------------------------------------------------


def test_the_socket_listens_before_start_and_waits_for_it(made: list[wsgi.Server]) -> None:
    server = make(made)
    with connect(server) as connection:
        connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert server._server is None
        server.start()

        assert connection.answer().body == b"ok"


def test_the_log_names_the_real_port(
    made: list[wsgi.Server], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server = make(made)

    assert server.port != 0
    assert f"test listening on 127.0.0.1:{server.port}" in caplog.messages


def test_socket_options_are_those_of_oslo_service(made: list[wsgi.Server]) -> None:
    listener = make(made, options={"tcp_keepidle": 500}).socket

    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 500
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
    assert not listener.get_inheritable()


def test_a_subclass_chooses_its_socket_options(made: list[wsgi.Server]) -> None:
    class Ours(wsgi.Server):
        def _set_socket_opts(self, listener: socket.socket) -> socket.socket:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 7)
            return super()._set_socket_opts(listener)

    server = Ours(configuration(), "test", app, host="127.0.0.1")
    made.append(server)

    assert server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 7


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_in_use_is_refused_and_named(
    made: list[wsgi.Server], host: str, caplog: pytest.LogCaptureFixture
) -> None:
    port = make(made, host=host).port

    with pytest.raises(OSError, match="another process listens there") as refused:
        make(made, host=host, port=port)

    assert refused.value.errno == errno.EADDRINUSE
    assert f"test cannot listen on {host}:{port}" in str(refused.value)
    assert f"Could not bind to {host}:{port}" in caplog.messages


def test_an_unknown_host_is_named(made: list[wsgi.Server]) -> None:
    with pytest.raises(OSError, match=r"test cannot listen on nowhere\.invalid:80"):
        make(made, host="nowhere.invalid", port=80)


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        ({"backlog": 0}, wsgi.InvalidInput, "backlog is 0"),
        ({"pool_size": -1}, wsgi.InvalidInput, "pool_size is -1"),
        ({"socket_family": socket.AF_UNIX}, wsgi.InvalidInput, "socket_file"),
        ({"socket_family": socket.AF_PACKET}, ValueError, f"{socket.AF_PACKET}"),
        ({"use_ssl": True}, RuntimeError, "cert_file"),
    ],
)
def test_impossible_arguments_are_named(
    made: list[wsgi.Server],
    arguments: dict[str, Any],
    error: type[Exception],
    complaint: str,
) -> None:
    with pytest.raises(error, match=complaint):
        make(made, **arguments)


def test_a_missing_certificate_is_named_at_construction(made: list[wsgi.Server]) -> None:
    conf = configuration()
    conf.register_opts(_options.ssl_opts, "ssl")
    conf.set_override("cert_file", "/nonexistent.pem", "ssl")
    conf.set_override("key_file", "/nonexistent.key", "ssl")

    with pytest.raises(RuntimeError, match=r"/nonexistent\.pem"):
        wsgi.Server(conf, "test", app, host="127.0.0.1", use_ssl=True)


def test_a_unix_socket_gets_its_mode_and_serves(made: list[wsgi.Server], tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    server = make(made, socket_family=socket.AF_UNIX, socket_file=path, socket_mode=0o640)
    server.start()

    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    assert (server.host, server.port) == (path, 0)
    with Connection(path) as connection:
        assert connection.request().body == b"ok"


def test_an_abandoned_unix_socket_is_replaced(made: list[wsgi.Server], tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(path)
    server = make(made, socket_family=socket.AF_UNIX, socket_file=path)
    server.start()

    with Connection(path) as connection:
        assert connection.request().body == b"ok"


def test_of_two_starts_on_an_abandoned_socket_one_listens(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(path)
    outcomes: list[Any] = []
    waits = threading.Event()
    look, lock = listener._is_abandoned, listener._is_locked

    def start() -> None:
        try:
            outcomes.append(listener.listen_unix("test", path, None, 5))
        except OSError as error:
            outcomes.append(error.errno)

    second = threading.Thread(target=start)

    def look_while_another_starts(path: str) -> bool:
        found = look(path)
        if second.ident is None:
            second.start()
            assert waits.wait(DEADLINE)
        return found

    def lock_or_say_so(directory: int) -> bool:
        is_locked = lock(directory)
        if not is_locked:
            waits.set()
        return is_locked

    monkeypatch.setattr(listener, "_is_abandoned", look_while_another_starts)
    monkeypatch.setattr(listener, "_is_locked", lock_or_say_so)
    start()
    second.join(DEADLINE)

    first, refused = outcomes
    assert refused == errno.EADDRINUSE
    with first, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_unix_socket_in_use_is_left_alone(made: list[wsgi.Server], tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    first = make(made, socket_family=socket.AF_UNIX, socket_file=path)
    with pytest.raises(OSError, match="another process listens there") as refused:
        make(made, socket_family=socket.AF_UNIX, socket_file=path)
    first.start()

    assert refused.value.errno == errno.EADDRINUSE
    with Connection(path) as connection:
        assert connection.request().body == b"ok"


def test_a_file_that_is_no_socket_is_left_alone(made: list[wsgi.Server], tmp_path: Any) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(OSError, match="cannot listen on"):
        make(made, socket_family=socket.AF_UNIX, socket_file=str(path))

    assert path.read_text() == "data"


# ---- life cycle ---------------------------------------------------------------------------------


def test_pool_size_is_0_after_stop_and_back_after_reset(made: list[wsgi.Server]) -> None:
    server = make(made)
    server.start()
    assert server._pool.size == 100

    server.stop()
    assert server._pool.size == 0

    server.reset()
    assert server._pool.size == 100


def test_a_stopped_server_can_be_started_again(made: list[wsgi.Server]) -> None:
    server = make(made)
    for _ in range(3):
        server.start()
        assert not server._server.dead
        with connect(server) as connection:
            assert connection.request().body == b"ok"
        server.stop()
        server.wait()
        assert server._server.dead
        server.reset()


def test_a_second_start_changes_nothing(made: list[wsgi.Server]) -> None:
    server = make(made)
    server.start()
    server.start()

    with connect(server) as connection:
        assert connection.request().body == b"ok"
    assert len(server._engines) == 1


def test_a_new_start_honours_changed_options(made: list[wsgi.Server]) -> None:
    server = make(made)
    server.start()
    server.stop()
    server.wait()
    server.conf.set_override("wsgi_keep_alive", False)
    server.start()

    with connect(server) as connection:
        assert connection.request().one("Connection") == "close"
        connection.assert_closed()


def test_methods_of_a_server_that_never_started_do_nothing(made: list[wsgi.Server]) -> None:
    server = make(made)

    server.stop()
    server.wait()
    server.reset()


def test_stop_lets_requests_in_flight_finish_and_wait_waits_for_them() -> None:
    inside, release = threading.Event(), threading.Event()

    def slow(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        inside.set()
        assert release.wait(DEADLINE)
        start_response("200 OK", [])
        return [b"finished"]

    with serving(slow) as server, connect(server) as busy, connect(server) as idle:
        busy.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert inside.wait(DEADLINE)
        server.stop()
        waiting = threading.Thread(target=server.wait)
        waiting.start()
        idle.assert_closed()
        assert waiting.is_alive()
        release.set()

        answer = busy.answer()
        assert (answer.body, answer.one("Connection")) == (b"finished", "close")
        waiting.join(DEADLINE)
        assert not waiting.is_alive()


@pytest.fixture
def ending() -> Iterator[None]:
    shutdown.begin_shutdown()
    yield
    shutdown.begin_serving()


def test_the_engine_closes_the_last_copy_of_the_socket(
    ending: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever closes last resets what the kernel has queued; only the engine looks there first."""
    open_copies: list[int] = []

    class Engine:
        def __init__(self, engine: Any) -> None:
            self._engine = engine

        def __getattr__(self, name: str) -> Any:
            return getattr(self._engine, name)

        def stop(self, *, close: bool) -> None:
            assert close
            open_copies.extend((server.socket.fileno(), server.dup_socket.fileno()))
            self._engine.stop(close=close)

    with serving(lambda environ, start_response: []) as server:
        monkeypatch.setattr(server._server, "_engine", Engine(server._server._engine))
        server.stop()

    assert set(open_copies) == {-1}


def test_at_the_end_of_the_process_the_port_is_refused(
    made: list[wsgi.Server], ending: None
) -> None:
    server = make(made)
    server.start()
    address = (server.host, server.port)
    server.stop()
    server.wait()

    with pytest.raises(ConnectionRefusedError):
        Connection(address)


def test_a_reload_in_place_keeps_the_port_open(made: list[wsgi.Server]) -> None:
    server = make(made)
    server.start()
    server.stop()
    server.wait()
    with connect(server) as connection:  # waits in the backlog
        connection.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        server.start()

        assert connection.answer().body == b"ok"


def test_the_listener_is_known_to_the_life_cycle(made: list[wsgi.Server]) -> None:
    server = make(made)

    assert server.socket in shutdown._listeners


def test_a_signal_handler_runs_while_the_main_thread_waits() -> None:
    outcome = run_python(
        """
        import os, signal, threading
        from oslo_config import cfg
        from osloxide import wsgi

        conf = cfg.ConfigOpts()
        conf([], default_config_files=[])
        server = wsgi.Server(conf, "test", lambda *_: [], host="127.0.0.1")
        server.start()
        signal.signal(signal.SIGUSR1, lambda *_: (print("handled", flush=True), server.stop()))
        signal.alarm(20)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        server.wait()
        print("waited")
        """
    )

    assert outcome.stdout.split() == ["handled", "waited"], outcome.stderr
    assert outcome.returncode == 0


def test_a_forked_worker_serves_on_the_parents_socket_and_says_multiprocess() -> None:
    outcome = run_python(
        """
        import os, socket
        from oslo_config import cfg
        from osloxide import wsgi

        conf = cfg.ConfigOpts()
        conf([], default_config_files=[])

        def app(environ, start_response):
            start_response("200 OK", [])
            return [str((os.getpid(), environ["wsgi.multiprocess"])).encode()]

        server = wsgi.Server(conf, "test", app, host="127.0.0.1")
        client = socket.create_connection((server.host, server.port), timeout=10)
        child = os.fork()
        if not child:
            client.close()
            server.start()
            server.wait()
            os._exit(0)
        client.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
        os.kill(child, 9)
        os.waitpid(child, 0)
        assert answer.endswith(str((child, True)).encode()), answer
        """
    )

    assert outcome.returncode == 0, outcome.stderr


def test_the_default_pool_size_and_timeout_come_from_the_options(made: list[wsgi.Server]) -> None:
    options = {"wsgi_default_pool_size": 7, "client_socket_timeout": 0}
    server = make(made, options=options, pool_size=0)
    server.start()

    assert (server.pool_size, server.default_pool_size) == (7, 7)
    assert server.client_socket_timeout is None


def test_an_interpreter_that_leaves_answers_what_is_in_flight() -> None:
    outcome = run_python(
        """
        import os, socket, threading, time
        from oslo_config import cfg
        from osloxide import wsgi

        conf = cfg.ConfigOpts()
        conf([], default_config_files=[])
        inside = threading.Event()

        def app(environ, start_response):
            inside.set()
            time.sleep(0.3)  # the main thread leaves in that time
            start_response("200 OK", [])
            return [b"finished"]

        server = wsgi.Server(conf, "test", app, host="127.0.0.1")
        client = socket.create_connection((server.host, server.port), timeout=10)
        child = os.fork()
        if child:
            client.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
            answer = b"".join(iter(lambda: client.recv(4096), b""))
            assert answer.endswith(b"finished"), answer
            assert os.waitpid(child, 0)[1] == 0
            raise SystemExit
        client.close()
        server.start()
        inside.wait(10)
        """
    )

    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize("busy", ["while True: pass", "time.sleep(60)"])
def test_an_interpreter_that_leaves_does_not_crash_under_a_late_request(busy: str) -> None:
    outcome = run_python(
        f"""
        import logging, os, socket, threading, time
        from oslo_config import cfg
        from osloxide import wsgi

        logging.basicConfig()
        wsgi.EXIT_GRACE_SECONDS = 0.2
        conf = cfg.ConfigOpts()
        conf([], default_config_files=[])
        inside = threading.Event()

        def app(environ, start_response):
            inside.set()
            {busy}

        server = wsgi.Server(conf, "test", app, host="127.0.0.1")
        server.start()
        client = socket.create_connection((server.host, server.port), timeout=10)
        client.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        inside.wait(10)
        """
    )

    assert outcome.returncode == 1
    assert "test left with 1 requests still running" in outcome.stderr


# ---- Router and Loader --------------------------------------------------------------------------


@web_framework
def test_a_router_finds_the_controller_or_answers_404() -> None:
    routes = pytest.importorskip("routes")
    mapper = routes.Mapper()
    mapper.connect(None, "/known", controller=app)

    with serving(wsgi.Router(mapper)) as server, connect(server) as connection:
        assert connection.request("GET", "/known").body == b"ok"
        assert connection.request("GET", "/unknown").status == 404


@web_framework
def test_a_loader_names_what_it_cannot_find(tmp_path: Any) -> None:
    pytest.importorskip("paste.deploy")
    config = tmp_path / "paste.ini"
    config.write_text("[app:known]\npaste.app_factory = test_wsgi_server:paste_factory\n")
    missing = str(tmp_path / "missing.ini")

    loader = wsgi.Loader(configuration(api_paste_config=str(config)))
    assert loader.config_path == str(config)
    assert loader.load_app("known") is app
    with pytest.raises(wsgi.PasteAppNotFound, match="unknown"):
        loader.load_app("unknown")
    with pytest.raises(wsgi.ConfigNotFound, match=r"missing\.ini"):
        wsgi.Loader(configuration(api_paste_config=missing))
    with pytest.raises(wsgi.ConfigNotFound):
        wsgi.Loader(configuration(api_paste_config="missing.ini"))


def paste_factory(global_conf: Any, **local_conf: Any) -> Any:
    return app


@pytest.mark.parametrize("is_strict", [True, False])
def test_the_threading_backend_is_refused_only_when_asked(is_strict: bool) -> None:
    outcome = run_python(
        """
        from oslo_service import backend
        from osloxide import wsgi
        from unittest import mock

        with mock.patch.object(backend, "get_backend_type",
                               return_value=backend.BackendType.THREADING):
            wsgi._check_backend_compatibility()
        """,
        **({"OSLOXIDE_STRICT": "1"} if is_strict else {}),
    )

    assert ("UnsupportedBackendError" in outcome.stderr) is is_strict
    assert (outcome.returncode != 0) is is_strict


def test_pool_threads_have_names_and_leave_no_trace() -> None:
    before = set(threading.enumerate())
    names: list[str] = []

    def naming(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        names.append(threading.current_thread().name)
        start_response("200 OK", [])
        return [b""]

    with serving(naming) as server, connect(server) as connection:
        connection.request()

    assert "Dummy" not in names[0]
    assert until(lambda: set(threading.enumerate()) <= before)


def test_context_variables_of_one_request_are_not_seen_by_the_next() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="fresh")

    def body(seen: str) -> Iterator[bytes]:
        yield seen.encode()
        yield variable.get().encode()  # still this request's

    def setting(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        seen = variable.get()
        variable.set("stale")
        start_response("200 OK", [])
        return body(seen)

    with serving(setting, pool_size=1) as server, connect(server) as connection:
        assert [connection.request().body for _ in range(3)] == [b"freshstale"] * 3


def test_stats_settle_once_the_clients_are_gone() -> None:
    with serving(app) as server:
        connections = [connect(server) for _ in range(20)]
        for connection in connections:
            assert connection.request().body == b"ok"
        (engine,) = server._engines
        assert until(lambda: engine.stats()["idle"] == 20)
        for connection in connections:
            connection.close()

        assert until(lambda: engine.stats()["connections"] == 0)
        assert engine.stats()["served"] == 20
