"""pytest plugin of the parity run: what upstream's tests need before they can be imported.

Adds the two module attributes without which a whole file of upstream's tests could not be imported,
or one of its tests not patch what it then proves is never called. Changes no test.
"""

from __future__ import annotations

import multiprocessing


def pytest_configure() -> None:
    from osloxide.backends.threading import service

    service.multiprocessing = multiprocessing  # type: ignore[attr-defined]
    service._check_spawn_picklable = None  # type: ignore[attr-defined]
