"""Options of ``osloxide serve`` that are empty, or without effect for lack of one or beside one.

Owns what the options alone tell; what depends on an address, a file or a limit is checked
where that is read. Starts nothing. Values of a configuration file of gunicorn or uWSGI are left
alone: such files say more than they use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from osloxide.cli.errors import CommandError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection

_NEEDED = (
    ("log_file_mode", "log_file"),
    ("log_file_owner", "log_file"),
    ("stats_http", "stats"),
    ("reload_extra_file", "reload"),
    ("uwsgi_option", "uwsgi_module"),
    ("forwarded_headers", "forwarded_allow_ips"),
)
"""An option, and the one without which it has no effect."""

_IN_THE_WAY = (
    ("keep_alive_timeout", "no_keep_alive"),
    ("no_access_log_for", "no_access_log"),
    ("access_log_status", "no_access_log"),
    ("access_logformat", "no_access_log"),
)
"""An option, and the one beside which it has no effect."""


_NEVER_EMPTY = (
    "certfile", "keyfile", "keyfile_passphrase_file", "ca_certs", "user", "group", "chdir", "venv",
    "pid", "log_file", "log_file_owner", "log_config", "socket_owner", "access_log",
    "access_logformat", "name", "program", "config", "reload_extra_file", "touch_reload",
    "unset_env",
)  # fmt: skip
"""Options whose empty value is that of a variable which a script or a unit file did not set. Taken
for absent, ``--user`` would leave root in charge, and ``--certfile`` passwords in clear text."""


def check(options: argparse.Namespace) -> None:
    """Refuse options without an effect.

    :raises CommandError: names the option, its value and the remedy.
    """
    for name in _NEVER_EMPTY:
        value = getattr(options, name, None)
        is_empty = value == "" or (isinstance(value, list) and "" in value)
        if is_empty and is_given(options, name):
            raise CommandError(f"{_option(name)} is empty; give it a value, or leave it out")
    if (
        is_given(options, "access_logformat")
        and options.access_logformat in ("combined", "common")
        and options.access_log is None
    ):
        raise CommandError(
            f"--access-logformat {options.access_logformat} needs --access-log; give both, or a % "
            "format with the keys of wsgi_log_format"
        )
    for name, needed in _NEEDED:
        if is_given(options, name) and not getattr(options, needed):
            raise CommandError(
                f"{shown(options, name)} has no effect without {_option(needed)}; give both, or "
                "leave it out"
            )
    for name, other in _IN_THE_WAY:
        if is_given(options, name) and is_given(options, other):
            raise CommandError(
                f"{shown(options, name)} has no effect beside {_option(other)}; leave one of them "
                "out"
            )


def without_effect(given: Collection[str]) -> list[str]:
    """Those of the options *given*, as they are written, that lack another one or have no effect
    beside one: :func:`check` would refuse them.
    """
    lacking = [name for name, needed in _NEEDED if _option(needed) not in given]
    idle = [name for name, other in _IN_THE_WAY if _option(other) in given]
    return [_option(name) for name in (*lacking, *idle) if _option(name) in given]


def is_given(options: argparse.Namespace, name: str) -> bool:
    """Whether the command line or a variable says something by that option."""
    is_of_file = name in getattr(options, "set_by_config", ())
    return getattr(options, name) not in (None, False, []) and not is_of_file


def shown(options: argparse.Namespace, name: str) -> str:
    """The option with its value, as it may be written."""
    value: Any = getattr(options, name)
    if value is True:
        return _option(name)
    if name.endswith("_mode"):
        return f"{_option(name)} {value:o}"
    if isinstance(value, list):
        value = value[0]
    if name == "access_log_status":
        value = ",".join(f"{number}xx" for number in value)
    return f"{_option(name)} {'='.join(value) if isinstance(value, tuple) else value}"


def _option(name: str) -> str:
    return "--keep-alive" if name == "keep_alive_timeout" else "--" + name.replace("_", "-")
