"""How pip and other front ends build osloxide from source (PEP 517): maturin's back end.

Owns one decision: where cargo is missing, the build fails at once and says so. maturin by itself
would fetch a Rust toolchain without a word, which takes minutes, and for ever where the network
does not lead there. ``MATURIN_NO_INSTALL_RUST=`` (empty) has it do so all the same.
"""

import os

os.environ.setdefault("MATURIN_NO_INSTALL_RUST", "1")

from maturin import *  # type: ignore[import-untyped]  # noqa: F403 - reads it when called
