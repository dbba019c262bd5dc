"""What ``osloxide serve`` has loaded is no work for later collections of garbage."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.serving import fetch, starter

SITE = """
import gc, weakref

class Node:
    pass

KEPT = [Node() for _ in range(1000)]
GARBAGE = Node()
GARBAGE.itself = GARBAGE
AWAITED = weakref.ref(GARBAGE)
del GARBAGE

def application(environ, start_response):
    seen = sum(type(it) is Node for it in gc.get_objects())
    fresh = Node()
    fresh.itself, gone = fresh, weakref.ref(fresh)
    del fresh
    gc.collect()
    start_response("200 OK", [])
    return [f"{seen} {AWAITED()} {gone()}".encode()]
"""


@pytest.mark.parametrize(
    "options", [[], ["-w", "2"], ["-w", "2", "--preload"], ["-w", "2", "--warm"]], ids=" ".join
)
def test_collections_pass_over_what_was_loaded_and_find_what_is_garbage(
    tmp_path: Path, options: list[str]
) -> None:
    (tmp_path / "mysite.py").write_text(SITE)
    with starter(tmp_path) as start:
        site = start("serve", "mysite", "-b", "127.0.0.1:0", *options)
        assert fetch(site.port()) == ["0", "None", "None"]
        assert site.stop() == 0, site.log


def test_an_application_that_turned_the_collector_off_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mysite.py").write_text(SITE.replace("KEPT =", "gc.disable()\nKEPT ="))
    with starter(tmp_path) as start:
        site = start("serve", "mysite", "-b", "127.0.0.1:0")
        assert fetch(site.port())[0] != "0"
        assert site.stop() == 0, site.log
