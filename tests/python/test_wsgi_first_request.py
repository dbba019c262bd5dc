"""The first request of a server runs alone, but not for ever."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest
import routes
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


class Tables(routes.Mapper):  # type: ignore[misc]  # Routes has no types
    """Counts how often the tables are made, which takes longer than any request waits."""

    made = 0

    def _create_regs(self, *arguments: Any, **keywords: Any) -> None:
        self.made += 1
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            pass
        super()._create_regs(*arguments, **keywords)


@pytest.mark.parametrize(
    ("wait", "before"),
    [
        pytest.param(0, 0, id="at once"),
        pytest.param(0.05, 0, id="after a wait"),
        pytest.param(0, 20, id="after probes"),
    ],
)
def test_what_the_first_request_computes_is_not_computed_by_each_that_came_with_it(
    wait: float, before: int
) -> None:
    tables = Tables()
    tables.connect("/first", controller="it")
    for_wait = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] != "/probe":
            for_wait.wait(wait)  # as for a token that is checked by another service
            assert tables.match(environ["PATH_INFO"])
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    with serving(app) as server, contextlib.ExitStack() as stack:
        with connect(server) as prober:
            for _ in range(before):
                prober.send(REQUEST.format("probe"))
                assert prober.answer().body == b"ok"
        clients = [stack.enter_context(connect(server)) for _ in range(8)]
        for client in clients:
            client.send(REQUEST.format("first"))
        for client in clients:
            assert client.answer().body == b"ok"

    assert tables.made == 1
