"""Rows about what grammar allows and forbids where servers differ, and about persistence around it.

Each row goes through all the spellings of one thing: a server that is right for one of them and
wrong for its neighbour does not hold it. Rules: RFC 9110 sections 5.6, 7.2, 8.6 and 10.1.1,
RFC 9112 sections 2.2, 3, 6, 7.1 and 9, RFC 3986 section 3.2.
"""

from __future__ import annotations

import json

from conformance.target import Target
from conformance.verdict import (
    SECOND,
    Broken,
    clean_next,
    environ_of,
    exchange,
    refused,
    require,
    row,
    short_timeout,
    still_serves,
    unless,
)
from conformance.wire import Closed, request

NO_CHUNKS = "HTTP/1.0 has no chunks"


def _body_of(target: Target, *headers: str, body: bytes) -> str:
    """What the application reads of a POST."""
    raw = request("/body", *headers, method="POST", body=body)
    answer = exchange(target, raw)
    require(answer.status == 200, f"answered {answer.status} to {headers} {body[:60]!r}")
    text: str = json.loads(answer.body)["text"]
    return text


# ---- the request line --------------------------------------------------------------------------


@row
def line_white_space(target: Target) -> str | None:
    """One space between the parts of a request line, and none around them."""
    for line in (
        "GET  /env HTTP/1.1",
        "GET /env  HTTP/1.1",
        "GET\t/env HTTP/1.1",
        "GET /env\tHTTP/1.1",
        "GET /env HTTP/1.1 ",
        " GET /env HTTP/1.1",
        "GET /a b HTTP/1.1",
    ):
        tag = target.new_tag()
        raw = line.replace("/env", f"/env?tag={tag}").encode() + b"\r\nHost: localhost\r\n\r\n"
        try:
            refused(target, raw, tag)
        except Broken as broken:
            raise Broken(f"{line!r}: {broken}") from None
    return None


@row
def line_later_minor(target: Target) -> str | None:
    """A later minor version is served as HTTP/1.1 (RFC 9110 section 2.5)."""
    for minor in (2, 3, 9):
        answer = exchange(target, request("/", version=f"HTTP/1.{minor}"))
        require((answer.status, answer.minor) == (200, 1), f"{answer.status} to 1.{minor}")
    return None


@row
def line_other_major(target: Target) -> str | None:
    """Another major version, HTTP/2's preface included, is refused and not waited for."""
    for raw in (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/0.9\r\nHost: localhost\r\n\r\n",
    ):
        refused(target, raw, target.new_tag())
    return None


@row
def line_other_protocols(target: Target) -> str | None:
    """What is no HTTP at all is refused at its first line, and not waited for."""
    for raw in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(30),
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"EHLO localhost\r\n",
        b"\x00\x00\x00\x00",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
    ):
        refused(target, raw, target.new_tag())
    return None


@row
def line_blank_before(target: Target) -> str | None:
    """A blank line in front of a request is ignored (RFC 9112 section 2.2)."""
    tag = target.new_tag()
    answer = exchange(target, b"\r\n" + request(f"/?tag={tag}"))
    require(answer.body == f"hello {tag}".encode(), f"answered {answer.status}")
    return None


@row
@unless("http10", "close", because=SECOND)
def line_blank_between(target: Target) -> str | None:
    """A blank line behind a body, as old clients send it, costs nothing of the next request."""
    one, two = target.new_tag(), target.new_tag()
    with target.connect() as client:
        first = request(f"/body?tag={one}", "Content-Length: 5", method="POST", body=b"hello")
        client.send(first + b"\r\n" + request(f"/?tag={two}"))
        require(client.answer().status == 200, "the first request")
        require(client.answer().body == f"hello {two}".encode(), "the second request")
    return None


@row
@unless("http10", "close", because=SECOND)
@short_timeout
def idle_after_blank_line(target: Target) -> str | None:
    """A blank line begins no request: the connection ends as an idle one does, without a 408."""
    with target.connect(timeout=10) as client:
        client.send(request("/"))
        require(client.answer().status == 200, "not answered")
        client.send(b"\r\n")
        left = client.rest()
        require(not left, f"{left[:60]!r} on an idle connection")
    return None


