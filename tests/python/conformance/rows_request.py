"""Rows about requests: environ, framing and smuggling, pipelining, bodies.

Rules: PEP 3333 (environ), RFC 9112 sections 3 (request line), 5 (fields), 6 (body), 7 (chunked),
9.3 (pipelining) and 11.2 (smuggling), RFC 9110 section 7.2 (Host).
"""

from __future__ import annotations

import json

from conformance.target import Target, until
from conformance.verdict import SECOND, Broken, environ_of, exchange, refused, require, row, unless
from conformance.wire import Closed, request

# ---- environ ---------------------------------------------------------------------------------


@row
def env_underscore(target: Target) -> str | None:
    """A header spelled with an underscore cannot replace or join its honest twin."""
    for pair in (
        ("X-Auth-Token: good", "X_Auth_Token: evil"),
        ("X_Auth_Token: evil", "X-Auth-Token: good"),
    ):
        environ = environ_of(target, request("/env", *pair))
        value = "good" if environ is None else environ.get("HTTP_X_AUTH_TOKEN")
        require(value == "good", f"HTTP_X_AUTH_TOKEN is {value!r} after {pair}")
    return None


@row
def env_underscore_alone(target: Target) -> str | None:
    """A header spelled with an underscore alone does not pass for the honest one."""
    environ = environ_of(target, request("/env", "X_Auth_Token: evil"))
    require(environ is None or "HTTP_X_AUTH_TOKEN" not in environ, "HTTP_X_AUTH_TOKEN was poisoned")
    return None


@row
def env_underscore_cl(target: Target) -> str | None:
    """Content_Length and Content_Type set neither the CGI keys nor the HTTP_ ones."""
    raw = request("/env", "Content_Length: 7", "Content_Type: evil/type")
    environ = environ_of(target, raw) or {}
    require(environ.get("CONTENT_LENGTH", "") in ("", "0"), "CONTENT_LENGTH was poisoned")
    require(environ.get("CONTENT_TYPE") != "evil/type", "CONTENT_TYPE was poisoned")
    require("HTTP_CONTENT_LENGTH" not in environ, "HTTP_CONTENT_LENGTH was poisoned")
    return None


@row
def env_httpoxy(target: Target) -> str | None:
    """Proxy never becomes HTTP_PROXY (CVE-2016-5385)."""
    environ = environ_of(target, request("/env", "Proxy: http://evil.example/")) or {}
    require("HTTP_PROXY" not in environ, "HTTP_PROXY reached the application")
    return None


@row
def env_pep3333_keys(target: Target) -> str | None:
    """Every required key is there, with the right type and value."""
    environ = environ_of(target, request("/env/x?a=1&b=%20", "X-One: 1")) or {}
    wanted = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/env/x",
        "QUERY_STRING": "a=1&b=%20",
        "SERVER_PROTOCOL": target.manner.version,
        "SERVER_PORT": str(target.port),
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "localhost",
        "HTTP_X_ONE": "1",
        "wsgi.version": "(1, 0)",
        "wsgi.url_scheme": target.manner.scheme,
        "wsgi.run_once": False,
    }
    wrong = {key: environ.get(key) for key, value in wanted.items() if environ.get(key) != value}
    require(not wrong, f"wrong: {wrong}")
    for key in ("wsgi.multithread", "wsgi.multiprocess"):
        require(isinstance(environ.get(key), bool), f"{key} is {environ.get(key)!r}")
    for key in ("SERVER_NAME", "wsgi.input", "wsgi.errors"):
        require(environ.get(key), f"{key} is missing")
    for key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        require(environ.get(key, "") == "", f"{key} is {environ.get(key)!r} though not sent")
    require("HTTP_CONTENT_LENGTH" not in environ, "HTTP_CONTENT_LENGTH is there")
    return None


@row
def env_content_keys(target: Target) -> str | None:
    """Content-Type and Content-Length become the CGI keys, not HTTP_ ones."""
    raw = request("/env", "Content-Type: text/x", "Content-Length: 2", method="POST", body=b"ab")
    environ = environ_of(target, raw) or {}
    require(environ.get("CONTENT_TYPE") == "text/x", f"{environ.get('CONTENT_TYPE')!r}")
    require(environ.get("CONTENT_LENGTH") == "2", f"{environ.get('CONTENT_LENGTH')!r}")
    both = {"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"} & environ.keys()
    require(not both, f"also as {both}")
    return None


