"""The registry of rows and the checks that many of them share.

A row is a function of a running server; its name is the row's name and its docstring the promise.
It returns nothing, or a note worth reading, and raises Broken when the promise is not kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from conformance.manner import Manner
from conformance.target import Target, until
from conformance.wire import Answer, Closed, Connection, Malformed, request

Row = Callable[[Target], str | None]

ROWS: dict[str, Row] = {}
#: Rows that need a server whose client timeout is SHORT seconds.
SHORT_TIMEOUT_ROWS: set[str] = set()
SHORT = 2.0
#: Why rows are left out in some manners.
SECOND = "it is about a second request on the connection"
CROWDS = "hundreds of clients say no more than in the plain manner"
#: Manner -> row -> why the row says nothing in it.
NOT_FOR: dict[str, dict[str, str]] = {}


class Broken(AssertionError):
    """The server does not keep a row's promise; the message says what it did instead."""


def row(function: Row) -> Row:
    ROWS[function.__name__] = function
    return function


def not_for(manner: Manner) -> dict[str, str]:
    """Rows that say nothing in this *manner*, and why."""
    return NOT_FOR.get(manner.name, {})


def unless(*manners: str, because: str) -> Callable[[Row], Row]:
    """Leave a row out in some manners."""

    def mark(function: Row) -> Row:
        for name in manners:
            NOT_FOR.setdefault(name, {})[function.__name__] = because
        return function

    return mark


def short_timeout(function: Row) -> Row:
    SHORT_TIMEOUT_ROWS.add(function.__name__)
    return function


def require(condition: object, message: str) -> None:
    if not condition:
        raise Broken(message)


def judge(run: Row, target: Target) -> tuple[bool, str]:
    """Run one row: whether it holds, and what there is to say about it."""
    try:
        note = run(target) or ""
    except Broken as exc:
        return False, str(exc)
    except Malformed as exc:
        return False, f"malformed answer: {exc}"
    except (Closed, TimeoutError, OSError) as exc:
        return False, f"{type(exc).__name__}: {exc}"
    except ValueError as exc:
        return False, f"an answer that is not the application's: {exc}"
    if not target.is_alive():
        return False, "the server process ended"
    return True, note


def exchange(target: Target, raw: bytes, method: str = "GET", timeout: float = 5.0) -> Answer:
    """One request on a fresh connection."""
    with target.connect(timeout) as client:
        client.send(raw)
        return client.answer(method)


def environ_of(target: Target, raw: bytes) -> dict[str, Any] | None:
    """The environ that the application saw, or None when the server refused with 4xx."""
    answer = exchange(target, raw)
    if 400 <= answer.status < 500:
        return None
    require(answer.status == 200, f"answered {answer.status}")
    environ: dict[str, Any] = json.loads(answer.body)
    return environ


def refused(target: Target, raw: bytes, tag: str, *, may_reach_app: bool = False) -> str:
    """*raw* is answered exactly once with 4xx, 501 or 505 and the connection is closed.

    The application must not have seen it: neither the request itself (unless *may_reach_app*: a
    body that turns out broken while the application reads it) nor anything hidden in it. With
    *may_reach_app* the application must not have got a body either.
    """
    with target.connect() as client:
        client.send(raw)
        try:
            answer = client.answer()
        except Closed:
            raise Broken("closed without an answer" + _reached(target, tag)) from None
        except TimeoutError:
            raise Broken("neither answered nor closed" + _reached(target, tag)) from None
        good = 400 <= answer.status < 500 or answer.status in (501, 505)
        require(good, f"answered {answer.status}" + _reached(target, tag))
        try:
            left = client.rest(3.0)
        except TimeoutError:
            raise Broken(f"answered {answer.status} but kept the connection open") from None
        require(not left, f"answered {answer.status} and then {left[:60]!r}")
    calls = target.events(tag, "call")
    require(not target.events(tag, "body"), "the application got a body")
    require(
        may_reach_app or not calls,
        f"answered {answer.status}, but the application was called: {calls}",
    )
    hidden = target.events(tag + "s", "call")
    require(not hidden, f"a hidden request reached the application: {hidden}")
    return str(answer.status)


def _reached(target: Target, tag: str) -> str:
    paths = [
        event["path"]
        for event in target.events(tag) + target.events(tag + "s")
        if event["event"] == "call"
    ]
    return f"; the application was called for {paths}" if paths else ""


def still_serves(target: Target, seconds: float = 5.0) -> None:
    """A normal request is answered."""
    tag = target.new_tag()
    answer = exchange(target, request(f"/?tag={tag}"), timeout=seconds)
    require(answer.body == f"hello {tag}".encode(), "the server answers wrongly afterwards")


def clean_next(client: Connection, target: Target) -> str:
    """Either the connection is closed or the next answer on it is the right one, whole."""
    tag = target.new_tag()
    try:
        client.send(request(f"/?tag={tag}"))
        answer = client.answer()
    except (Closed, ConnectionError):
        return "closed"
    require(answer.status == 200, f"the next answer has status {answer.status}")
    require(
        answer.body == f"hello {tag}".encode(), f"the next answer is wrong: {answer.body[:60]!r}"
    )
    return "kept"


def settles(target: Target, fds: int, seconds: float = 10.0) -> None:
    """The process tree returns to *fds* open descriptors."""
    require(
        until(lambda: target.fds() <= fds, seconds, 0.1),
        f"{target.fds()} descriptors open after it, {fds} before",
    )
