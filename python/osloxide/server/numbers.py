"""Whole numbers in text that comes from outside.

Owns which text is one: ASCII digits alone. int() takes signs, spaces, underscores and the digits of
other scripts as well, and raises ValueError for what has more digits than
sys.get_int_max_str_digits().
"""

from __future__ import annotations


def whole_number(text: str, most: int) -> int | None:
    """The number that *text* is, in no more digits than *most* has; None where it is none."""
    if not text.isascii() or not text.isdigit() or len(text) > len(str(most)):
        return None
    number = int(text)
    return number if number <= most else None