@row
def env_no_query_string(target: Target) -> str | None:
    """Without a query, QUERY_STRING is empty."""
    environ = environ_of(target, request("/env")) or {}
    require(environ.get("QUERY_STRING", "") == "", f"{environ.get('QUERY_STRING')!r}")
    require(environ.get("PATH_INFO") == "/env", f"PATH_INFO {environ.get('PATH_INFO')!r}")
    return None


@row
def env_path_percent(target: Target) -> str | None:
    """PATH_INFO is percent-decoded once, as latin-1 text; the query stays as it was sent."""
    environ = environ_of(target, request("/env/a%2Fb%20c%C3%A9%2541?q=%2F+%C3%A9")) or {}
    path = environ.get("PATH_INFO")
    require(path == "/env/a/b c\u00c3\u00a9%41", f"PATH_INFO {path!r}")
    query = environ.get("QUERY_STRING")
    require(query == "q=%2F+%C3%A9", f"QUERY_STRING {query!r}")
    return None


@row
def env_absolute_form(target: Target) -> str | None:
    """An absolute-form target is split: only its path and query reach the application."""
    environ = environ_of(target, request("http://localhost/env/x?y=1"))
    if environ is None:
        raise Broken("refused, though a server must accept it (RFC 9112 section 3.2.2)")
    seen = (environ.get("PATH_INFO"), environ.get("QUERY_STRING"))
    require(seen == ("/env/x", "y=1"), f"PATH_INFO, QUERY_STRING are {seen}")
    return None


@row
def env_absolute_form_host(target: Target) -> str | None:
    """The authority of an absolute-form target overrides Host, or the request is refused."""
    raw = request("http://inner.example/env", host="outer.example")
    environ = environ_of(target, raw)
    host = "refused" if environ is None else environ.get("HTTP_HOST")
    require(host in ("refused", "inner.example"), f"HTTP_HOST is {host!r}")
    return f"HTTP_HOST {host}"


@row
def env_dup_header_join(target: Target) -> str | None:
    """A repeated header is joined with commas, in order."""
    environ = environ_of(target, request("/env", "X-Dup: one", "X-Other: x", "X-Dup: two")) or {}
    value = environ.get("HTTP_X_DUP", "")
    require([item.strip() for item in value.split(",")] == ["one", "two"], f"{value!r}")
    return None


# ---- framing and smuggling ---------------------------------------------------------------------

HELLO = b"5\r\nhello\r\n0\r\n\r\n"


def hidden(tag: str) -> bytes:
    """A request that must never be seen as one."""
    return request(f"/smuggled?tag={tag}s")


def _with(target: Target, *headers: str, body: bytes = b"", version: str = "HTTP/1.1") -> str:
    """Send a POST to /body with *headers* and a hidden request in or after its body."""
    tag = target.new_tag()
    raw = request(
        f"/body?tag={tag}",
        *headers,
        method="POST",
        body=body or b"hello" + hidden(tag),
        version=version,
    )
    return refused(target, raw, tag)


def _raw_header(target: Target, line: bytes) -> str:
    """Send a GET whose header section holds *line* as it is."""
    tag = target.new_tag()
    head = f"GET /env?tag={tag} HTTP/1.1\r\nHost: localhost\r\n".encode()
    return refused(target, head + line + b"\r\n\r\n", tag)


@row
def sm_cl_te(target: Target) -> str | None:
    """Content-Length before Transfer-Encoding."""
    tag = target.new_tag()
    body = b"0\r\n\r\n" + hidden(tag)
    raw = request(
        f"/body?tag={tag}",
        f"Content-Length: {len(body)}",
        "Transfer-Encoding: chunked",
        method="POST",
        body=body,
    )
    return refused(target, raw, tag)


@row
def sm_te_cl(target: Target) -> str | None:
    """Transfer-Encoding before Content-Length."""
    tag = target.new_tag()
    body = b"0\r\n\r\n" + hidden(tag)
    raw = request(
        f"/body?tag={tag}",
        "Transfer-Encoding: chunked",
        f"Content-Length: {len(body)}",
        method="POST",
        body=body,
    )
    return refused(target, raw, tag)


