"""What trusted proxies say of the client, in headers of the request.

Owns whom to believe and what of it reaches the application's environ. No header is believed unless
``forwarded_allow_ips`` names its sender: a client can send these headers as well.

Rules: RFC 7239 (``Forwarded``); the headers ``X-Forwarded-For``, ``-Proto``, ``-Host`` and
``-Port`` as haproxy, nginx and Apache send them; the option's name and ``*`` are gunicorn's and
uvicorn's. An address list is read from its end, where the nearest proxy wrote: the first address
that is no proxy of ours is the client's, and what stands in front of it is anyone's claim.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from osloxide.server.numbers import whole_number

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

HEADERS = ("x-forwarded", "forwarded")
"""What ``--forwarded-headers`` chooses from: a proxy sets one and passes the other on unread."""

_HOST = re.compile(r"(?:[0-9A-Za-z._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PAIR = re.compile(
    r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)|"((?:[^"\\]|\\.)*)")\s*"""
)


class Trusted:
    """The proxies that are believed.

    :param text: addresses and networks separated by commas; ``unix`` for the peers of unix sockets,
        ``*`` for every peer.
    :raises ValueError: an item is none of these.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._all = self._unix = False
        for item in (word.strip() for word in text.split(",")):
            if item == "*":
                self._all = True
            elif item == "unix":
                self._unix = True
            elif item:
                try:
                    self._networks.append(ipaddress.ip_network(item, strict=False))
                except ValueError:
                    raise ValueError(
                        f"{item!r} is no address, network, unix or *; give for example "
                        "127.0.0.1,10.0.0.0/8"
                    ) from None

    def names_any(self) -> bool:
        """Whether there is a proxy at all that is believed."""
        return bool(self._networks or self._all or self._unix)

    def names_unix_alone(self) -> bool:
        """Whether no peer that has an address is believed."""
        return self._unix and not (self._networks or self._all)

    def ranges(self) -> list[tuple[Address, Address]]:
        """First and last address of each network."""
        networks = self._networks
        if self._all:
            networks = [ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")]
        return [(network[0], network[-1]) for network in networks]

    def has_peer(self, address: str) -> bool:
        """Whether the other end of a connection, ``REMOTE_ADDR``, is believed."""
        if self._all:
            return True
        if address in ("", "unix"):
            return self._unix
        found = _address(address)
        return found is not None and self.has(found)

    def has(self, address: Address) -> bool:
        """Whether *address* is a proxy of ours."""
        return self._all or any(address in network for network in self._networks)


def believed(application: Application, trusted: Trusted, headers: str) -> Application:
    """*application*, told of the client what trusted proxies say.

    :param headers: one of :data:`HEADERS`.
    """
    read = _from_forwarded if headers == "forwarded" else _from_x_forwarded

    def told(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if trusted.has_peer(environ.get("REMOTE_ADDR", "")):
            _tell(environ, read(environ), trusted)
        return application(environ, start_response)

    return told


class _Hop:
    """What one proxy says of the request that it received."""

    def __init__(self, client: str = "", scheme: str = "", host: str = "", port: str = "") -> None:
        self.client, self.scheme, self.host, self.port = client, scheme, host, port


def _tell(environ: dict[str, Any], hops: Sequence[_Hop], trusted: Trusted) -> None:
    """Set what *hops*, the nearest proxy's last, say up to the first that nobody vouches for."""
    for hop in reversed(hops):
        # This hop was written by a proxy that is trusted: its scheme and host are the client's so
        # far, and so is its address unless that is another proxy of ours.
        if hop.scheme.lower() in ("http", "https"):
            environ["wsgi.url_scheme"] = hop.scheme.lower()
            if hop.scheme.lower() == "https":
                environ["HTTPS"] = "on"
            else:
                environ.pop("HTTPS", None)
        if _HOST.fullmatch(hop.host):
            environ["HTTP_HOST"] = hop.host
        if _is_port(hop.port):
            environ["SERVER_PORT"] = hop.port
        address, port = _split(hop.client)
        if address is None:
            return  # "unknown", an obfuscated name, or nothing: the address stays the proxy's
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = str(address), port
        if not trusted.has(address):
            return


def _from_x_forwarded(environ: dict[str, Any]) -> list[_Hop]:
    """Scheme, host and port of the nearest proxy, whatever the length of the address list.

    Each proxy appends to the addresses, and replaces or appends to the rest.
    """
    clients = environ.get("HTTP_X_FORWARDED_FOR", "").split(",")
    hops = [_Hop(client.strip()) for client in clients]
    nearest = hops[-1]
    nearest.scheme = _last(environ, "HTTP_X_FORWARDED_PROTO")
    nearest.host = _last(environ, "HTTP_X_FORWARDED_HOST")
    nearest.port = _last(environ, "HTTP_X_FORWARDED_PORT")
    return hops


def _from_forwarded(environ: dict[str, Any]) -> list[_Hop]:
    """The elements of ``Forwarded``; those behind the last malformed one alone."""
    hops: list[_Hop] = []
    for element in _elements(environ.get("HTTP_FORWARDED", ""), ","):
        pairs = [_PAIR.fullmatch(pair) for pair in _elements(element, ";") if pair.strip()]
        if not all(pairs):
            hops = []
            continue
        values = {
            pair[1].lower(): pair[2] or re.sub(r"\\(.)", r"\1", pair[3] or "")
            for pair in pairs
            if pair is not None
        }
        hops.append(_Hop(values.get("for", ""), values.get("proto", ""), values.get("host", "")))
    return hops


def _elements(text: str, separator: str) -> list[str]:
    """*text* cut at each *separator* that does not stand in a quoted string.

    Looks at each character once, or twice: a client chooses what stands there. A quotation mark
    that nothing closes begins no string, and neither do those behind it. Blank items are none
    (RFC 9110 section 5.6.1).
    """
    begins, start, opened = [0], 0, -1
    marks = re.compile(rf'\\.|["{separator}]')
    while (mark := marks.search(text, start)) is not None:
        start = mark.end()
        if mark[0] == '"':
            opened = mark.start() if opened < 0 else -1
        elif opened < 0 and mark[0] == separator:
            begins.append(start)
        elif opened < 0:
            start = mark.start() + 1  # a backslash escapes in strings alone
    if opened >= 0:
        begins += [mark.end() for mark in re.finditer(separator, text) if mark.start() > opened]
    ends = [*(begin - 1 for begin in begins[1:]), len(text)]
    found = (text[begin:end] for begin, end in zip(begins, ends, strict=True))
    return [element for element in found if element.strip()]


def _last(environ: dict[str, Any], key: str) -> str:
    text: str = environ.get(key, "")
    return text.rpartition(",")[2].strip()


def _split(text: str) -> tuple[Address | None, str]:
    """Address and port of ``192.0.2.1:80`` or ``[2001:db8::1]:80``, each with or without a port."""
    if (found := _address(text)) is not None:
        return found, ""
    host, _, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    return _address(host.removeprefix("[").removesuffix("]")), port if _is_port(port) else ""


def _is_port(text: str) -> bool:
    return bool(whole_number(text, 65535))


def _address(text: str) -> Address | None:
    if "%" in text:
        # A zone of IPv6 means something to the host that wrote it alone, and may be any text.
        return None
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return found if mapped is None else mapped
