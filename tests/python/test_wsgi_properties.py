"""What holds for every request: environ against a reference, through real sockets.

Everyday runs are always the same, so that none fails by chance; ``OSLOXIDE_LONG=1`` draws anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.properties import checked
from support.raw_http import Connection, connect, serving

TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Characters that RFC 3986 allows in a path, and escapes, whole and broken.
PIECES = st.one_of(
    st.sampled_from(list("abAB09-._~!$&'()*+,;=:@/")),
    st.integers(0, 255).map(lambda byte: f"%{byte:02x}"),
    st.integers(0, 255).map(lambda byte: f"%{byte:02X}"),
    st.sampled_from(["%", "%2", "%zz", "%%41", "//", "/../", "/./", "%252F"]),
)
PATHS = st.lists(PIECES, max_size=30).map(lambda pieces: "/" + "".join(pieces))
QUERIES = st.lists(st.one_of(PIECES, st.sampled_from(["?", "+", "="])), max_size=20).map("".join)
# Field values of RFC 9110 section 5.5; bytes above 127 are opaque.
VALUES = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40
)
NAMES = st.text(TOKEN, min_size=1, max_size=20)
# Names that mean something to the server, and not only to the application.
OWN = {"host", "content-length", "transfer-encoding", "connection", "expect", "upgrade", "te"}

seen: dict[str, Any] = {}


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    seen.clear()
    seen.update(environ)
    start_response("200 OK", [])
    return [b"ok"]


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    with serving(app) as server, connect(server) as connection:
        yield connection


def ask(connection: Connection, target: str, headers: list[tuple[str, str]]) -> dict[str, Any]:
    assert connection.request("GET", target, headers).body == b"ok"
    return dict(seen)


@checked
@given(path=PATHS, query=st.none() | QUERIES)
def test_path_and_query_are_those_of_a_reference_decoding(
    connection: Connection, path: str, query: str | None
) -> None:
    target = path if query is None else f"{path}?{query}"
    environ = ask(connection, target, [])

    assert environ["PATH_INFO"] == unquote_to_bytes(path).decode("latin-1")
    assert environ["RAW_PATH_INFO"] == path
    assert environ["QUERY_STRING"] == (query or "")
    assert environ["SCRIPT_NAME"] == ""


def expected(headers: list[tuple[str, str]]) -> dict[str, str]:
    """CGI's names (RFC 3875), joined as docs/options.md says; without what could shadow others."""
    found: dict[str, str] = {}
    for name, value in headers:
        if "_" in name or name.lower() == "proxy":
            continue
        value = value.strip(" \t")
        key = "HTTP_" + name.upper().replace("-", "_")
        if key == "HTTP_CONTENT_TYPE":
            found.setdefault("CONTENT_TYPE", value)  # two cannot both be true; the first counts
            continue
        between = "; " if key == "HTTP_COOKIE" else ","
        found[key] = value if key not in found else found[key] + between + value
    return found


@checked
@given(
    headers=st.lists(
        st.tuples(
            st.one_of(
                NAMES,
                st.sampled_from(["Cookie", "Content-Type", "Proxy", "X-A", "x_a", "X-a", "Accept"]),
            ).filter(lambda name: name.lower() not in OWN),
            VALUES,
        ),
        max_size=12,
    )
)
def test_headers_are_those_of_a_reference(
    connection: Connection, headers: list[tuple[str, str]]
) -> None:
    environ = ask(connection, "/", headers)

    found = {
        key: value
        for key, value in environ.items()
        if (key.startswith("HTTP_") and key != "HTTP_HOST") or key == "CONTENT_TYPE"
    }
    assert found == expected(headers)


@checked
@given(
    line=st.binary(max_size=60).filter(lambda line: line.strip(b"\r\n") != b""),
    rest=st.sampled_from([b"\r\n\r\n", b"\r\nHost: a\r\n\r\n"]),
)
def test_any_bytes_are_answered_or_refused_with_a_status_line(
    connection: Connection, line: bytes, rest: bytes
) -> None:
    with Connection(connection.socket.getpeername()) as fresh:
        fresh.send(line + rest)
        fresh.socket.shutdown(1)  # SHUT_WR: a head that is not complete never will be
        answer = fresh.rest()

    assert answer == b"" or re.match(rb"HTTP/1\.1 [2-5]\d\d ", answer), answer
