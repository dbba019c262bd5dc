"""Rows about answers: what an application may not send, PEP 3333's error rules, 100-continue.

Rules: PEP 3333 ("The start_response() Callable", "Error Handling"), RFC 9110 sections 6.4 (bodies
that cannot be), 7.6.1 (hop-by-hop) and 10.1.1 (Expect), RFC 9112 section 6.
"""

from __future__ import annotations

from conformance.target import Target, until
from conformance.verdict import SECOND, clean_next, exchange, require, row, still_serves, unless
from conformance.wire import Closed, request

# ---- what the application may not send ---------------------------------------------------------


def _inject(target: Target, where: str) -> str:
    tag = target.new_tag()
    with target.connect() as client:
        client.send(request(f"/inject?tag={tag}&where={where}"))
        try:
            answer = client.answer()
        except Closed:
            return "closed"
        require(answer.first("X-Injected") is None, "the injected header went out")
        require(answer.status == 500, f"answered {answer.status}")
        return f"500, {clean_next(client, target)}"


@row
def resp_inject_name(target: Target) -> str | None:
    """CRLF in a header name."""
    return _inject(target, "name")


@row
def resp_inject_value(target: Target) -> str | None:
    """CRLF in a header value."""
    return _inject(target, "value")


@row
def resp_inject_lf(target: Target) -> str | None:
    """LF in a header value."""
    return _inject(target, "lf")


@row
def resp_inject_cr(target: Target) -> str | None:
    """CR in a header value."""
    return _inject(target, "cr")


@row
def resp_inject_nul(target: Target) -> str | None:
    """NUL in a header value."""
    return _inject(target, "nul")


@row
def resp_inject_status(target: Target) -> str | None:
    """CRLF in the status."""
    return _inject(target, "status")


@row
def resp_hop_by_hop(target: Target) -> str | None:
    """Hop-by-hop headers of the application do not go out, and its false framing has no effect."""
    with target.connect() as client:
        client.send(request("/hop"))
        answer = client.answer()
        require(answer.first("Keep-Alive") != "timeout=77", "Keep-Alive went out")
        if answer.status == 200:
            require(answer.body == b"hello", f"body {answer.body[:60]!r}")
        else:
            require(answer.status == 500, f"answered {answer.status}")
        return f"{answer.status}, {clean_next(client, target)}"


def _no_body(target: Target, status: int, path: str, method: str = "GET") -> str:
    with target.connect() as client:
        client.send(request(path, method=method))
        answer = client.answer(method)
        require(answer.status in (status, 500), f"answered {answer.status}")
        require(b"LEAKED" not in client.unread, "the body went out")
        if answer.status == 500:
            return "500"
        require(client.is_open(0.1) or not client.unread, f"leaked {client.unread[:60]!r}")
        return clean_next(client, target)


@row
def resp_204_body(target: Target) -> str | None:
    """204 has no body, also when the application yields one."""
    return _no_body(target, 204, "/nobody?status=204&body=1")


@row
def resp_304_body(target: Target) -> str | None:
    """304 has no body, also when the application yields one."""
    return _no_body(target, 304, "/nobody?status=304&body=1")


@row
def resp_head_body(target: Target) -> str | None:
    """The answer to HEAD has no body; its Content-Length is the application's."""
    with target.connect() as client:
        client.send(request("/head", method="HEAD"))
        answer = client.answer("HEAD")
        require(answer.first("Content-Length") in ("11", None), f"{answer.headers}")
        require(client.is_open(0.1) or not client.unread, f"leaked {client.unread[:60]!r}")
        return clean_next(client, target)


@row
def resp_204_no_cl(target: Target) -> str | None:
    """204 carries neither Content-Length nor Transfer-Encoding (RFC 9110 section 8.6)."""
    answer = exchange(target, request("/nobody?status=204"))
    framing = answer.all("Content-Length") + answer.all("Transfer-Encoding")
    require(answer.status == 204 and not framing, f"{answer.status} with {answer.headers}")
    return None


@row
@unless("http10", "close", because=SECOND)
def resp_304_keeps_connection(target: Target) -> str | None:
    """304 without a body leaves the connection usable."""
    with target.connect() as client:
        client.send(request("/nobody?status=304"))
        require(client.answer().status == 304, "not 304")
        require(clean_next(client, target) == "kept", "closed")
    return None


@row
def resp_cl_too_short(target: Target) -> str | None:
    """More bytes than declared never become part of the next answer."""
    with target.connect() as client:
        client.send(request("/length?says=5&sends=10"))
        answer = client.answer()
        if answer.status == 500:
            return f"500, {clean_next(client, target)}"
        require(answer.body == b"AAAAA", f"body {answer.body!r}")
        try:
            left = client.rest(2.0)
        except TimeoutError:
            left = client.unread
            require(not left, f"{left[:60]!r} leaked behind the answer")
            require(False, "the connection stays open after a wrong Content-Length")
        require(not left, f"{left[:60]!r} leaked behind the answer")
    return "closed"