@row
def line_authority_form(target: Target) -> str | None:
    """A tunnel is refused, and so is a target that is no path."""
    for method, path in (
        ("CONNECT", "example.org:443"),
        ("CONNECT", "/"),
        ("GET", "example.org:443"),
        ("GET", "example.org"),
        ("GET", "http:/env"),
        ("GET", "http:///env"),
        ("GET", "*"),
        ("GET", "/env#part"),
    ):
        tag = target.new_tag()
        try:
            refused(target, request(path, method=method), tag)
        except Broken as broken:
            raise Broken(f"{method} {path}: {broken}") from None
    return None


@row
def line_unescaped(target: Target) -> str | None:
    """Characters that clients leave unescaped come as they were sent."""
    for text in (
        '{"k":"v"}',
        "<a>",
        "[x]",
        "a|b",
        "a^b",
        "a\\b",
        "`",
        "%zz",
        "%",
        "\xe9",
        "\xc3\xa9",
    ):
        environ = environ_of(target, request(f"/env/{text}?q={text}"))
        if environ is None:
            raise Broken(f"refused {text!r}")
        seen = environ["PATH_INFO"], environ["QUERY_STRING"]
        require(seen == (f"/env/{text}", f"q={text}"), f"{text!r} came as {seen}")
    return None


# ---- fields ------------------------------------------------------------------------------------


@row
def host_grammar(target: Target) -> str | None:
    """A Host is a host and perhaps a port (RFC 3986 section 3.2)."""
    for host in ("a", "a:80", "a:", "a-b_c.d~e", "10.0.0.1:8080", "[::1]", "[::1]:80", "[::1]:"):
        answer = exchange(target, request("/", host=host))
        require(answer.status == 200, f"answered {answer.status} to Host: {host}")
    for host in (
        ":80", "a:b", "a:80:90", "::1", "[::1", "[]", "[]:80", "[::1]80", "[1.2.3.4]", "a b", "a@b",
        "a/b", "a,b", "http://a", "a%zz", "a?b", "a#b",
    ):  # fmt: skip
        tag = target.new_tag()
        try:
            refused(target, request(f"/?tag={tag}", host=host), tag)
        except Broken as broken:
            raise Broken(f"Host: {host}: {broken}") from None
    return None


@row
def host_of_target(target: Target) -> str | None:
    """The authority of a target is judged as a Host is, and does not replace a missing one."""
    for path in ("http://a:b/", "http://[::1/", "http://:80/", "http://a,b/", "http://a:1:2/"):
        tag = target.new_tag()
        refused(target, request(f"{path}?tag={tag}"), tag)
    tag = target.new_tag()
    raw = request(f"http://localhost/?tag={tag}", host=None)
    if target.manner.version == "HTTP/1.1":
        refused(target, raw, tag)
    return None


@row
def length_leading_zeros(target: Target) -> str | None:
    """Leading zeros of a Content-Length are digits like others (RFC 9110 section 8.6)."""
    for length in ("05", "0000000005", "0" * 40 + "5"):
        text = _body_of(target, f"Content-Length: {length}", body=b"hello")
        require(text == "hello", f"{text!r} for Content-Length: {length}")
    return None


@row
def length_spellings(target: Target) -> str | None:
    """A Content-Length that is not plain digits is refused, also where it would be nothing."""
    for length in ("5;", "5 5", "5,5", "5.0", "\u0665", "0x5", "5e0", "++5", "00x", "-0", "1" * 30):
        tag = target.new_tag()
        raw = request(f"/body?tag={tag}", method="POST", body=b"hello").replace(
            b"\r\nHost", f"\r\nContent-Length: {length}\r\nHost".encode(), 1
        )
        try:
            refused(target, raw, tag)
        except Broken as broken:
            raise Broken(f"Content-Length: {length}: {broken}") from None
    return None


