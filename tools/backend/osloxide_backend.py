"""How pip and other front ends build osloxide from source (PEP 517): maturin's back end.

Owns one decision: where cargo is missing, the build fails at once and says what helps, before a
front end fetches anything. maturin by itself would fetch a Rust toolchain without a word, which
takes minutes, and for ever where the network does not lead there. ``MATURIN_NO_INSTALL_RUST=``
(empty) has it do so all the same.
"""

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

VARIABLE = "MATURIN_NO_INSTALL_RUST"
os.environ.setdefault(VARIABLE, "1")

import maturin  # type: ignore[import-untyped]  # noqa: E402 - reads it when called

HOOKS = (
    "get_requires_for_build_wheel", "get_requires_for_build_editable",
    "get_requires_for_build_sdist", "prepare_metadata_for_build_wheel",
    "prepare_metadata_for_build_editable", "build_wheel", "build_editable", "build_sdist",
)  # fmt: skip


def with_cargo(hook: Callable[..., Any]) -> Callable[..., Any]:
    """*hook*, unless cargo is missing: then the front end shows this text."""

    def guarded(*arguments: Any, **named: Any) -> Any:
        if os.environ[VARIABLE] and shutil.which(os.environ.get("CARGO") or "cargo") is None:
            sys.exit(
                "osloxide is built by cargo, which is not on PATH: install Rust 1.88 or later "
                "(https://rustup.rs, or the distribution's packages cargo and rustc), or install "
                "a wheel of osloxide, which needs neither"
            )
        return hook(*arguments, **named)

    return guarded


globals().update({name: with_cargo(getattr(maturin, name)) for name in HOOKS})
