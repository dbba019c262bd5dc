"""``osloxide serve`` warns of a unit that kills the service before its grace period is over."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from osloxide.cli import unit


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1min 30s", 90.0), ("500ms", 0.5), ("2h", 7200.0), ("45s", 45.0), ("infinity", None)],
)
def test_time_spans_are_read_as_systemctl_prints_them(text: str, expected: float | None) -> None:
    assert unit.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "12", "1fortnight"])
def test_what_is_no_time_span_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time span"):
        unit.seconds(text)


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process of a unit, and a systemctl that says what ``said`` has."""
    program = tmp_path / "systemctl"
    program.write_text(
        '#!/bin/sh\ncd "$(dirname "$0")"\n'
        '[ "$1 $6" = "$(cat manager) nova-api.service" ] || exit 1\ncat said\n'
    )
    program.chmod(0o755)
    (tmp_path / "manager").write_text("--system")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("INVOCATION_ID", "0" * 32)
    file = tmp_path / "cgroup"
    file.write_text("0::/system.slice/nova-api.service\n")
    return file


def warnings(cgroup: Path, said: str, grace: float, caplog: pytest.LogCaptureFixture) -> list[str]:
    (cgroup.parent / "said").write_text(f"{said}\n")
    with caplog.at_level(logging.WARNING, "osloxide.serve"):
        unit.warn_of_short_stop(grace, cgroup)
    return caplog.messages


@pytest.mark.parametrize(("said", "grace"), [("30s", 60.0), ("1min", 60.0), ("1min 30s", 0.0)])
def test_a_stop_that_is_too_short_is_named_with_its_unit_and_remedy(
    cgroup: Path, said: str, grace: float, caplog: pytest.LogCaptureFixture
) -> None:
    (message,) = warnings(cgroup, said, grace, caplog)

    assert message.startswith("nova-api.service has TimeoutStopSec=")
    assert ("set TimeoutStopSec=70" if grace else "set TimeoutStopSec=infinity") in message


@pytest.mark.parametrize(("said", "grace"), [("1min 30s", 60.0), ("infinity", 0.0), ("huh", 60.0)])
def test_a_stop_that_is_long_enough_or_not_known_is_not_mentioned(
    cgroup: Path, said: str, grace: float, caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings(cgroup, said, grace, caplog) == []


def test_a_process_that_systemd_did_not_start_asks_nothing(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("INVOCATION_ID")

    assert warnings(cgroup, "1s", 60.0, caplog) == []


def test_a_unit_of_a_user_is_looked_up_with_the_manager_of_that_user(
    cgroup: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (cgroup.parent / "manager").write_text("--user")
    cgroup.write_text("0::/user.slice/user-7.slice/user@7.service/app.slice/nova-api.service\n")

    (message,) = warnings(cgroup, "30s", 60.0, caplog)

    assert message.startswith("nova-api.service has TimeoutStopSec=30")
