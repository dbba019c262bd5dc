"""The bound on connections that are idle between two requests, apart from that on slow clients."""

from __future__ import annotations

from typing import Any

import pytest
from support.raw_http import connect, serving

from osloxide import wsgi


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"done"]


def test_it_ends_idle_connections_and_neither_new_nor_slow_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wsgi.Server, "keep_alive_timeout", 0.5)
    with (
        serving(app) as server,
        connect(server) as new,
        connect(server) as slow,
        connect(server) as idle,
    ):
        slow.send("GET / HTTP/1.1\r\n")
        assert idle.request().status == 200
        idle.assert_closed()

        slow.send("Host: x\r\n\r\n")
        assert slow.answer().status == 200
        assert new.request().status == 200
