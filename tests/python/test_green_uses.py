"""What real services and libraries use of eventlet is served, as tests/green/uses.json has it.

tests/green/collect.py reads that file from their releases. Names that the real eventlet does not
have are local variables of the same name, and skipped where the real one is installed.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from _children import run_python

USES = json.loads((Path(__file__).parents[1] / "green" / "uses.json").read_text())

LOOK = """
import importlib, inspect, json, sys

def found(dotted):
    parts = dotted.split(".")
    value = importlib.import_module(parts[0])
    for index, part in enumerate(parts[1:], 1):
        try:
            value = getattr(value, part)
        except AttributeError:
            try:
                value = importlib.import_module(".".join(parts[: index + 1]))
            except (ImportError, ValueError):
                return None
    return value

def refused(value, keyword):
    try:
        parameters = inspect.signature(value).parameters
    except (TypeError, ValueError):
        return False
    kinds = {parameter.kind for parameter in parameters.values()}
    return inspect.Parameter.VAR_KEYWORD not in kinds and keyword not in parameters

names, keywords = json.load(sys.stdin)
print(json.dumps({
    "missing": [name for name in names if found(name) is None],
    "refused": [
        [name, word] for name, words in keywords.items() for word in words
        if refused(found(name), word)
    ],
}))
"""

ACTIVE = """
from osloxide.activation import import_hook
import_hook.install(deferred=True, serve_eventlet=True)
"""


def look(prelude: str, release: dict[str, object]) -> dict[str, list[object]]:
    """What is not there, in a process of its own."""
    data = json.dumps([release["names"], release["keywords"]])
    text = f"import io, sys\nsys.stdin = io.StringIO({data!r})\n"
    result = run_python(prelude + text + LOOK)
    assert result.returncode == 0, result.stderr
    answer: dict[str, list[object]] = json.loads(result.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("name", USES)
def test_all_that_a_release_uses_is_served(name: str) -> None:
    pytest.importorskip("eventlet")
    here, real = look(ACTIVE, USES[name]), look("", USES[name])
    for kind in ("missing", "refused"):
        lacking = [entry for entry in here[kind] if entry not in real[kind]]
        assert not lacking, f"{kind}: {lacking}"
