"""An application that hangs while it is loaded is named in the log, with the place of it."""

from __future__ import annotations

import importlib
import logging
import os
import threading
from pathlib import Path

import pytest
from waiting import DEADLINE, wait_until

from osloxide.cli import slow_import


def test_an_import_that_hangs_is_reported_again_and_again_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "inner_of_hanging.py").write_text(
        f"def look():\n    with open({str(fifo)!r}) as file:\n        file.read()\n"
    )
    (tmp_path / "hanging_app.py").write_text("import inner_of_hanging\n\ninner_of_hanging.look()\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def load() -> None:
        with slow_import.watched("hanging_app:application", 0.05):
            importlib.import_module("hanging_app")

    loader = threading.Thread(target=load)
    with caplog.at_level(logging.WARNING, "osloxide.serve"):
        loader.start()
        wait_until(lambda: len(caplog.messages) >= 2, "two warnings")
        os.close(os.open(fifo, os.O_WRONLY))
        loader.join(30)

    assert not loader.is_alive()
    assert caplog.messages[0].startswith("hanging_app:application is not loaded after 0 s: ")
    assert "the import of hanging_app is at " in caplog.messages[0]
    assert f"{tmp_path}/inner_of_hanging.py:2 in look" in caplog.messages[0]


def test_an_application_that_loads_in_time_is_not_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "osloxide.serve"):
        with slow_import.watched("quick:application", DEADLINE):
            pass
        wait_until(
            lambda: not [it for it in threading.enumerate() if it.name == "import watch"],
            "the watch has ended",
        )

    assert caplog.messages == []
