"""Names for type checkers that Python 3.11 does not have yet. Does nothing at run time.

Rules: PEP 698 (override).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import override
else:

    def override(method):  # noqa: ANN001, ANN202  # what typing.override does
        """Mark a method that replaces one of a base class."""
        return method


__all__ = ["override"]