@row
@unless("http10", because=NO_CHUNKS)
def coding_spellings(target: Target) -> str | None:
    """chunked in any case and with white space around it is chunked; a near miss is not."""
    chunks = b"5\r\nhello\r\n0\r\n\r\n"
    for value in ("chunked", "CHUNKED", "Chunked", " chunked", "chunked \t"):
        text = _body_of(target, f"Transfer-Encoding:{value}", body=chunks)
        require(text == "hello", f"{text!r} for {value!r}")
    for value in (
        "", ",", "chunked,", ",chunked", "chunked;q=1", '"chunked"', "chunked chunked", "chunke",
        "chunkedd", "chunked, gzip", "identity", "chunked, chunked",
    ):  # fmt: skip
        tag = target.new_tag()
        raw = request(f"/body?tag={tag}", f"Transfer-Encoding: {value}", method="POST", body=chunks)
        try:
            refused(target, raw, tag)
        except Broken as broken:
            raise Broken(f"Transfer-Encoding: {value}: {broken}") from None
    return None


# ---- chunks ------------------------------------------------------------------------------------


@row
@unless("http10", because=NO_CHUNKS)
def chunk_spellings(target: Target) -> str | None:
    """Sizes with leading zeros and in either case, and extensions as the grammar has them."""
    for line in (
        b"5", b"05", b"00000000000000000005", b"5;a", b"5;a=b", b"5;a=b;c", b'5;a="b"',
        b'5;a="b;c"', b'5;a="b\\"c"', b"5 ;a=b", b"5; a=b", b"5;a =b", b"5;a= b",
        b"5\t;\ta\t=\tb", b"5;a=b ;c=d",
    ):  # fmt: skip
        text = _body_of(target, "Transfer-Encoding: chunked", body=line + b"\r\nhello\r\n0\r\n\r\n")
        require(text == "hello", f"{text!r} for {line!r}")
    large = b"A\r\n0123456789\r\na\r\n0123456789\r\n000;last=1\r\n\r\n"
    text = _body_of(target, "Transfer-Encoding: chunked", body=large)
    require(text == "0123456789" * 2, f"{text!r}")
    return None


@row
@unless("http10", because=NO_CHUNKS)
def chunk_malformed_extensions(target: Target) -> str | None:
    """An extension that is none is refused (RFC 9112 section 7.1.1)."""
    for line in (
        b"5;", b"5;a=", b"5;=b", b"5;a=[x", b'5;a="b', b'5;a="b"c', b"5;a;", b"5 5", b"5 a", b"5,a",
        b'5;a="\x01"', b"5;a\x00", b"5 ", b"5g", b"5 ; ",
    ):  # fmt: skip
        tag = target.new_tag()
        body = line + b"\r\nhello\r\n0\r\n\r\n"
        raw = request(f"/body?tag={tag}", "Transfer-Encoding: chunked", method="POST", body=body)
        try:
            refused(target, raw, tag, may_reach_app=True)
        except Broken as broken:
            raise Broken(f"{line!r}: {broken}") from None
    return None


@row
@unless("http10", because=NO_CHUNKS)
def chunk_malformed_trailers(target: Target) -> str | None:
    """Trailers are judged like header lines."""
    for trailer in (
        b"X: 1\n", b"X : 1\r\n", b" X: 1\r\n", b"X: 1\r\n y\r\n", b": 1\r\n", b"X\r\n",
        b"X: \x00\r\n", b"X: a\rb\r\n", b"X Y: 1\r\n",
    ):  # fmt: skip
        tag = target.new_tag()
        body = b"5\r\nhello\r\n0\r\n" + trailer + b"\r\n"
        raw = request(f"/body?tag={tag}", "Transfer-Encoding: chunked", method="POST", body=body)
        try:
            refused(target, raw, tag, may_reach_app=True)
        except Broken as broken:
            raise Broken(f"{trailer!r}: {broken}") from None
    return None