@row
def resp_cl_too_long(target: Target) -> str | None:
    """Fewer bytes than declared end the connection, so that the client sees the cut."""
    with target.connect() as client:
        client.send(request("/length?says=10&sends=5"))
        try:
            answer = client.answer(timeout=3)
        except Closed:
            return "closed short"
        require(answer.status == 500, f"answered {answer.status} with {answer.body!r}")
        return "500"


@row
def resp_http10_no_chunked(target: Target) -> str | None:
    """HTTP/1.0 gets no chunks; the end of an answer without a length is the connection's end."""
    with target.connect() as client:
        client.send(request("/nolength", version="HTTP/1.0"))
        answer = client.answer()
        require(not answer.all("Transfer-Encoding"), "chunked in an answer to HTTP/1.0")
        require(answer.body == b"one two three", f"{answer.body!r}")
    return None


@row
def resp_http10_keep_alive(target: Target) -> str | None:
    """HTTP/1.0 with keep-alive is either kept (and said so) or closed; without it, closed."""
    notes = []
    for headers in (["Connection: keep-alive"], []):
        with target.connect() as client:
            client.send(request("/?tag=", *headers, version="HTTP/1.0"))
            answer = client.answer()
            says = "keep-alive" in (answer.first("Connection") or "").lower()
            if says:
                require(headers, "kept without being asked")
                require(clean_next(client, target) == "kept", "said keep-alive and closed")
            else:
                require(client.is_closed(), "neither keep-alive nor closed")
            notes.append("kept" if says else "closed")
    return ", ".join(notes)


@row
def resp_connection_close(target: Target) -> str | None:
    """Connection: close is honoured and announced."""
    with target.connect() as client:
        client.send(request("/", "Connection: close"))
        answer = client.answer()
        require(answer.will_close, f"not announced: {answer.headers}")
        require(client.is_closed(), "kept open")
    return None


@row
@unless("close", because=SECOND)
def resp_chunked_whole(target: Target) -> str | None:
    """An answer without a length is chunked for HTTP/1.1 and keeps the connection."""
    with target.connect() as client:
        client.send(request("/nolength"))
        answer = client.answer()
        require(answer.body == b"one two three", f"{answer.body!r}")
        if not answer.delimited:
            return "ended by closing"
        require(clean_next(client, target) == "kept", "closed")
    return None


@row
def resp_date(target: Target) -> str | None:
    """Answers carry one Date (RFC 9110 section 6.6.1)."""
    dates = exchange(target, request("/")).all("Date")
    require(len(dates) == 1 and dates[0].endswith(" GMT"), f"{dates}")
    return None


# ---- PEP 3333's rules --------------------------------------------------------------------------


def _five_hundred(target: Target, path: str, query: str = "") -> str:
    tag = target.new_tag()
    with target.connect() as client:
        client.send(request(f"{path}?tag={tag}{query}"))
        answer = client.answer()
        require(answer.status == 500, f"answered {answer.status} {answer.body[:60]!r}")
        require(b"Traceback" not in answer.body, "the traceback went out to the client")
        note = clean_next(client, target)
    still_serves(target)
    return note


@row
def app_raise_before(target: Target) -> str | None:
    """An exception before start_response() is a 500."""
    return _five_hundred(target, "/raise_before")


@row
def app_raise_after(target: Target) -> str | None:
    """An exception after start_response(), with nothing sent, is a 500."""
    return _five_hundred(target, "/raise_after")


@row
def app_raise_mid(target: Target) -> str | None:
    """An exception in the middle of a body cuts the connection: no last chunk."""
    tag = target.new_tag()
    with target.connect() as client:
        client.send(request(f"/raise_mid?tag={tag}"))
        try:
            answer = client.answer()
        except Closed:
            require(target.saw("close", tag), "close() was not called")
            return "cut"
        require(answer.status == 500, f"answered {answer.status}, {len(answer.body)} bytes, whole")
        return "500"


@row
def app_double_start(target: Target) -> str | None:
    """A second start_response() without exc_info is an error."""
    return _five_hundred(target, "/double_start")


@row
def app_exc_info(target: Target) -> str | None:
    """With exc_info, before anything was sent, the second call replaces the first."""
    answer = exchange(target, request("/exc_info"))
    require(answer.status == 503 and answer.body == b"sorry", f"{answer.status} {answer.body!r}")
    require(answer.first("X-First") is None, "a header of the first call went out")
    return None


@row
def app_exc_info_late(target: Target) -> str | None:
    """With exc_info, after the headers were sent, start_response() raises it again."""
    tag = target.new_tag()
    with target.connect() as client:
        client.send(request(f"/exc_info_late?tag={tag}"))
        try:
            answer = client.answer()
            require(answer.status == 500, f"{answer.status}, whole")
        except Closed:
            pass
    require(target.saw("reraised", tag), "start_response() did not raise")
    return None


