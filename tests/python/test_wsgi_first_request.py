"""The first request of a server runs alone, but not for ever."""

from __future__ import annotations

import threading
from typing import Any

from support.raw_http import DEADLINE, connect, serving

REQUEST = "GET /{} HTTP/1.1\r\nHost: x\r\n\r\n"


class Application:
    """The first call waits; what happens meanwhile is up to the test."""

    def __init__(self) -> None:
        self.first_is_in = threading.Event()
        self.first_may_leave = threading.Event()
        self.other_is_in = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/first":
            self.first_is_in.set()
            assert self.first_may_leave.wait(DEADLINE)
        else:
            self.other_is_in.set()
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]


def test_nobody_enters_the_application_while_the_first_request_makes_its_singletons() -> None:
    app = Application()
    with serving(app) as server, connect(server) as first, connect(server) as second:
        first.send(REQUEST.format("first"))
        assert app.first_is_in.wait(DEADLINE)

        second.send(REQUEST.format("second"))

        # Well below the patience of a second; a request needs less than a millisecond.
        assert not app.other_is_in.wait(0.3)
        app.first_may_leave.set()
        assert first.answer().body == b"ok"
        assert second.answer().body == b"ok"


def test_a_first_request_that_does_not_end_holds_nobody_up_for_long() -> None:
    app = Application()
    with serving(app) as server, connect(server) as first, connect(server) as second:
        first.send(REQUEST.format("first"))
        assert app.first_is_in.wait(DEADLINE)

        second.send(REQUEST.format("second"))

        assert second.answer().body == b"ok"
        app.first_may_leave.set()
        assert first.answer().body == b"ok"