@row
@unless("http10", because=NO_CHUNKS)
def chunk_endings(target: Target) -> str | None:
    """Data is followed by CRLF and nothing else, the last chunk by its end."""
    for body in (
        b"5\r\nhello0\r\n\r\n", b"5\r\nhello\r0\r\n\r\n", b"5\r\nhello\r\r\n0\r\n\r\n",
        b"5\r\nhell\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n\n",
        b"5\r\nhello\r\n0\n\r\n", b"5\r\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n-0\r\n\r\n",
    ):  # fmt: skip
        tag = target.new_tag()
        raw = request(f"/body?tag={tag}", "Transfer-Encoding: chunked", method="POST", body=body)
        try:
            refused(target, raw, tag, may_reach_app=True)
        except Broken as broken:
            raise Broken(f"{body!r}: {broken}") from None
    return None


# ---- answers -----------------------------------------------------------------------------------


@row
def own_answers(target: Target) -> str | None:
    """The server's own answers have a Date, announce the end, and have no body for HEAD."""
    for raw, method in (
        (request("/", "Bad Name: 1"), "GET"),
        (request("/", "Bad Name: 1", method="HEAD"), "HEAD"),
        (request("/" + "x" * 70_000), "GET"),
        (request("/raise_before"), "GET"),
        (request("/raise_before", method="HEAD"), "HEAD"),
        (request("http://a:b/", method="HEAD"), "HEAD"),
    ):
        with target.connect() as client:
            client.send(raw)
            answer = client.answer(method)
            what = f"{method} {answer.status}"
            require(answer.status >= 400, what)
            dates = answer.all("Date")
            require(len(dates) == 1 and dates[0].endswith(" GMT"), f"{what}: Date {dates}")
            require(answer.will_close, f"{what} does not announce the end")
            left = client.rest()
            require(not left, f"{what} has {left[:60]!r} behind it")
    return None


@row
def resp_205_body(target: Target) -> str | None:
    """205 has no content, and says so (RFC 9110 section 15.3.6)."""
    with target.connect() as client:
        client.send(request("/nobody?status=205&body=1"))
        answer = client.answer()
        if answer.status == 500:
            return "500"
        require(answer.status == 205 and not answer.body, f"{answer.status} {answer.body!r}")
        return clean_next(client, target)


@row
@unless("http10", "close", because=SECOND)
def resp_head_without_length(target: Target) -> str | None:
    """HEAD of an answer without a length: neither a chunk nor an end that delimits it."""
    with target.connect() as client:
        client.send(request("/nolength", method="HEAD"))
        require(client.answer("HEAD").status == 200, "not answered")
        require(clean_next(client, target) == "kept", "closed")
    return None


@row
def resp_empty_pieces(target: Target) -> str | None:
    """An empty piece in the middle is no last chunk."""
    answer = exchange(target, request("/empty_pieces"))
    require(answer.body == b"one two", f"{answer.body!r}")
    return None


@row
def resp_cut_is_seen(target: Target) -> str | None:
    """An answer that breaks off does not look whole, however it is delimited."""
    for path in ("/raise_mid", "/raise_mid?length=1"):
        for method in ("GET", "POST"):
            with target.connect() as client:
                client.send(request(path, "Content-Length: 0", method=method))
                try:
                    answer = client.answer()
                except (Closed, ConnectionError):
                    continue
                raise Broken(f"{method} {path}: {answer.status} with {len(answer.body)} bytes")
    still_serves(target)
    return None


# ---- persistence -------------------------------------------------------------------------------


@row
@unless("http10", "close", because=SECOND)
def pipeline_refused_last(target: Target) -> str | None:
    """What came before a refused request is answered first, in order, and nothing behind it."""
    one, two, three = (target.new_tag() for _ in range(3))
    with target.connect() as client:
        client.send(
            request(f"/?tag={one}")
            + request(f"/body?tag={two}", "Content-Length: 5", method="POST", body=b"hello")
            + request("/", "Bad Name: 1")
            + request(f"/?tag={three}")
        )
        require(client.answer().body == f"hello {one}".encode(), "the first answer")
        require(client.answer().status == 200, "the second answer")
        answer = client.answer()
        require(answer.status == 400, f"the third answer is {answer.status}")
        require(not client.rest(), "there is more behind it")
    require(not target.events(three, "call"), "what came behind it was served")
    return None


