"""Promises of a launcher's templates (launch/template.py) that need no process."""

from __future__ import annotations

import errno
import time
from typing import Any

import pytest

from osloxide.launch import forking, template


class Supervisor:
    """What templates ask of the native one; nothing is watched."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


def test_a_template_that_cannot_be_forked_is_tried_again_however_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = 0

    def refuse() -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(forking, "prepare", refuse)
    templates = template.Templates(
        Supervisor(),  # type: ignore[arg-type]
        lambda: None, lambda *_: None, lambda: [], lambda: False,
    )  # fmt: skip
    now = time.monotonic()
    monkeypatch.setattr(template.time, "monotonic", lambda: now)
    templates.begin()

    for number in range(1, 6):
        assert tries == number
        wait = templates.pulse(load_timeout=0)
        assert wait > 0, "it would never be called again"
        while tries == number:
            now += wait
            wait = templates.pulse(load_timeout=0)
            assert wait > 0, "it would never be called again"