@row
def sm_dup_cl_differ(target: Target) -> str | None:
    """Two Content-Length that differ."""
    return _with(target, "Content-Length: 5", "Content-Length: 6")


@row
def sm_cl_list(target: Target) -> str | None:
    """A list in Content-Length whose members differ."""
    return _with(target, "Content-Length: 5, 6")


@row
def sm_cl_plus(target: Target) -> str | None:
    """A sign in Content-Length."""
    return _with(target, "Content-Length: +5")


@row
def sm_cl_underscore(target: Target) -> str | None:
    """What Python's int() takes for a number."""
    return _with(target, "Content-Length: 0_5")


@row
def sm_cl_neg(target: Target) -> str | None:
    """A negative Content-Length."""
    return _with(target, "Content-Length: -5")


@row
def sm_cl_hex(target: Target) -> str | None:
    """Hexadecimal Content-Length."""
    return _with(target, "Content-Length: 0x5")


@row
def sm_cl_latin1(target: Target) -> str | None:
    """A digit that is not ASCII."""
    return _with(target, "Content-Length: \u00b2")


@row
def sm_cl_empty(target: Target) -> str | None:
    """An empty Content-Length."""
    return _with(target, "Content-Length: ")


@row
def sm_cl_overflow(target: Target) -> str | None:
    """A Content-Length beyond 64 bits: no wrap-around."""
    return _with(target, "Content-Length: 18446744073709551621")


@row
def sm_te_xchunked(target: Target) -> str | None:
    """A coding that only resembles chunked."""
    return _with(target, "Transfer-Encoding: xchunked", body=HELLO)


@row
def sm_te_gzip_chunked(target: Target) -> str | None:
    """A coding below chunked that the server does not undo."""
    return _with(target, "Transfer-Encoding: gzip, chunked", body=HELLO)


@row
def sm_te_chunked_identity(target: Target) -> str | None:
    """chunked that is not the last coding."""
    return _with(target, "Transfer-Encoding: chunked, identity", body=HELLO)


@row
def sm_te_sp_colon(target: Target) -> str | None:
    """White space before the colon (RFC 9112 section 5.1)."""
    return _with(target, "Transfer-Encoding : chunked", body=HELLO)


@row
def sm_te_http10(target: Target) -> str | None:
    """Transfer-Encoding in HTTP/1.0: faulty framing (RFC 9112 section 6.1)."""
    return _with(target, "Transfer-Encoding: chunked", body=HELLO, version="HTTP/1.0")


@row
def sm_te_twice(target: Target) -> str | None:
    """chunked applied twice."""
    return _with(target, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=HELLO)


@row
def sm_te_vtab(target: Target) -> str | None:
    """chunked behind a vertical tab."""
    return _with(target, "Transfer-Encoding: \x0bchunked", body=HELLO)


@row
def sm_obs_fold(target: Target) -> str | None:
    """A folded header line."""
    return _raw_header(target, b"X-Fold: one\r\n two")


@row
def sm_te_obs_fold(target: Target) -> str | None:
    """A folded Transfer-Encoding."""
    return _with(target, "Transfer-Encoding:\r\n chunked", body=HELLO)


@row
def sm_bare_cr_value(target: Target) -> str | None:
    """A bare CR inside a value."""
    return _raw_header(target, b"X-Cr: one\rtwo")


@row
def sm_nul_value(target: Target) -> str | None:
    """NUL inside a value."""
    return _raw_header(target, b"X-Nul: one\0two")


@row
def sm_nul_name(target: Target) -> str | None:
    """NUL inside a name."""
    return _raw_header(target, b"X-N\0ul: one")


@row
def sm_space_name(target: Target) -> str | None:
    """A space inside a name."""
    return _raw_header(target, b"X Space: one")


@row
def sm_no_colon(target: Target) -> str | None:
    """A header line without a colon."""
    return _raw_header(target, b"NoColonHere")


@row
def sm_empty_name(target: Target) -> str | None:
    """An empty header name."""
    return _raw_header(target, b": value")


