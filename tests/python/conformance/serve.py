"""Run one WSGI server on loopback in this process: the program behind conformance and benches.

``serve.py SERVER MODULE:APP [options]`` prints ``listening PORT`` and serves until SIGTERM. It
belongs to no package on purpose: peers run it with an interpreter of their own, which has only
that peer installed. It measures nothing and judges nothing.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any


def free_port() -> int:
    """A port that was free a moment ago, for servers that cannot bind to port 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def announce(port: int) -> None:
    print(f"listening {port}", flush=True)


def load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute or "app")


def wait_for_sigterm() -> None:
    # Not an event: a handler that sets the one for which its own thread waits can meet its lock.
    hears, says = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(says, b"."))
    os.read(hears, 1)


def oslo_conf(args: argparse.Namespace) -> Any:
    """A configuration with oslo.service's own options and what was asked for on top."""
    from oslo_config import cfg
    from oslo_service import _options

    conf = cfg.ConfigOpts()
    conf([], project="conformance", default_config_files=[])
    conf.register_opts(_options.wsgi_opts)
    if args.timeout is not None:
        conf.set_override("client_socket_timeout", args.timeout)
    return conf


def osloxide(args: argparse.Namespace) -> None:
    """osloxide's wsgi.Server, exactly as a service would start it; else ``osloxide serve``."""
    if args.workers > 1 or args.certfile or args.native_log:
        port = free_port()
        announce(port)
        command = [sys.executable, "-m", "osloxide", "serve", "--bind", f"127.0.0.1:{port}"]
        command += ["--workers", str(args.workers), "--backlog", str(args.backlog)]
        command += [] if args.access_log else ["--log-level", "warning", "--no-access-log"]
        # Standard output, which is a file where this program's is.
        command += ["--access-log", "-"] if args.access_log and args.native_log else []
        command += ["--certfile", args.certfile, "--keyfile", args.keyfile] if args.certfile else []
        command += ["--threads", str(args.threads)] if args.threads else []
        command += ["--client-timeout", str(round(args.timeout))] if args.timeout else []
        os.execv(sys.executable, [*command, args.app])
    from osloxide import wsgi

    server = wsgi.Server(
        oslo_conf(args),
        "conformance",
        load(args.app),
        host="127.0.0.1",
        port=0,
        pool_size=args.threads,
        backlog=args.backlog,
    )
    server.start()
    announce(server.port)
    wait_for_sigterm()
    server.stop()
    server.wait()


def unlogged(args: argparse.Namespace) -> None:
    """``osloxide serve`` without an access log, by which one is measured."""
    args.access_log, args.native_log = False, True
    osloxide(args)


def native(args: argparse.Namespace) -> None:
    """The native server alone, without the oslo surface above it."""
    from osloxide import _native

    listener = socket.create_server(("127.0.0.1", 0), backlog=args.backlog)
    server = _native.Server(
        load(args.app),
        listener.fileno(),
        pool_size=args.threads or 100,
        client_socket_timeout=args.timeout or 900.0,
    )
    server.start()
    announce(listener.getsockname()[1])
    wait_for_sigterm()
    server.stop(True)
    server.wait(10.0)


def eventlet(args: argparse.Namespace) -> None:
    """Stock oslo.service with its eventlet backend."""
    import eventlet as green

    green.monkey_patch()
    from oslo_service import backend

    backend.init_backend(backend.BackendType.EVENTLET)
    from oslo_service import wsgi

    conf = oslo_conf(args)
    if args.certfile:
        from oslo_service import sslutils

        sslutils.register_opts(conf)
        conf.set_override("cert_file", args.certfile, group="ssl")
        conf.set_override("key_file", args.keyfile, group="ssl")
    server = wsgi.Server(
        conf,
        "conformance",
        load(args.app),
        host="127.0.0.1",
        port=0,
        pool_size=args.threads,
        backlog=args.backlog,
        use_ssl=bool(args.certfile),
    )
    if args.workers > 1:
        from oslo_service import service

        announce(server.port)
        # A wsgi.Server is a service by itself: this is what nova and cinder launch.
        launcher = service.ProcessLauncher(conf)
        launcher.launch_service(server, workers=args.workers)
        launcher.wait()
        os._exit(0)
    server.start()
    announce(server.port)
    asked = green.event.Event()
    signal.signal(signal.SIGTERM, lambda *_: green.spawn_n(asked.send))
    asked.wait()
    server.stop()
    os._exit(0)


def gunicorn(args: argparse.Namespace) -> None:
    port = free_port()
    announce(port)
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "--bind",
        f"127.0.0.1:{port}",
        "--workers",
        str(args.workers),
        "--worker-class",
        "gthread",
        "--threads",
        str(args.threads or 4),
        "--backlog",
        str(args.backlog),
        "--timeout",
        "60",
        "--graceful-timeout",
        "2",
        "--keep-alive",
        str(args.keep_alive),
        "--log-level",
        "info",
    ]
    if args.access_log:
        command += ["--access-logfile", "-"]
    if args.certfile:
        command += ["--certfile", args.certfile, "--keyfile", args.keyfile]
    os.execv(sys.executable, [*command, args.app])


