"""Rows about clients that flood, vanish, stall or idle, and about the access log.

Bounds are generous on purpose: a row fails because something is unbounded, not because a machine
is slow. Rules: RFC 9112 section 9.5 (timeouts), RFC 9110 section 17 (security).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from conformance.target import Target, until
from conformance.verdict import (
    CROWDS,
    SHORT,
    Broken,
    exchange,
    require,
    row,
    settles,
    short_timeout,
    still_serves,
    unless,
)
from conformance.wire import Closed, Connection, Malformed, request

MIB = 1 << 20

# ---- limits ------------------------------------------------------------------------------------


def _flood(target: Target, head: bytes, piece: bytes, limit: int) -> tuple[str, int]:
    """Send *head*, then *piece* for ever: what ended it, after how many bytes at most *limit*."""
    sent = 0
    before = target.memory()
    with target.connect(timeout=3.0) as client:
        try:
            client.send(head)
            while sent < limit:
                client.send(piece)
                sent += len(piece)
                if not client.is_open():
                    break
            grown = target.memory() - before
            require(grown < 64 * MIB, f"grew by {grown // MIB} MiB for {sent // MIB} MiB sent")
            answer = client.answer()
        except TimeoutError:
            raise Broken(f"took {sent / MIB:.1f} MiB and neither answered nor closed") from None
        except (Closed, ConnectionError):
            # The server stopped reading and closed while more was on its way.
            return "closed", sent
        except Malformed as exc:
            raise Broken(f"malformed answer: {exc}") from exc
        require(400 <= answer.status < 500, f"answered {answer.status}")
        try:
            client.rest(3.0)
        except TimeoutError:
            raise Broken(f"answered {answer.status}, not closed") from None
        return str(answer.status), sent


def _limited(target: Target, head: bytes, piece: bytes, tag: str, limit: int = 16 * MIB) -> str:
    how, sent = _flood(target, head, piece, limit)
    require(not target.events(tag, "body"), "the application got a body")
    still_serves(target)
    return f"{how} after {sent / 1024:.0f} KiB"


@row
def lim_url_64k(target: Target) -> str | None:
    """A target of 64 KiB is refused and the connection closed."""
    tag = target.new_tag()
    with target.connect() as client:
        with contextlib.suppress(ConnectionError):
            client.send(request(f"/env?tag={tag}&x=" + "u" * 65536))
        try:
            answer = client.answer()
        except Closed:
            require(not target.events(tag, "call"), "the application was called")
            return "closed"
        require(400 <= answer.status < 500, f"answered {answer.status}")
        with contextlib.suppress(Closed):
            client.rest(3.0)
        require(not target.events(tag, "call"), "the application was called")
        return str(answer.status)


@row
def lim_header_1m(target: Target) -> str | None:
    """A header of 1 MiB (and on) is refused with bounded memory."""
    tag = target.new_tag()
    head = f"GET /env?tag={tag} HTTP/1.1\r\nHost: localhost\r\nX-Big: ".encode()
    note = _limited(target, head, b"x" * 16384, tag, MIB)
    require(not target.events(tag, "call"), "the application was called")
    return note


@row
def lim_headers_10k(target: Target) -> str | None:
    """Ten thousand headers are refused."""
    tag = target.new_tag()
    head = f"GET /env?tag={tag} HTTP/1.1\r\nHost: localhost\r\n".encode()
    headers = b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(10000))
    with target.connect() as client:
        try:
            client.send(head + headers + b"\r\n")
            answer = client.answer()
        except (Closed, ConnectionError):
            require(not target.events(tag, "call"), "the application was called")
            return "closed"
        require(400 <= answer.status < 500, f"answered {answer.status}")
    require(not target.events(tag, "call"), "the application was called")
    return str(answer.status)


@row
def lim_chunk_line_endless(target: Target) -> str | None:
    """A chunk-size line without an end is cut off."""
    tag = target.new_tag()
    head = request(f"/body?tag={tag}", "Transfer-Encoding: chunked", method="POST", body=b"5;")
    return _limited(target, head, b"e" * 16384, tag)


@row
def lim_chunk_ext_total(target: Target) -> str | None:
    """Tiny chunks with fat extensions are cut off (CVE-2023-39326)."""
    tag = target.new_tag()
    head = request(f"/body?tag={tag}", "Transfer-Encoding: chunked", method="POST")
    return _limited(target, head, (b"1;" + b"e" * 4000 + b"\r\nx\r\n") * 4, tag)


@row
def lim_trailers_endless(target: Target) -> str | None:
    """Trailers without an end are cut off."""
    tag = target.new_tag()
    head = request(f"/body?tag={tag}", "Transfer-Encoding: chunked", method="POST", body=b"0\r\n")
    return _limited(target, head, b"X-Trailer: one\r\n" * 1024, tag)


@row
def lim_unread_body_endless(target: Target) -> str | None:
    """An unread body is not swallowed for ever to save a connection."""
    tag = target.new_tag()
    head = request(f"/?tag={tag}", "Content-Length: 1099511627776", method="POST")
    with target.connect(timeout=3.0) as client:
        sent = 0
        with contextlib.suppress(ConnectionError, TimeoutError):
            client.send(head)
            while sent < 256 * MIB:
                client.send(b"x" * 65536)
                sent += 65536
        require(sent < 256 * MIB, f"read {sent // MIB} MiB that nobody asked for")
    still_serves(target)
    return f"stopped after {sent / MIB:.1f} MiB"


# ---- clients that vanish -----------------------------------------------------------------------


@row
def client_half_close(target: Target) -> str | None:
    """A client that shut down its sending side gets the whole answer."""
    with target.connect() as client:
        client.send(request("/nolength"))
        client.finish_sending()
        answer = client.answer()
        require(answer.body == b"one two three", f"{answer.body!r}")
    return None


@row
def client_gone_close_called(target: Target) -> str | None:
    """A client that vanishes in the middle of a big answer: close() is called, no fd is kept."""
    still_serves(target)
    fds = target.fds()
    tags = [target.new_tag() for _ in range(20)]
    for number, tag in enumerate(tags):
        client = target.connect(receive_buffer=4096)
        client.send(request(f"/big?mib=64&tag={tag}"))
        require(client.head().status == 200, "no answer")
        if number % 2:
            client.reset()
        else:
            client.sock.close()
    missing = [tag for tag in tags if not target.saw("close", tag, 8)]
    require(not missing, f"close() was not called for {len(missing)} of {len(tags)}")
    settles(target, fds)
    still_serves(target)
    return None


@row
def client_gone_idle_stream(target: Target) -> str | None:
    """A client that vanishes from a slow stream is noticed at the next item."""
    still_serves(target)
    fds = target.fds()
    tag = target.new_tag()
    client = target.connect()
    client.send(request(f"/drip?tag={tag}"))
    require(client.head().status == 200, "no answer")
    client.reset()
    require(target.saw("close", tag, 5), "the stream goes on 5 s after its client left")
    settles(target, fds)
    return None


@row
def app_yield_is_sent(target: Target) -> str | None:
    """What the application yields is sent before it is asked for more (PEP 3333)."""
    release = target.directory / f"release-{target.new_tag()}"
    with target.connect() as client:
        client.send(request(f"/hold?release={release}"))
        try:
            client.head(3)
            deadline = time.monotonic() + 3
            while b"first\n" not in client.unread:
                client._more(deadline)
        except TimeoutError:
            raise Broken("the first item is held back while the application waits") from None
        finally:
            release.touch()
    return None


@row
@unless("http10", "slow-reader", "slow-writer", "close", because=CROWDS)
@short_timeout
def client_stops_reading(target: Target) -> str | None:
    """A client that stops reading costs bounded memory, hinders no other client and is cut off."""
    still_serves(target)
    fds, memory = target.fds(), target.memory()
    tags = [target.new_tag() for _ in range(20)]
    clients = [target.connect(receive_buffer=4096) for _ in tags]
    try:
        for client, tag in zip(clients, tags, strict=True):
            client.send(request(f"/big?mib=64&tag={tag}"))
        require(all(target.saw("call", tag) for tag in tags), "not all reached the application")
        still_serves(target, 2)
        grown = target.memory() - memory
        require(grown < 200 * MIB, f"grew by {grown // MIB} MiB for {len(tags)} stalled clients")
        gone = until(lambda: all(target.events(tag, "close") for tag in tags), SHORT * 3 + 5, 0.2)
        note = "cut off" if gone else "kept"
    finally:
        for client in clients:
            client.reset()
    settles(target, fds)
    return note


@row
@unless("http10", "slow-reader", "slow-writer", "close", because=CROWDS)
def client_rst_storm(target: Target) -> str | None:
    """500 clients that reset at once leave no fd, no thread and no traceback behind."""
    still_serves(target)
    fds, log = target.fds(), len(target.log())
    for _ in range(5):
        clients = [target.connect() for _ in range(100)]
        for number, client in enumerate(clients):
            tag = target.new_tag()
            if number % 3 == 0:
                client.send(request(f"/?tag={tag}"))
            elif number % 3 == 1:
                client.send(request(f"/body?tag={tag}", "Content-Length: 50", method="POST"))
        for client in clients:
            client.reset()
    still_serves(target, 5)
    settles(target, fds)
    said = target.log()[log:]
    require("Traceback" not in said, f"tracebacks in the log: {said.count('Traceback')}")
    return None


# ---- clients that stall ------------------------------------------------------------------------

CROWD = 200


def _crowd(target: Target, start: bytes, drop: bytes) -> str:
    """CROWD clients send *start* and then *drop* every half second.

    Meanwhile a normal request is answered within a second, again and again; within the timeout
    (with a margin) the crowd is cut off although each of them keeps sending.
    """
    still_serves(target)
    fds = target.fds()
    crowd = [target.connect() for _ in range(CROWD)]
    slowest = 0.0
    cut = 0
    try:
        for client in crowd:
            client.send(start)
        deadline = time.monotonic() + SHORT * 3 + 6
        alive = list(crowd)
        while alive and time.monotonic() < deadline:
            began = time.monotonic()
            tag = target.new_tag()
            try:
                answer = exchange(target, request(f"/?tag={tag}"), timeout=3)
            except (TimeoutError, Closed, ConnectionError) as exc:
                raise Broken(f"a normal request got {type(exc).__name__}, {cut} cut off") from exc
            require(answer.status == 200, f"a normal request got {answer.status}")
            slowest = max(slowest, time.monotonic() - began)
            require(slowest < 1.0, f"a normal request took {slowest:.1f} s")
            alive = list(_send_each(alive, drop))
            cut = CROWD - len(alive)
            time.sleep(max(0.0, 0.5 - (time.monotonic() - began)))
        require(not alive, f"{len(alive)} of {CROWD} slow clients are still connected")
    finally:
        for client in crowd:
            client.sock.close()
    settles(target, fds)
    return f"slowest normal request {slowest * 1000:.0f} ms"


def _send_each(clients: list[Connection], drop: bytes) -> Iterator[Connection]:
    """Send *drop* on each; yield those whose server has neither answered nor closed."""
    for client in clients:
        try:
            if not client.is_open():
                continue
            client.send(drop)
        except OSError:
            continue
        yield client


@row
@unless("http10", "slow-reader", "slow-writer", "close", because=CROWDS)
@short_timeout
def slow_headers(target: Target) -> str | None:
    """200 clients that drip a header hinder no other client and are cut off at the timeout."""
    return _crowd(target, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"x")


@row
@unless("http10", "slow-reader", "slow-writer", "close", because=CROWDS)
@short_timeout
def slow_body(target: Target) -> str | None:
    """200 clients that drip a body hinder no other client and are cut off at the timeout."""
    start = request("/body", "Content-Length: 1000", method="POST", body=b"x")
    return _crowd(target, start, b"x")


@row
@unless("http10", "slow-reader", "slow-writer", "close", because=CROWDS)
@short_timeout
def slow_chunk_body(target: Target) -> str | None:
    """200 clients that drip chunks hinder no other client and are cut off at the timeout."""
    start = request("/body", "Transfer-Encoding: chunked", method="POST", body=b"1\r\nx\r\n")
    return _crowd(target, start, b"1\r\nx\r\n")


@row
@unless("http10", "slow-reader", "slow-writer", "close", because=CROWDS)
@short_timeout
def slow_nothing(target: Target) -> str | None:
    """200 clients that connect and say nothing hinder no other client and are cut off."""
    return _crowd(target, b"", b"")


@row
@unless("http10", "slow-reader", "slow-writer", "close", because=CROWDS)
def idle_keepalive(target: Target) -> str | None:
    """1,000 idle connections stay, cost no CPU and no threads, and others are served."""
    still_serves(target)
    fds, threads = target.fds(), target.threads()
    idle: list[Connection] = []
    try:
        for _ in range(1000):
            client = target.connect()
            idle.append(client)
            client.send(request("/"))
            require(client.answer().status == 200, "not answered")
        still_serves(target, 1)
        before, began = target.cpu(), time.monotonic()
        time.sleep(4)  # the thing measured: what idling costs
        share = (target.cpu() - before) / (time.monotonic() - began)
        kept = sum(client.is_open() for client in idle)
        require(kept == len(idle), f"{len(idle) - kept} of {len(idle)} were closed within 4 s")
        require(share < 0.02, f"{share:.1%} CPU while idle")
        grown = target.threads() - threads
        require(grown < 20, f"{grown} more threads for idle connections")
        for client in idle[::100]:
            client.send(request("/"))
            require(client.answer().status == 200, "an idle connection does not work any more")
    finally:
        for client in idle:
            client.sock.close()
    settles(target, fds)
    return f"{share:.1%} CPU"


# ---- access log --------------------------------------------------------------------------------


@row
def log_injection(target: Target) -> str | None:
    """No client can write a control byte or a line of its own into the log."""
    still_serves(target)
    before = len(target.log())
    forged = "127.0.0.1 - - FORGED"
    escapes = (
        request(f"/%0d%0a{forged.replace(' ', '%20')}?x=%0a%1b[31m"),
        request("/\x1b[31m"),
        request(f"/a\r{forged}"),
        request("/", f"User-Agent: a\x1b[31m\r{forged}"),
        request("/", f"X-Forwarded-For: 1.2.3.4\x1b[31m{forged}", "Referer: \x1b]0;x\x07"),
        request("/", "X-Forwarded-For: 1.2.3.4\x85\x9b31m\u00a0x"),
        request("/", method="G\x1bET"),
        request("/", "Authorization: Basic Zm9vCkZPUkdFRDp4"),
    )
    for raw in escapes:
        with target.connect() as client:
            client.send(raw)
            with contextlib.suppress(Closed, Malformed, TimeoutError):
                client.answer(timeout=2)
    still_serves(target)
    said = target.log()[before:]
    control = sorted({c for c in said if (c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f"})
    require(not control, f"control bytes in the log: {control}")
    lines = [line for line in said.split("\n") if line.startswith((forged, "FORGED"))]
    require(not lines, f"forged lines: {lines[:2]}")
    return None if said else "nothing is logged"