@row
def sm_leading_ws_header(target: Target) -> str | None:
    """White space between the request line and the first header."""
    tag = target.new_tag()
    raw = f"GET /env?tag={tag} HTTP/1.1\r\n X-First: one\r\nHost: localhost\r\n\r\n".encode()
    return refused(target, raw, tag)


@row
def sm_two_hosts(target: Target) -> str | None:
    """Two Host headers (RFC 9112 section 3.2)."""
    return _raw_header(target, b"Host: other.example")


@row
@unless("http10", because="HTTP/1.0 demands no Host")
def sm_no_host(target: Target) -> str | None:
    """HTTP/1.1 without Host (RFC 9112 section 3.2)."""
    tag = target.new_tag()
    return refused(target, request(f"/env?tag={tag}", host=None), tag)


@row
def sm_bad_host(target: Target) -> str | None:
    """A Host that is not a host (RFC 9112 section 3.2)."""
    tag = target.new_tag()
    return refused(target, request(f"/env?tag={tag}", host="a b/c@d"), tag)


@row
def sm_http09(target: Target) -> str | None:
    """A request line without a version."""
    tag = target.new_tag()
    return refused(target, f"GET /env?tag={tag}\r\n\r\n".encode(), tag)


@row
def sm_version_junk(target: Target) -> str | None:
    """Versions that do not exist."""
    notes = []
    for version in ("HTTP/1.1x", "HTTP/9.9", "HTTP/1.10", "ICY/1.0"):
        tag = target.new_tag()
        notes.append(refused(target, request(f"/env?tag={tag}", version=version), tag))
    return " ".join(notes)


@row
def sm_lower_method(target: Target) -> str | None:
    """A method with a character that no token may hold."""
    tag = target.new_tag()
    return refused(target, request(f"/env?tag={tag}", method="GE(T"), tag)


@row
def sm_nul_url(target: Target) -> str | None:
    """NUL in the target."""
    tag = target.new_tag()
    return refused(target, request(f"/env\0?tag={tag}"), tag)


@row
def sm_ctl_url(target: Target) -> str | None:
    """A control byte in the target."""
    tag = target.new_tag()
    return refused(target, request(f"/env\x01\x7f?tag={tag}"), tag)


def _chunked(target: Target, body: bytes) -> str:
    tag = target.new_tag()
    raw = request(f"/body?tag={tag}", "Transfer-Encoding: chunked", method="POST", body=body)
    return refused(target, raw, tag, may_reach_app=True)


@row
def sm_chunk_plus(target: Target) -> str | None:
    """A sign in a chunk size."""
    return _chunked(target, b"+5\r\nhello\r\n0\r\n\r\n")


@row
def sm_chunk_0x(target: Target) -> str | None:
    """0x before a chunk size."""
    return _chunked(target, b"0x5\r\nhello\r\n0\r\n\r\n")


@row
def sm_chunk_neg(target: Target) -> str | None:
    """A negative chunk size."""
    return _chunked(target, b"-5\r\nhello\r\n0\r\n\r\n")


@row
def sm_chunk_underscore(target: Target) -> str | None:
    """What Python's int(, 16) takes for a number."""
    return _chunked(target, b"0_5\r\nhello\r\n0\r\n\r\n")


@row
def sm_chunk_no_crlf(target: Target) -> str | None:
    """Data longer than its size: no CRLF where it has to be."""
    return _chunked(target, b"5\r\nhelloXX0\r\n\r\n")


@row
def sm_chunk_lf(target: Target) -> str | None:
    """Bare LF after a chunk size, once and everywhere."""
    _chunked(target, b"5\nhello\r\n0\r\n\r\n")
    return _chunked(target, b"5\nhello\n0\n\n")


@row
def sm_chunk_data_lf(target: Target) -> str | None:
    """Bare LF after a chunk's data."""
    return _chunked(target, b"5\r\nhello\n0\r\n\r\n")


@row
def sm_chunk_huge(target: Target) -> str | None:
    """A chunk size beyond 64 bits: no wrap-around."""
    return _chunked(target, b"1" + b"0" * 15 + b"5\r\nhello\r\n0\r\n\r\n")


@row
def sm_chunk_ext_cr(target: Target) -> str | None:
    """A bare CR in a chunk extension."""
    return _chunked(target, b"5;a=b\rc\r\nhello\r\n0\r\n\r\n")


