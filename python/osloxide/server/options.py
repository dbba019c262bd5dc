"""What a service's configuration file says of the bounds of its server: group ``[osloxide]``.

Owns the options that ``osloxide serve`` has on its command line and oslo.service has not, their
checks, and which of them exclude or need each other. Starts nothing; :mod:`osloxide.wsgi` asks for
them when a server is made.

Rules: docs/options.md; the meaning of each option is that of ``osloxide serve`` (docs/serve.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from oslo_config import cfg, types

from osloxide._typing import override
from osloxide.server import forwarded
from osloxide.server.numbers import whole_number

GROUP = "osloxide"

#: Most seconds of a timeout: beyond a century a clock has no instant.
LONGEST_TIMEOUT = 3_155_760_000
#: Most of what the kernel, or this process, counts in an int of C.
MOST = 2**31 - 1
_LARGEST = 2**63 - 1


def check_number(
    option: str, value: Any, least: int, most: int = _LARGEST, otherwise: str = ""
) -> None:
    """Refuse what is no whole number from *least* to *most*.

    :param option: what the operator, or the caller, calls it. One that stands in a configuration
        file without a value is ``None``.
    :param otherwise: what else could be meant by a number that is too large.
    :raises ValueError: names the option, the value and the remedy.
    """
    if value is None:
        raise ValueError(f"{option} is empty; give at least {least}, or leave it out")
    if not isinstance(value, int):
        raise ValueError(f"{option} is {value!r}; give a whole number of at least {least}")
    if value < least:
        raise ValueError(f"{option} is {value}; give at least {least}")
    if value > most:
        remedy = f", or {otherwise}" if otherwise else ""
        raise ValueError(f"{option} is {value}; give at most {most}{remedy}")


class _Checked(types.ConfigType):
    """A value as *convert* makes it of a text; an empty one counts as not given.

    *convert* raises ValueError with the value and what to give instead.
    """

    def __init__(self, type_name: str, convert: Callable[[str], Any]) -> None:
        super().__init__(type_name=type_name)
        self._convert = convert

    @override
    def __call__(self, value: Any) -> Any:
        text = str(value).strip()
        return self._convert(text) if text else None

    @override
    def _formatter(self, value: Any) -> str:
        return str(value)

    @override
    def __repr__(self) -> str:
        return str(self.type_name)

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Checked) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def _count(least: int, most: int = _LARGEST) -> _Checked:
    def convert(text: str) -> int:
        found = whole_number(text, most)
        if found is None or found < least:
            raise ValueError(
                f"{text!r} is no whole number from {least} to {most}; give one, or leave the "
                "option out"
            )
        return found

    return _Checked("integer", convert)


def _proxies(text: str) -> str:
    forwarded.Trusted(text)
    return text


def _headers(text: str) -> str:
    if text.lower() not in forwarded.HEADERS:
        raise ValueError(f"{text!r} is neither of {' and '.join(forwarded.HEADERS)}; give one")
    return text.lower()


OPTIONS = [
    cfg.Opt(
        "max_connections",
        type=_count(1),
        help="Most connections of a process, all its servers together; the one that is idle for "
        "longest is closed for a new one. Unset: the limit of open files, less a reserve.",
    ),
    cfg.Opt(
        "keep_alive_timeout",
        type=_count(1, LONGEST_TIMEOUT),
        help="Seconds for which a connection may be idle between two requests. Unset: "
        "client_socket_timeout.",
    ),
    cfg.Opt(
        "max_request_body",
        type=_count(0),
        help="Longest body of a request, in bytes; longer ones are answered 413. Unset or 0: no "
        "limit of the server's.",
    ),
    cfg.Opt(
        "max_request_headers",
        type=_count(1),
        help="Most header lines of a request; more are answered 431. Unset: 100.",
    ),
    cfg.Opt(
        "max_waiting_requests",
        type=_count(0),
        help="Requests of a process that may wait while as many as the pool has threads are "
        "answered; more are answered 503 with Retry-After. 0: none waits. Unset: any number.",
    ),
    cfg.Opt(
        "request_timeout",
        type=_count(0, LONGEST_TIMEOUT),
        help="Seconds after which a request is answered 504 with which the application is busy; "
        "its thread is logged, interrupted and replaced. Unset or 0: never.",
    ),
    cfg.Opt(
        "max_stuck_threads",
        type=_count(1),
        help="Replace a worker in which so many threads do not come back from requests that "
        "request_timeout has ended. Unset: a tenth of the pool's threads, at least 1.",
    ),
    cfg.Opt(
        "slow_client_share",
        type=_count(1, 100),
        help="Percent of the pool's threads that clients which take or send slowly may hold while "
        "requests wait for a thread. 100: such clients are never cut off for others. Unset: 50.",
    ),
    cfg.Opt(
        "max_unsent",
        type=_count(0),
        help="Most bytes of memory of complete answers whose clients are slow to take them; beyond "
        "that, threads wait for the clients, or the slowest clients are cut off where threads are "
        "needed. Unset: 128 MiB.",
    ),
    cfg.BoolOpt(
        "proxy_protocol",
        help="Each connection begins with a header of the PROXY protocol (haproxy's send-proxy or "
        "send-proxy-v2), whose address is the client's. Unset: false.",
    ),
    cfg.Opt(
        "proxy_allow_from",
        type=_Checked("list of addresses", _proxies),
        help="Proxies that may connect where proxy_protocol is on: addresses and networks "
        "separated by commas, * for all. Unset: 127.0.0.1,::1; unix sockets always may.",
    ),
    cfg.Opt(
        "forwarded_allow_ips",
        type=_Checked("list of addresses", _proxies),
        help="Proxies whose word on the client's address, scheme and host is taken: addresses and "
        "networks separated by commas, unix for unix sockets, * for all. Unset: none.",
    ),
    cfg.Opt(
        "forwarded_headers",
        type=_Checked("string", _headers),
        help="Which headers these proxies set: x-forwarded (X-Forwarded-For, -Proto, -Host and "
        "-Port) or forwarded (RFC 7239). Unset: x-forwarded.",
    ),
]
"""None of them has a default: what is not set is as the server has it."""

_ATTRIBUTES = {
    "max_connections": "max_connections",
    "keep_alive_timeout": "keep_alive_timeout",
    "max_request_body": "max_body",
    "max_request_headers": "max_headers",
    "max_waiting_requests": "max_waiting",
    "request_timeout": "request_timeout",
    "max_stuck_threads": "max_stuck_threads",
    "slow_client_share": "slow_client_share",
    "max_unsent": "max_unsent",
}
"""Option, and the attribute of :class:`osloxide.wsgi.Server` that it sets."""
_NONE_FOR_ZERO = ("max_request_body", "request_timeout")


def list_opts() -> list[tuple[str, list[Any]]]:
    """List :data:`OPTIONS` with their group, as ``oslo-config-generator`` asks for them."""
    return [(GROUP, copy.deepcopy(OPTIONS))]


def attributes(conf: Any, *, is_unix: bool = False) -> dict[str, Any]:
    """What *conf* sets, by attribute of :class:`osloxide.wsgi.Server`.

    Registers the options; what is not set is not in the result.

    :param is_unix: whether the server listens on a unix socket.
    :raises ValueError: a value is impossible, or an option needs another one; the text names
        option, value and remedy.
    """
    conf.register_opts(OPTIONS, group=GROUP)
    given = {option.name: _value(conf, option.name) for option in OPTIONS}
    _check(given)
    _check_beside(conf, given, is_unix=is_unix)
    found = {
        attribute: None if name in _NONE_FOR_ZERO and not given[name] else given[name]
        for name, attribute in _ATTRIBUTES.items()
        if given[name] is not None
    }
    if given["proxy_protocol"]:
        try:
            found["proxies"] = proxies(given["proxy_allow_from"])
        except ValueError as error:
            raise ValueError(f"option proxy_allow_from of [{GROUP}]: {error}") from None
    if given["forwarded_allow_ips"] is not None:
        found["forwarded_from"] = forwarded.Trusted(given["forwarded_allow_ips"])
        found["forwarded_headers"] = given["forwarded_headers"] or forwarded.HEADERS[0]
    return found


def proxies(text: str | None) -> list[tuple[forwarded.Address, forwarded.Address]]:
    """Ranges of the proxies that may connect; ``None`` is this host's own addresses.

    :raises ValueError: *text* admits no proxy, or is no list of addresses.
    """
    trusted = forwarded.Trusted("127.0.0.1,::1" if text is None else text)
    if not trusted.names_any():
        raise ValueError(
            f"{text!r} names no proxy, so none could connect; give addresses and networks, or * "
            "for all"
        )
    return trusted.ranges()


def _value(conf: Any, name: str) -> Any:
    try:
        return conf[GROUP][name]
    except ValueError as error:
        # oslo.config's own text has neither the group nor, for booleans, a remedy.
        reason = error.__context__ or error
        remedy = "; give true or false" if isinstance(_BY_NAME[name], cfg.BoolOpt) else ""
        raise ValueError(f"option {name} of [{GROUP}]: {reason}{remedy}") from error


_BY_NAME = {option.name: option for option in OPTIONS}


def _check_beside(conf: Any, given: dict[str, Any], *, is_unix: bool) -> None:
    """Refuse what has no effect, or lets no client in, with what else the server is made of."""
    keep_alive, proxies_text = given["keep_alive_timeout"], given["proxy_allow_from"]
    if keep_alive is not None and not conf.wsgi_keep_alive:
        raise ValueError(
            f"option keep_alive_timeout of [{GROUP}] is {keep_alive} and has no effect beside "
            "wsgi_keep_alive = false; set that to true, or leave keep_alive_timeout out"
        )
    if (
        given["proxy_protocol"]
        and proxies_text is not None
        and not is_unix
        and forwarded.Trusted(proxies_text).names_unix_alone()
    ):
        raise ValueError(
            f"option proxy_allow_from of [{GROUP}] is {proxies_text} and admits unix sockets "
            "alone, so no proxy could connect to this server, which listens on TCP; add the "
            "addresses of proxies"
        )


def _check(given: dict[str, Any]) -> None:
    for name, needed in (
        ("proxy_allow_from", "proxy_protocol"),
        ("forwarded_headers", "forwarded_allow_ips"),
        ("max_stuck_threads", "request_timeout"),
    ):
        if given[name] is not None and not given[needed]:
            raise ValueError(
                f"option {name} of [{GROUP}] is {given[name]} and has no effect without {needed}; "
                f"set {needed} too, or leave {name} out"
            )
