"""Measures osloxide beside its peers; see benches/README.md for the rules."""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
#: Services and their loads come from the service tests and from the demo.
sys.path[:0] = [str(_ROOT / "examples" / "cinder"), str(_ROOT / "tests")]