@row
def sm_chunk_ext_lf(target: Target) -> str | None:
    """A bare LF in a chunk extension (CVE-2025-22871 and its kin)."""
    return _chunked(target, b"5;a=b\nhello\r\n0\r\n\r\n")


@row
def sm_chunk_empty_size(target: Target) -> str | None:
    """No chunk size at all."""
    return _chunked(target, b"\r\nhello\r\n0\r\n\r\n")


@row
def sm_chunk_space_size(target: Target) -> str | None:
    """White space before a chunk size."""
    return _chunked(target, b" 5\r\nhello\r\n0\r\n\r\n")


@row
def sm_desync_te_gzip(target: Target) -> str | None:
    """A coding that is not chunked: the body's end is unknown, so nothing after it counts."""
    tag = target.new_tag()
    raw = request(f"/body?tag={tag}", "Transfer-Encoding: gzip", method="POST", body=hidden(tag))
    return refused(target, raw, tag)


@row
@unless("close", because=SECOND)
def sm_trailer_desync(target: Target) -> str | None:
    """Trailers that look like framing change nothing for the next request."""
    one, two = target.new_tag(), target.new_tag()
    body = b"5\r\nhello\r\n0\r\nContent-Length: 60\r\nTransfer-Encoding: gzip\r\nX-T: 1\r\n\r\n"
    first = request(f"/body?tag={one}", "Transfer-Encoding: chunked", method="POST", body=body)
    with target.connect() as client:
        client.send(first + request(f"/?tag={two}"))
        answer = client.answer()
        if 400 <= answer.status < 500:
            require(client.is_closed(), f"answered {answer.status}, not closed")
            require(not target.events(two, "call"), "the next request was served all the same")
            return f"refused with {answer.status}"
        require(json.loads(answer.body)["text"] == "hello", f"body {answer.body!r}")
        answer = client.answer()
        require(answer.body == f"hello {two}".encode(), f"second answer {answer.body[:60]!r}")
    require(len(target.events(two, "call")) == 1, "the second request was seen more than once")
    return None


@row
def sm_trailer_not_in_environ(target: Target) -> str | None:
    """A trailer never turns into a header, neither of this request nor of the next."""
    body = b"5\r\nhello\r\n0\r\nX-Auth-Token: evil\r\n\r\n"
    raw = request("/env", "Transfer-Encoding: chunked", method="POST", body=body)
    with target.connect() as client:
        for data in (raw, request("/env")):
            try:
                client.send(data)
                answer = client.answer()
            except (Closed, ConnectionError):
                return "closed after the unread body"
            require("evil" not in answer.body.decode(), "the trailer reached the environ")
    return None


