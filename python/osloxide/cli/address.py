"""Addresses to listen on, as command lines write them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Inherited:
    """An inherited socket: its number, or systemd's name."""

    name: str


def parse_listener(text: str) -> tuple[str, int] | str | Inherited:
    """Like :func:`parse`; also ``fd://NUMBER`` or ``fd://NAME``.

    :raises argparse.ArgumentTypeError: *text* is no address.
    """
    if text.startswith("fd://"):
        if name := text.removeprefix("fd://"):
            return Inherited(name)
        raise argparse.ArgumentTypeError("fd:// needs a number or a name, for example fd://3")
    return parse(text)


def parse(text: str) -> tuple[str, int] | str:
    """``(host, port)``, or the path of a unix socket, an abstract one with a NUL in front.

    :raises argparse.ArgumentTypeError: *text* is neither.
    """
    if text.startswith("unix:"):
        if path := text.removeprefix("unix:"):
            return "\0" + path[1:] if path.startswith("@") else path
        raise argparse.ArgumentTypeError("unix: needs a path, for example unix:/run/app.sock")
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no address; give HOST:PORT with a port from 0 to 65535, or unix:PATH"
        )
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise argparse.ArgumentTypeError(f"{text!r}: write an IPv6 address in brackets, [::1]:8000")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - what ":8000" means everywhere
