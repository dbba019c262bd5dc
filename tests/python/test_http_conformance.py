"""Every HTTP row against osloxide, in every manner: one test for each, named as manner and row.

The rows live in conformance/; this file only chooses the server. A row that osloxide does not keep
yet is listed in NOT_YET with the reason and fails the suite as soon as it is kept (strict xfail).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conformance import ALL_ROWS
from conformance.manner import MANNERS, Manner
from conformance.rules import rule
from conformance.target import Target
from conformance.verdict import SHORT, SHORT_TIMEOUT_ROWS, judge, not_for

#: Row -> why it does not hold yet. Whoever makes a row hold removes it here.
NOT_YET: dict[str, str] = {}


class Fleet:
    """The servers of this module, started when first asked for, replaced when they died."""

    def __init__(self) -> None:
        self._targets: dict[tuple[str, bool], Target] = {}

    def target(self, manner: Manner, *, short: bool) -> Target:
        target = self._targets.get((manner.name, short))
        if target is not None and not target.is_alive():
            target.stop()
            target = None
        if target is None:
            # One manner after the other: the rows measure what a server costs.
            self.stop()
            options = ["--timeout", str(SHORT)] if short else []
            target = Target("osloxide", "--access-log", *options, manner=manner)
            self._targets[manner.name, short] = target
        return target

    def stop(self) -> None:
        for target in self._targets.values():
            target.stop()
        self._targets.clear()


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.stop()


def _params() -> list[object]:
    """Manners, and in each the rows that share a server side by side."""
    return [
        pytest.param(
            manner,
            name,
            id=f"{manner.name}-{name}",
            marks=[pytest.mark.xfail(reason=NOT_YET[name], strict=True)] if name in NOT_YET else [],
        )
        for manner in MANNERS.values()
        for name in sorted(ALL_ROWS, key=lambda name: name in SHORT_TIMEOUT_ROWS)
        if name not in not_for(manner)
    ]


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("manner", "name"), _params())
def test_row(manner: Manner, name: str, fleet: Fleet) -> None:
    target = fleet.target(manner, short=name in SHORT_TIMEOUT_ROWS)

    held, note = judge(ALL_ROWS[name], target)

    assert held, f"{ALL_ROWS[name].__doc__} -- {note}\n{target.log()[-2000:]}"


def test_every_row_has_a_rule() -> None:
    assert all(rule(name) for name in ALL_ROWS)


#: Rows that the standard library's lax server is known to break: the driver has to see it.
BROKEN_BY_WSGIREF = (
    "env_underscore",
    "env_httpoxy",
    "sm_cl_te",
    "sm_obs_fold",
    "sm_nul_value",
    "sm_no_host",
    "sm_two_hosts",
    "sm_http09",
    "body_truncated_cl",
    "resp_inject_value",
    "resp_inject_nul",
    "resp_204_body",
    "resp_cl_too_short",
    "app_raise_mid",
)


def test_the_driver_sees_the_faults_of_a_lax_server() -> None:
    with Target("wsgiref", "--access-log") as target:
        verdicts = {name: judge(ALL_ROWS[name], target) for name in BROKEN_BY_WSGIREF}

    assert not [name for name, (held, _) in verdicts.items() if held], verdicts


def test_stopping_a_target_leaves_no_process() -> None:
    target = Target("wsgiref")
    assert target.pids()

    target.stop()

    assert not target.pids()