@row
@unless("http10", "close", because=SECOND)
def sm_unread_body_then_request(target: Target) -> str | None:
    """A body that the application leaves unread is never taken for a request."""
    tag, after = target.new_tag(), target.new_tag()
    inner = hidden(tag)
    notes = []
    for framing, body in (
        (f"Content-Length: {len(inner)}", inner),
        ("Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner)),
    ):
        with target.connect() as client:
            client.send(
                request(f"/?tag={tag}", framing, method="POST", body=body)
                + request(f"/?tag={after}")
            )
            answer = client.answer()
            require(answer.body == f"hello {tag}".encode(), f"first answer {answer.body!r}")
            try:
                answer = client.answer()
                require(answer.body == f"hello {after}".encode(), f"second {answer.body!r}")
                notes.append("kept")
            except (Closed, ConnectionError):
                notes.append("closed")
    require(not target.events(tag + "s", "call"), "the body was served as a request")
    return ", ".join(notes)


@row
@unless("http10", "close", because=SECOND)
def pipeline_order(target: Target) -> str | None:
    """Pipelined requests are answered in order, once each."""
    tags = [target.new_tag() for _ in range(20)]
    with target.connect() as client:
        client.send(b"".join(request(f"/?tag={tag}") for tag in tags))
        seen = [client.answer().body.decode() for _ in tags]
        require(seen == [f"hello {tag}" for tag in tags], f"order {seen}")
        require(client.is_open(0.2), "closed, or more answers than requests")
    counts = {tag: len(target.events(tag, "call")) for tag in tags}
    require(set(counts.values()) == {1}, f"calls {counts}")
    return None


@row
@unless("http10", "close", because=SECOND)
def pipeline_split_everywhere(target: Target) -> str | None:
    """Two pipelined requests with bodies, cut at every tenth byte, read the same."""
    one, two = target.new_tag(), target.new_tag()
    raw = request(f"/body?tag={one}", "Content-Length: 5", method="POST", body=b"hello") + request(
        f"/body?tag={two}", "Transfer-Encoding: chunked", method="POST", body=HELLO
    )
    for cut in range(1, len(raw), 10):
        with target.connect() as client:
            client.send(raw[:cut])
            client.is_open(0.002)
            client.send(raw[cut:])
            for _ in range(2):
                answer = client.answer()
                require(answer.status == 200, f"{answer.status} when cut at {cut}")
                require(json.loads(answer.body)["text"] == "hello", f"cut at {cut}")
    return None


# ---- bodies ------------------------------------------------------------------------------------


def _truncated(target: Target, *headers: str, body: bytes) -> str:
    """The application gets an error (or is never called), not a body that looks whole."""
    tag = target.new_tag()
    with target.connect() as client:
        client.send(request(f"/body?tag={tag}", *headers, method="POST", body=body))
        client.finish_sending()
        try:
            answer = client.answer()
            require(answer.status >= 400, f"answered {answer.status}")
            note = str(answer.status)
        except Closed:
            note = "closed"
    require(
        until(
            lambda: (
                not target.events(tag, "call")
                or bool(target.events(tag, "close"))
                or bool(target.events(tag, "body_error"))
            ),
            3,
        ),
        "the application still hangs in read()",
    )
    short = target.events(tag, "body")
    require(not short, f"the application took {short[:1]} for the whole body")
    errors = target.events(tag, "body_error")
    return f"{note}; {errors[0]['error'][:60]}" if errors else f"{note}; application not called"


@row
def body_truncated_cl(target: Target) -> str | None:
    """The client leaves before Content-Length bytes came."""
    return _truncated(target, "Content-Length: 100", body=b"x" * 50)


@row
def body_truncated_chunked(target: Target) -> str | None:
    """The client leaves before the last chunk."""
    return _truncated(target, "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n5\r\nwo")


@row
def body_truncated_no_last_chunk(target: Target) -> str | None:
    """The client leaves after a whole chunk, without the last one."""
    return _truncated(target, "Transfer-Encoding: chunked", body=b"5\r\nhello\r\n")


@row
def body_bad_chunk_silent(target: Target) -> str | None:
    """A broken chunk after a good one is an error to the application too."""
    return _truncated(target, "Transfer-Encoding: chunked", body=b"5\r\nhello\r\nzz\r\nboo\r\n")


@row
@unless("http10", because="HTTP/1.0 has no chunks")
def body_whole(target: Target) -> str | None:
    """Bodies arrive byte for byte, with a length and chunked, up to 1 MiB."""
    data = bytes(range(256)) * 4096
    pieces = b"".join(
        b"%x;ext=1\r\n%s\r\n" % (len(piece), piece)
        for piece in (data[at : at + 7919] for at in range(0, len(data), 7919))
    )
    for header, body in (
        (f"Content-Length: {len(data)}", data),
        ("Transfer-Encoding: chunked", pieces + b"0\r\n\r\n"),
    ):
        answer = exchange(target, request("/body", header, method="POST", body=body), timeout=15)
        require(answer.status == 200, f"{answer.status} for {header}")
        require(json.loads(answer.body)["length"] == len(data), f"{answer.body[:60]!r}")
    return None


@row
def body_lines(target: Target) -> str | None:
    """readline(), readlines() and iteration over wsgi.input agree with io's rules."""
    body = b"one\ntwo\nthree\nfour\nfive"
    raw = request("/lines", f"Content-Length: {len(body)}", method="POST", body=body)
    seen = json.loads(exchange(target, raw).body)
    require("".join(seen) == body.decode(), f"{seen}")
    require(seen[:2] == ["one\n", "two"] and seen[-1] == "five", f"{seen}")
    return None