def granian(args: argparse.Namespace) -> None:
    """As its documentation recommends: threads are left to it, and grow as requests need them."""
    port = free_port()
    announce(port)
    command = [
        sys.executable,
        "-m",
        "granian",
        "--interface",
        "wsgi",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        str(args.workers),
        "--backlog",
        str(max(args.backlog, 128)),
        "--http",
        "1",
    ]
    if args.threads:
        command += ["--blocking-threads", str(args.threads)]
    if args.certfile:
        command += ["--ssl-certificate", args.certfile, "--ssl-keyfile", args.keyfile]
    command += ["--access-log"] if args.access_log else ["--no-access-log"]
    os.execv(sys.executable, [*command, args.app])


def granian4(args: argparse.Namespace) -> None:
    """granian with a fixed number of threads, which its documentation advises against."""
    args.threads = args.threads or 4
    granian(args)


def waitress(args: argparse.Namespace) -> None:
    from waitress.server import create_server

    server = create_server(
        load(args.app),
        listen="127.0.0.1:0",
        threads=args.threads or 4,
        connection_limit=2000,
        channel_timeout=args.timeout or 120,
        cleanup_interval=1 if args.timeout else 30,
    )
    announce(server.effective_port)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server.run()


def cheroot(args: argparse.Namespace) -> None:
    from cheroot.wsgi import Server

    server = Server(
        ("127.0.0.1", 0),
        load(args.app),
        numthreads=args.threads or 10,
        timeout=args.timeout or 10,
        request_queue_size=max(args.backlog, 128),
    )
    if args.certfile:
        from cheroot.ssl.builtin import BuiltinSSLAdapter

        server.ssl_adapter = BuiltinSSLAdapter(args.certfile, args.keyfile)
    server.prepare()
    announce(server.bind_addr[1])
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server.serve()


def bjoern(args: argparse.Namespace) -> None:
    import bjoern as server

    listener = server.listen(load(args.app), "127.0.0.1", free_port(), listen_backlog=1024)
    announce(listener.getsockname()[1])
    # Its documentation's way to several processes.
    for _ in range(args.workers - 1):
        if os.fork() == 0:
            break
    server.run()


def fastwsgi(args: argparse.Namespace) -> None:
    import fastwsgi as server

    port = free_port()
    announce(port)
    server.run(wsgi_app=load(args.app), host="127.0.0.1", port=port, loglevel=0)


def fastpysgi(args: argparse.Namespace) -> None:
    import fastpysgi as server

    port = free_port()
    announce(port)
    server.run(load(args.app), host="127.0.0.1", port=port, loglevel=0)


def uwsgi(args: argparse.Namespace) -> None:
    port = free_port()
    announce(port)
    program = os.path.join(os.path.dirname(sys.executable), "uwsgi")
    # Keep-alive is the socket's property in uWSGI, also when a request asks for another.
    listening = ["--http11-socket" if args.keep_alive else "--http-socket", f"127.0.0.1:{port}"]
    if args.certfile:
        listening = ["--https-socket", f"127.0.0.1:{port},{args.certfile},{args.keyfile}"]
    command = [
        program,
        *listening,
        "--processes",
        str(args.workers),
        "--threads",
        str(args.threads or 4),
        "--master",
        "--die-on-term",
        *([] if args.access_log else ["--disable-logging"]),
        "--listen",
        "100",
        "--socket-timeout",
        str(int(args.timeout or 60)),
        "--module",
        args.app,
        "--need-app",
        "--enable-threads",
    ]
    if not args.keep_alive:
        command += ["--add-header", "Connection: close"]  # uWSGI closes without saying so
    os.execv(program, command)


def wsgiref(args: argparse.Namespace) -> None:
    """The standard library's toy: lax on purpose, so that the rows can be seen to fail."""
    from socketserver import ThreadingMixIn
    from wsgiref.handlers import BaseHandler
    from wsgiref.headers import Headers
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    class LaxHeaders(Headers):
        """Newer releases of wsgiref refuse control characters; this one lets them through."""

        def _convert_string_type(self, value: str, *_: object, **__: object) -> str:
            return value

    BaseHandler.headers_class = LaxHeaders  # type: ignore[assignment]
    server = Server(("127.0.0.1", 0), WSGIRequestHandler)
    server.set_app(load(args.app))
    announce(server.server_port)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server.serve_forever()


SERVERS: dict[str, Callable[[argparse.Namespace], None]] = {
    server.__name__: server
    for server in (
        osloxide,
        unlogged,
        native,
        eventlet,
        gunicorn,
        granian,
        granian4,
        waitress,
        cheroot,
        bjoern,
        fastwsgi,
        fastpysgi,
        uwsgi,
        wsgiref,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("app", help="module:attribute of the WSGI application")
    parser.add_argument("--threads", type=int, help="pool size (default: the server's own)")
    parser.add_argument("--timeout", type=float, help="client timeout in seconds")
    parser.add_argument(
        "--keep-alive", type=int, default=75, help="idle seconds, 0 for none (gunicorn, uwsgi)"
    )
    parser.add_argument("--backlog", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--certfile", default="", help="PEM certificate: serve TLS")
    parser.add_argument("--keyfile", default="", help="PEM key of the certificate")
    parser.add_argument("--access-log", action="store_true")
    parser.add_argument(
        "--native-log", action="store_true", help="osloxide: written by the server, not by logging"
    )
    args = parser.parse_args()
    # Each server writes its access log through logging at INFO, or not at all.
    logging.basicConfig(level=logging.INFO if args.access_log else logging.WARNING)
    SERVERS[args.server](args)


if __name__ == "__main__":
    main()