@row
def app_no_start(target: Target) -> str | None:
    """An application that never calls start_response() is a 500."""
    _five_hundred(target, "/no_start", "&empty=1")
    return _five_hundred(target, "/no_start")


@row
def app_str_body(target: Target) -> str | None:
    """str items in a body are an error."""
    tag = target.new_tag()
    with target.connect() as client:
        client.send(request(f"/str_body?tag={tag}"))
        try:
            answer = client.answer()
        except Closed:
            return "closed"
        require(answer.status == 500, f"answered {answer.status} {answer.body[:60]!r}")
    return "500"


@row
def app_write(target: Target) -> str | None:
    """write() and the iterable are sent in order."""
    answer = exchange(target, request("/write"))
    require(answer.body == b"written and iterated", f"{answer.body!r}")
    return None


@row
def app_lazy_start(target: Target) -> str | None:
    """start_response() may come with the first item; empty items send nothing."""
    answer = exchange(target, request("/lazy_start"))
    require(answer.status == 200 and answer.body == b"late", f"{answer.status} {answer.body!r}")
    return None


@row
def app_file_wrapper(target: Target) -> str | None:
    """wsgi.file_wrapper sends a file byte for byte."""
    path = target.directory / "file"
    data = bytes(range(256)) * 1000
    path.write_bytes(data)
    answer = exchange(target, request(f"/file_wrapper?file={path}"))
    require(answer.body == data, f"{len(answer.body)} bytes of {len(data)}")
    return None


@row
def app_close_called(target: Target) -> str | None:
    """close() is called once for every answer, HEAD and errors included."""
    for path, method in (("/", "GET"), ("/head", "HEAD"), ("/str_body", "GET")):
        tag = target.new_tag()
        with target.connect() as client:
            client.send(request(f"{path}?tag={tag}", method=method))
            require(target.saw("close", tag), f"not called for {method} {path}")
        require(len(target.events(tag, "close")) == 1, f"twice for {method} {path}")
    return None


# ---- Expect: 100-continue ----------------------------------------------------------------------


@row
@unless("http10", because="HTTP/1.0 has no interim answers")
def expect_100(target: Target) -> str | None:
    """The interim answer comes before the body is sent."""
    tag = target.new_tag()
    with target.connect() as client:
        client.send(
            request(f"/body?tag={tag}", "Content-Length: 5", "Expect: 100-continue", method="POST")
        )
        interim = client.head(3)
        require(interim.status == 100, f"{interim.status} before the body was sent")
        client.send(b"hello")
        answer = client.answer()
        require(answer.status == 200 and not answer.interim, f"{answer.status}")
    return None


@row
def expect_100_http10(target: Target) -> str | None:
    """HTTP/1.0 gets no interim answer."""
    with target.connect() as client:
        client.send(
            request(
                "/body",
                "Content-Length: 5",
                "Expect: 100-continue",
                method="POST",
                version="HTTP/1.0",
            )
        )
        require(client.is_open(0.3), f"sent {client.unread[:40]!r} before the body")
        client.send(b"hello")
        answer = client.answer()
        require(answer.status == 200 and not answer.interim, f"{answer.interim} {answer.status}")
    return None


@row
@unless("http10", because="HTTP/1.0 has no interim answers")
def expect_100_not_read(target: Target) -> str | None:
    """An application that does not read gets no 100 sent for it; nothing desynchronises."""
    tag = target.new_tag()
    inner = request(f"/smuggled?tag={tag}s")
    with target.connect() as client:
        client.send(
            request(
                f"/?tag={tag}",
                f"Content-Length: {len(inner)}",
                "Expect: 100-continue",
                method="POST",
            )
        )
        answer = client.answer()
        require(not answer.interim, "100 though the application did not read")
        require(answer.body == f"hello {tag}".encode(), f"{answer.status}")
        if answer.will_close:
            require(client.is_closed(), "announced closing and did not")
            return "closed"
        client.send(inner)
        note = clean_next(client, target)
    require(not target.events(tag + "s", "call"), "the body was served as a request")
    return note


@row
@unless("close", "http10", because=SECOND)
def expect_100_body_at_once(target: Target) -> str | None:
    """A client that does not wait for the 100 is served all the same."""
    with target.connect() as client:
        client.send(
            request(
                "/body", "Content-Length: 5", "Expect: 100-continue", method="POST", body=b"hello"
            )
        )
        answer = client.answer()
        require(answer.status == 200, f"{answer.status}")
        require(clean_next(client, target) == "kept", "closed")
    return None


@row
def expect_unknown(target: Target) -> str | None:
    """An unknown expectation is refused with 417 or ignored."""
    tag = target.new_tag()
    answer = exchange(target, request(f"/?tag={tag}", "Expect: tea"))
    require(answer.status in (200, 417), f"answered {answer.status}")
    require(until(lambda: bool(target.events(tag)) == (answer.status == 200), 2), "inconsistent")
    return str(answer.status)
