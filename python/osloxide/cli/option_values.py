"""Values of options of ``osloxide serve`` that stand elsewhere than on the command line.

Owns how a text of the environment, or of a configuration file, becomes what argparse would make of
it. Declares no option.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_REPEATED = (
    "bind", "env", "unset_env", "reload_extra_file", "touch_reload", "uwsgi_option", "add_header",
    "remove_header", "static_map", "no_access_log_for",
)  # fmt: skip
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def value_of(action: argparse.Action, text: str) -> Any:
    """What *text*, which is no word of the command line, makes of an option.

    :raises ValueError: the option refuses it.
    """
    convert: Callable[[str], Any] = action.type if callable(action.type) else str
    if action.nargs == 0:
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError(f"{text!r} is neither true nor false; give 1 or 0")
        return text.lower() in _TRUE
    if action.choices is not None and text not in action.choices:
        raise ValueError(f"{text!r} is none of {', '.join(action.choices)}")
    if action.dest in _REPEATED:
        return ListOfDefaults(convert(item.strip()) for item in text.split(",") if item.strip())
    return convert(text)


class ListOfDefaults(list[Any]):
    """A list that the command line replaces, where argparse would add to it."""

    def __copy__(self) -> list[Any]:
        # argparse copies the default before it appends the first value.
        return []
