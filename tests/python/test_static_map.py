"""Files of ``--static-map``: what a request's conditions make of them, and what they are called."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest

from osloxide.cli import contradictions, serve_options
from osloxide.cli.filters import Filters, StaticMap

#: Sun, 06 Nov 1994 08:49:37 GMT
CHANGED = 784111777
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
LATER = "Sun, 06 Nov 1994 08:49:38 GMT"
EARLIER = "Sun, 06 Nov 1994 08:49:36 GMT"


def answer(directory: Path, name: str, **conditions: str) -> tuple[str, dict[str, str]]:
    """Status and headers of the answer to a GET."""
    (directory / name).write_bytes(b"text")
    os.utime(directory / name, (CHANGED + 0.5, CHANGED + 0.5))
    given: list[tuple[str, dict[str, str]]] = []
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": f"/static/{name}",
        "wsgi.file_wrapper": lambda file: [file.read(), file.close()],
        **{f"HTTP_{key.upper()}": value for key, value in conditions.items()},
    }
    found = StaticMap("/static", str(directory)).answer(
        environ, lambda status, headers: given.append((status, dict(headers)))
    )
    assert found is not None
    [(status, headers)] = given
    assert headers["Last-Modified"] == DATE
    assert bool(found) == status.startswith("200")
    return status, headers


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        ({"if_modified_since": DATE}, 304),
        ({"if_modified_since": LATER}, 304),
        ({"if_modified_since": "Sunday, 06-Nov-94 08:49:37 GMT"}, 304),
        ({"if_modified_since": "Sun Nov  6 08:49:37 1994"}, 304),
        ({"if_modified_since": EARLIER}, 200),
        ({"if_modified_since": "now"}, 200),
        ({"if_modified_since": ""}, 200),
        ({"if_modified_since": "Sun, 06 Nov 99999 08:49:37 GMT"}, 200),
        ({"if_modified_since": "\xb2\xb2 Nov 1994"}, 200),
        ({"if_none_match": "*"}, 304),
        ({"if_none_match": '"a"', "if_modified_since": LATER}, 200),
        ({"if_unmodified_since": DATE}, 200),
        ({"if_unmodified_since": EARLIER}, 412),
        ({"if_unmodified_since": "never"}, 200),
        ({"if_match": "*"}, 200),
        ({"if_match": '"a"'}, 412),
        ({"if_match": "*", "if_unmodified_since": EARLIER}, 200),
        ({"if_match": '"a"', "if_none_match": "*"}, 412),
        ({"if_match": "*", "if_modified_since": DATE}, 304),
    ],
)
def test_conditions_are_judged_in_the_order_of_rfc_9110(
    tmp_path: Path, conditions: dict[str, str], status: int
) -> None:
    assert int(answer(tmp_path, "a.txt", **conditions)[0].split()[0]) == status


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text/plain"),
        ("a.tar.gz", "application/gzip"),
        ("a.txt.bz2", "application/x-bzip2"),
        ("a.xz", "application/x-xz"),
        ("a.Z", "application/octet-stream"),
        ("a", "application/octet-stream"),
    ],
)
def test_a_compressed_file_is_sent_as_what_it_is(tmp_path: Path, name: str, kind: str) -> None:
    _, headers = answer(tmp_path, name)

    assert headers["Content-Type"] == kind
    assert "Content-Encoding" not in headers


def test_a_compressed_picture_is_a_picture(tmp_path: Path) -> None:
    _, headers = answer(tmp_path, "a.svgz")

    assert headers["Content-Type"] == "image/svg+xml"
    assert headers["Content-Encoding"] == "gzip"


def test_of_several_maps_with_a_prefix_the_first_that_has_the_file_answers(tmp_path: Path) -> None:
    over, under = tmp_path / "over", tmp_path / "under"
    for directory in (over, under):
        directory.mkdir()
        (directory / "both.txt").write_text(directory.name)
    (under / "one.txt").write_text("one")
    parser = argparse.ArgumentParser()
    serve_options.declare(parser)
    options = parser.parse_args(
        ["site:app", "--static-map", f"/s={over}", "--static-map", f"/s={under}"]
    )
    contradictions.check(options)
    served = Filters(options, keeps_input=False).wrap(lambda *_: [b"application"])

    def body(name: str) -> bytes:
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": f"/s/{name}",
            "wsgi.input": None,
            "wsgi.file_wrapper": lambda file: [file.read(), file.close()],
        }
        return bytes(next(iter(served(environ, lambda *_: None))))

    assert [body(name) for name in ("both.txt", "one.txt", "none.txt")] == [
        b"over", b"one", b"application",
    ]  # fmt: skip
