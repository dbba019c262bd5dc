"""``osloxide serve --mount``: where an application is, as mod_wsgi and uWSGI mount it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _children import run_command
from support.serving import OSLOXIDE, Running, fetch, starter

SITE = """
def application(environ, start_response):
    start_response("200 OK", [])
    return [f"<{environ['SCRIPT_NAME']}> <{environ['PATH_INFO']}>".encode()]
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    (tmp_path / "mysite.py").write_text(SITE)
    with starter(tmp_path) as start:
        yield start


@pytest.mark.parametrize("given", ["/volume/v3", "/volume/v3/"])
def test_requests_below_the_prefix_are_the_applications(
    start: Callable[..., Running], given: str
) -> None:
    server = start("serve", "mysite", "-b", "127.0.0.1:0", "--mount", given)
    port = server.port()

    assert fetch(port, "/volume/v3") == ["</volume/v3>", "<>"]
    assert fetch(port, "/volume/v3/") == ["</volume/v3>", "</>"]
    assert fetch(port, "/volume/v3/a%2Fb/c?d=e") == ["</volume/v3>", "</a/b/c>"]
    for outside in ("/", "/volume", "/volume/v3x", "/other/volume/v3", "//volume/v3"):
        assert fetch(port, outside) == ["Nothing", "is", "mounted", "at", "this", "path."]
    assert server.stop() == 0


@pytest.mark.parametrize("given", ["volume", "/", "", "/a//b", "/a?b"])
def test_what_is_no_prefix_is_a_usage_error(tmp_path: Path, given: str) -> None:
    result = run_command([*OSLOXIDE, "serve", "mysite", f"--mount={given}"], cwd=tmp_path)

    assert result.returncode == 2
    assert f"'{given}' is no prefix of a path; give one such as /placement" in result.stderr
