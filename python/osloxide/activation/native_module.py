"""Why an interpreter finds osloxide and not its native module.

Owns that one answer: the package was installed for another CPython, or lies in an archive. Never
imports the native module.

Rules: PEP 3149 (names of extension modules), zipimport (loads none).
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder

NAME = "osloxide._native"


def fault() -> str:
    """What is in the way and what helps; blank where the module is found."""
    places = list(sys.modules["osloxide"].__path__)
    if PathFinder.find_spec(NAME, places) is not None:
        return ""
    place = places[0]
    if not os.path.isdir(place):
        return (
            f"cannot load osloxide._native out of the archive that {place} is in; install "
            "osloxide into a folder"
        )
    there = [entry for entry in sorted(os.listdir(place)) if entry.startswith("_native.cpython-")]
    return (
        f"cannot import osloxide._native: this interpreter, {sys.executable}, wants "
        f"_native{EXTENSION_SUFFIXES[0]} in {place}, where there is {', '.join(there) or 'none'}; "
        "install osloxide with this interpreter's pip"
    )
