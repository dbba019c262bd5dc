"""The header of a request of ``eventlet.wsgi``, read without the parser of mail messages.

Owns the plain case, which all clients send: a request line of HTTP/1.0 or 1.1 and one line for each
field. Whatever else comes is left to the parser of the standard library, so what is accepted, and
how, is the same with both. Rules: http.server and email.feedparser (Library Reference).
"""

from __future__ import annotations

import re
from typing import Any

REQUEST_LINE = re.compile(rb"([!-~]+) ((?!//)[!-~]+) (HTTP/1\.[01])\r?\n")
"""Method, target and version. A target that begins with two slashes is http.server's matter."""

_FIELD = re.compile(rb"([!-9;-~]+):[ \t]*([^\r\n]*)\r?\n")
_END = (b"\r\n", b"\n", b"")
_MOST = 100
"""Lines of a header, its end included: http.client refuses more."""


def read_lines(rfile: Any) -> list[bytes]:
    """Lines up to the end of the header, which is the last; at most one more than is accepted."""
    lines: list[bytes] = []
    while len(lines) <= _MOST:
        line = rfile.readline()
        lines.append(line)
        if line in _END:
            break
    return lines


def plain_headers(lines: list[bytes], kind: Any) -> Any:
    """The fields of *lines* as a message of class *kind*; None when they are not plain."""
    if len(lines) > _MOST or lines[-1] == b"":
        return None
    headers = kind()
    for line in lines[:-1]:
        match = _FIELD.fullmatch(line)
        if match is None:
            return None
        headers.set_raw(str(match[1], "latin-1"), str(match[2], "latin-1"))
    headers.set_payload("")
    return headers
