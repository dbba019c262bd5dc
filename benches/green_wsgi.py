"""CPU of a request to ``eventlet.wsgi.server``: ``python benches/green_wsgi.py [REQUESTS]``.

Owns one figure of three servers with the same application: eventlet's own on green threads, the
one that osloxide serves under its name, and oslo.service's ``wsgi.Server`` (the native server). The
figure is CPU of the server's process by request, over connections that are kept, so it depends on
the machine and hardly on what else runs there. docs/eventlet.md has the table.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from typing import Any

from measure import machine

CONNECTIONS = 8
SERVERS = ("eventlet", "native-eventlet", "native-server")


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer 1 KiB, after reading what was sent."""
    environ["wsgi.input"].read()
    body = b"x" * 1024
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def serve(which: str) -> None:
    """Serve until killed; writes the port first."""
    if which == "native-server":
        from oslo_config import cfg

        from osloxide.wsgi import Server

        cfg.CONF([])
        server = Server(cfg.CONF, "bench", application, host="127.0.0.1", port=0)
        server.start()
        print(server.port, flush=True)
        server.wait()
        return
    if which == "native-eventlet":
        from osloxide.activation import import_hook

        import_hook.install(deferred=True, serve_eventlet=True)
    import eventlet  # type: ignore[import-untyped,unused-ignore]
    import eventlet.wsgi  # type: ignore[import-untyped,unused-ignore]

    eventlet.monkey_patch()
    listener = eventlet.listen(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    with open(os.devnull, "w") as log:
        eventlet.wsgi.server(listener, application, log=log)


def drive(port: int, requests: int) -> None:
    """Send *requests* over CONNECTIONS connections."""

    def one() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for number in range(requests // CONNECTIONS):
            body = b"y" * 256 if number % 2 else None
            connection.request("POST" if body else "GET", "/v3/volumes?limit=1", body=body)
            answer = connection.getresponse()
            assert (answer.status, len(answer.read())) == (200, 1024)
        connection.close()

    threads = [threading.Thread(target=one) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Measure all servers, or be one of them."""
    if sys.argv[1:] and sys.argv[1] in SERVERS:
        serve(sys.argv[1])
        return
    requests = int(sys.argv[1]) if sys.argv[1:] else 8000
    for which in SERVERS:
        with subprocess.Popen(
            [sys.executable, __file__, which], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            try:
                assert process.stdout is not None
                port = int(process.stdout.readline())
                drive(port, 400)
                before = machine.cpu([process.pid])
                drive(port, requests)
                used = (machine.cpu([process.pid]) - before).total / requests
                print(f"{which:16} {used * 1e6:5.0f} us", flush=True)
            finally:
                process.kill()


if __name__ == "__main__":
    main()
