"""uWSGI's ``log-format`` in the keys of ``osloxide serve --access-logformat``.

Owns the list of uWSGI's keys: each is honoured, or refused with the remedy. What a key of
osloxide's looks like is the business of the access log itself.

Rules: uWSGI 2.0's page "Formatting uWSGI requests logs".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_OF_ALL_LOGS = {
    "addr": "%(client_ip)s",
    "status": "%(status_code)s",
    "rsize": "%(body_length)s",
    "size": "%(body_length)s",
    "secs": "%(wall_seconds).6f",
}
"""What the log that Python writes can say as well; *size* is the body's: heads are not counted."""

_OF_NATIVE_LOG = {
    "uri": "%(target)s",
    "method": "%(method)s",
    "proto": "%(protocol)s",
    "user": "%({REMOTE_USER}e)s",
    "host": "%({host}i)s",
    "uagent": "%(user_agent)s",
    "referer": "%(referer)s",
    "cl": "%(request_length)s",
    "msecs": "%(wall_milliseconds)s",
    "micros": "%(wall_microseconds)s",
    "time": "%({%s}t)s",
    "tmsecs": "%(arrival_milliseconds)s",
    "tmicros": "%(arrival_microseconds)s",
    "ltime": "%({%d/%b/%Y:%H:%M:%S %z}t)s",
    "ctime": "%({%a %b %e %H:%M:%S %Y}t)s",
    "epoch": "%(unix_seconds)s",
    "pid": "%(process_id)s",
    "wid": "%(worker)s",
    "modifier1": "0",
    "modifier2": "0",
}
"""What the log can say that is written natively; it is taken where a format needs it."""

_VARIABLES = {"REMOTE_ADDR": "%(client_ip)s", "REMOTE_PORT": "%(client_port)s"}
"""Request variables that belong to the connection; all others are the request's own."""

_HEADS = "heads are not counted; give %(rsize), the length of the body"
_ERRORS = "the line of an answer that was cut off ends in (cut off); take it out"
_MEMORY = "osloxide status shows the memory of workers; take it out"
_REFUSED = {
    "hsize": _HEADS,
    "headers": _HEADS,
    "vars": "variables are not counted; take it out",
    "pktsize": "packets are not counted; take it out",
    "switches": "there are no green threads; take it out",
    "core": "threads have no numbers; take it out",
    "werr": _ERRORS,
    "rerr": _ERRORS,
    "ioerr": _ERRORS,
    "vsz": _MEMORY,
    "rss": _MEMORY,
    "vszM": _MEMORY,
    "rssM": _MEMORY,
}

KEYS = (*_OF_ALL_LOGS, *_OF_NATIVE_LOG, "ftime", *_REFUSED)
"""All keys of uWSGI's list but ``var.NAME`` and ``metric.NAME``."""

_DIRECTIVES = "aAbBCdDeFhHIjkmMnpRsStTyYz%"
_KEY = re.compile(r"%\(([^()]*)\)")
_REQUEST_LINE = "%(method) %(uri) %(proto)"
_FLAG_VALUES = ("", "true", "1")


def time_format(settings: Iterable[tuple[str, str]]) -> str | None:
    """What ``%(ftime)`` looks like: ``log-date``, where ``log-format-strftime`` is set."""
    found = dict(settings)
    is_asked_for = "log-format-strftime" in found or "logformat-strftime" in found
    text = found.get("log-date") or found.get("logdate") or ""
    return text if is_asked_for and text.lower() not in _FLAG_VALUES else None


def translated(text: str, of_ftime: str | None = None) -> tuple[str, bool]:
    """A format in osloxide's keys, and whether it needs the log that is written natively.

    :param of_ftime: what ``%(ftime)`` looks like; None as ``%(ltime)``, as in uWSGI.
    :raises ValueError: it has a key that osloxide does not honour.
    """
    rest = text.replace(_REQUEST_LINE, "\0")
    plain = {**_OF_ALL_LOGS, "user": "-"}
    names = {found[1] for found in _KEY.finditer(rest)}
    is_native = not names <= plain.keys()
    known = _OF_ALL_LOGS | _OF_NATIVE_LOG if is_native else plain
    pieces = _KEY.split(rest)
    # Every second piece is the name of a key.
    pieces[::2] = [piece.replace("%", "%%") for piece in pieces[::2]]
    pieces[1::2] = [_key(name, known, of_ftime) for name in pieces[1::2]]
    return "".join(pieces).replace("\0", "%(request_line)s"), is_native


def _key(name: str, known: dict[str, str], of_ftime: str | None) -> str:
    if name in known:
        return known[name]
    if name == "ftime":
        return known["ltime"] if of_ftime is None else _time(of_ftime)
    if name in _REFUSED:
        raise ValueError(f"%({name}) is not logged: {_REFUSED[name]}")
    kind, dot, rest = name.partition(".")
    if kind == "var" and rest and "}" not in rest:
        return _VARIABLES.get(rest, f"%({{{rest}}}e)s")
    if kind == "metric" and dot:
        raise ValueError(f"%({name}) is not logged: osloxide metrics offers the figures")
    raise ValueError(
        f"%({name}) is unknown; known are {', '.join([*_OF_ALL_LOGS, *_OF_NATIVE_LOG])}, ftime and "
        "var.NAME; what an application sets by uwsgi.set_logvar() it has to log itself"
    )


def _time(text: str) -> str:
    for directive in re.findall("%(.?)", text.replace("%%", "")):
        if not directive or directive not in _DIRECTIVES:
            raise ValueError(
                f"%(ftime) is log-date = {text}, of which %{directive} is unknown; known are "
                f"{', '.join(f'%{letter}' for letter in _DIRECTIVES)}"
            )
    if ")" in text or "}" in text:
        raise ValueError(f"%(ftime) is log-date = {text}; take its brackets out")
    return f"%({{{text}}}t)s"
