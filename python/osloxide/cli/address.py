"""Addresses to listen on, as command lines and messages write them."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from osloxide.server.numbers import whole_number


def shown(host: str, port: int) -> str:
    """``127.0.0.1:8774``, ``[::]:8774``, or the path of a unix socket, whose *port* is 0.

    An abstract name, which has a NUL in front, has an ``@`` there.
    """
    if not port:
        return host.replace("\0", "@", 1)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True)
class Inherited:
    """An inherited socket: its number, or systemd's name."""

    name: str


@dataclass(frozen=True)
class Listener:
    """Where to listen, and what is spoken there.

    :param place: ``(host, port)``, the path of a unix socket, or an inherited socket.
    :param scheme: ``"http"``, ``"https"``, ``"uwsgi"``, or None: HTTPS where there is a
        certificate, else HTTP.
    """

    place: tuple[str, int] | str | Inherited
    scheme: str | None = None


SCHEMES = ("http", "https", "uwsgi")
_LAST_DESCRIPTOR = 2**31 - 1
"""The largest number that a descriptor may have."""


def parse_listener(text: str) -> Listener:
    """Like :func:`parse`; also ``fd://NUMBER`` or ``fd://NAME``, any of them behind a scheme or ``tcp://``.

    :raises argparse.ArgumentTypeError: *text* is no address.
    """
    scheme, mark, place = text.partition("://")
    if mark and scheme.lower() in SCHEMES:
        # In either case (RFC 3986 section 3.1).
        return Listener(_parse_place(place), scheme.lower())
    if mark and scheme.lower() == "tcp":
        return Listener(_parse_place(place))  # as gunicorn has it
    if mark and re.fullmatch("[A-Za-z]+", scheme) and scheme not in ("fd", "unix"):
        raise argparse.ArgumentTypeError(
            f"{text!r}: {scheme} is not spoken; give {', '.join(f'{it}://' for it in SCHEMES)} or "
            "no scheme"
        )
    return Listener(_parse_place(text))


def _parse_place(text: str) -> tuple[str, int] | str | Inherited:
    if text.startswith("fd://"):
        name = text.removeprefix("fd://")
        is_number = name.isascii() and name.isdigit()
        if is_number and whole_number(name, _LAST_DESCRIPTOR) is None:
            raise argparse.ArgumentTypeError(f"{text!r}: no descriptor has such a number")
        if name:
            return Inherited(name)
        raise argparse.ArgumentTypeError("fd:// needs a number or a name, for example fd://3")
    return parse(text)


def parse(text: str) -> tuple[str, int] | str:
    """``(host, port)``, or the path of a unix socket, an abstract one with a NUL in front.

    :raises argparse.ArgumentTypeError: *text* is neither.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if path == "@":
            raise argparse.ArgumentTypeError("unix:@ needs a name, for example unix:@app")
        if path:
            return "\0" + path[1:] if path.startswith("@") else path
        raise argparse.ArgumentTypeError("unix: needs a path, for example unix:/run/app.sock")
    host, colon, digits = text.rpartition(":")
    port = whole_number(digits, 65535)
    if not colon or port is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no address; give HOST:PORT with a port from 0 to 65535, or unix:PATH"
        )
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise argparse.ArgumentTypeError(f"{text!r}: write an IPv6 address in brackets, [::1]:8000")
    return host.strip("[]") or "0.0.0.0", port  # noqa: S104 - what ":8000" means everywhere