@row
@unless(
    "slow-writer", because="a client that asks for the end sends no more (RFC 9112 section 9.6)"
)
def pipeline_after_close(target: Target) -> str | None:
    """Nothing is served behind a request that asks for the end."""
    one, two = target.new_tag(), target.new_tag()
    with target.connect() as client:
        client.send(request(f"/?tag={one}", "Connection: close") + request(f"/?tag={two}"))
        require(client.answer().body == f"hello {one}".encode(), "the first answer")
        require(not client.rest(), "there is more behind it")
    require(not target.events(two, "call"), "the second request was served")
    return None


@row
@unless("http10", "close", because=SECOND)
def pipeline_then_half_close(target: Target) -> str | None:
    """A client that ends its half behind several requests gets all answers."""
    tags = [target.new_tag() for _ in range(5)]
    with target.connect() as client:
        client.send(b"".join(request(f"/?tag={tag}") for tag in tags))
        client.finish_sending()
        for tag in tags:
            require(client.answer().body == f"hello {tag}".encode(), f"the answer to {tag}")
        require(client.is_closed(), "kept open")
    return None


@row
def connection_spellings(target: Target) -> str | None:
    """Options of Connection are found in any case, in lists and in several fields."""
    for lines in (
        ["Connection: Close"], ["Connection: CLOSE"], ["Connection: x, close"],
        ["Connection: keep-alive, close"], ["Connection: keep-alive", "Connection: close"],
        ["Connection:close"], ["Connection: ,close,"],
    ):  # fmt: skip
        with target.connect() as client:
            client.send(request("/", *lines))
            require(client.answer().will_close, f"not announced after {lines}")
            require(client.is_closed(), f"kept open after {lines}")
    return None


@row
@unless("http10", "close", because=SECOND)
def connection_near_misses(target: Target) -> str | None:
    """What only resembles an option of Connection is none."""
    for value in ("closed", "x-close", "upgrade", "close-not", "keep-alive"):
        with target.connect() as client:
            client.send(request("/", f"Connection: {value}"))
            require(client.answer().status == 200, "not answered")
            require(clean_next(client, target) == "kept", f"closed after {value}")
    return None


@row
@unless("http10", "close", because=SECOND)
def upgrade_ignored(target: Target) -> str | None:
    """An upgrade that the server does not know is an ordinary request (RFC 9110 section 7.8)."""
    for lines in (
        ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAA"],
        ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x"],
        ["Connection: Upgrade", "Upgrade: TLS/1.3"],
    ):
        with target.connect() as client:
            client.send(request("/", *lines))
            require(client.answer().status == 200, f"not served: {lines}")
            require(clean_next(client, target) == "kept", f"closed after {lines}")
    return None


@row
@unless("http10", because="HTTP/1.0 has no interim answers")
def expect_100_spellings(target: Target) -> str | None:
    """The expectation is found in any case and in a list, for counted and chunked bodies."""
    chunks = b"5\r\nhello\r\n0\r\n\r\n"
    for value in ("100-continue", "100-Continue", "100-CONTINUE", "x, 100-continue"):
        for framing, body in (
            ("Content-Length: 5", b"hello"),
            ("Transfer-Encoding: chunked", chunks),
        ):
            with target.connect() as client:
                client.send(request("/body", framing, f"Expect: {value}", method="POST"))
                interim = client.head(3)
                require(interim.status == 100, f"{interim.status} to {value}, {framing}")
                client.send(body)
                require(client.answer().status == 200, f"{value}, {framing}")
    return None


@row
def expect_100_without_body(target: Target) -> str | None:
    """No interim answer where there is no body to wait for."""
    for lines in (["Expect: 100-continue"], ["Expect: 100-continue", "Content-Length: 0"]):
        answer = exchange(target, request("/body", *lines, method="POST"))
        require(answer.status == 200 and not answer.interim, f"{answer.interim} {answer.status}")
    return None
