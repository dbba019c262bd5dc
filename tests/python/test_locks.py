"""The lock files of requirements/ can be installed on every CPython that is supported.

Owns what can be said of them without an index; `make pythons` installs them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LOCKS = sorted((REPOSITORY / "requirements").glob("*.lock"))


def pins(lock: Path) -> dict[str, str]:
    """``{name: the rest of the line}``."""
    found = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, separator, rest = line.partition("==")
            assert separator, f"{lock.name}: {line!r} pins no version"
            found[re.sub(r"[-_.]+", "-", name).lower()] = rest
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_with_webob_brings_the_module_cgi_where_cpython_has_none(lock: Path) -> None:
    """CPython 3.13 has removed cgi, which WebOb 1.8 imports; the lock installs with --no-deps."""
    found = pins(lock)
    if "webob" in found:
        assert 'python_version >= "3.13"' in found.get("legacy-cgi", "missing")


def test_the_constraints_of_the_series_hold_for_what_osloxide_requires() -> None:
    text = (REPOSITORY / "requirements" / "openstack-2026.2.txt").read_text(encoding="utf-8")
    versions = dict(re.findall(r"^([\w.-]+)===([\w.]+)$", text, re.MULTILINE))

    assert {"oslo.service", "oslo.config", "oslo.log", "oslo.messaging"} <= set(versions)
    major, minor, *_ = map(int, versions["oslo.service"].split("."))
    assert (4, 2) <= (major, minor) < (5, 0)
