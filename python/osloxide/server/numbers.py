"""Whole numbers that come from outside: from a text, or from a caller.

Owns the bounds of a server's numbers, and which text is a number: ASCII digits alone. int() takes
signs, spaces, underscores and the digits of other scripts as well, and raises ValueError for what
has more digits than sys.get_int_max_str_digits().
"""

from __future__ import annotations

from typing import Any

#: Most seconds of a timeout: beyond a century a clock has no instant.
LONGEST_TIMEOUT = 3_155_760_000
#: Most of what the kernel, or this process, counts in an int of C.
MOST = 2**31 - 1
#: Most of what is counted in 64 bits.
LARGEST = 2**63 - 1


def check_number(
    option: str, value: Any, least: int, most: int = LARGEST, otherwise: str = ""
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


def whole_number(text: str, most: int) -> int | None:
    """The number that *text* is, in no more digits than *most* has; None where it is none."""
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)):
        return None
    number = int(text)
    return number if number <= most else None
