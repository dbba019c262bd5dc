"""An error and what led to it. Decides nothing about any of them.

Rules: PEP 3134 (``__cause__`` and ``__context__``).
"""

from __future__ import annotations

from collections.abc import Iterator


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """*error*, then what each was raised from or in the handling of; each once, none for None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
