"""The listening socket is shared with other processes, any of which may change its flags."""

from __future__ import annotations

import os
import socket
from typing import Any

from support.raw_http import connect, serving

REQUEST = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def test_a_request_is_answered_although_another_process_made_the_listener_blocking() -> None:
    with serving(application) as server:
        # What socket.dup() does in a worker that starts now.
        with socket.socket(fileno=os.dup(server.socket.fileno())) as copy:
            copy.setblocking(True)
        with connect(server) as client:
            client.send(REQUEST)

            assert client.answer().body == b"ok"


def test_a_start_does_not_make_the_listener_of_the_other_workers_blocking() -> None:
    with serving(application) as server:
        assert not os.get_blocking(server.socket.fileno())
        server.stop()
        server.start()
        assert not os.get_blocking(server.socket.fileno())
        assert server.socket.gettimeout() == 0
