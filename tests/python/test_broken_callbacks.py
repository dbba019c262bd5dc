"""No callback of an application that fails loses a signal: log filters, handlers, ``reset()``.

Real processes; what is broken is in ``break_all`` of apps/probe.py. Rules: docs/signals.md.
"""

from __future__ import annotations

import functools
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Program

from osloxide.launch import runner
from osloxide.signals import careful_log

Start = Callable[..., Program]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_callbacks_that_fail_lose_neither_a_hangup_nor_a_stop(running: Start, workers: str) -> None:
    program = running("probe.py", "--workers", workers, "--broken")
    program.expect("wait", int(workers))
    program.send(signal.SIGHUP)
    program.expect("wait", 2 * int(workers))

    program.send(signal.SIGTERM)

    assert program.ended() == 0, repr(program)
    assert len(program.events("stopped")) == 2 * int(workers)


def test_a_reset_that_exits_is_logged_and_the_next_hangup_is_heard(
    running: Start, tmp_path: Path
) -> None:
    config = tmp_path / "probe.conf"
    config.write_text("[DEFAULT]\ncolour = red\n")
    arguments = ("--restart-method", "mutate", "--reset", "exit", "--config", str(config))
    program = running("probe.py", *arguments)
    program.expect("wait")
    for hangups in (1, 2):
        program.send(signal.SIGHUP)
        program.expect("reset", hangups)
        program.expect_log(r"(?s)" + "Error resetting Probe.*" * hangups)

    program.send(signal.SIGTERM)

    assert program.ended() == 0


def test_what_a_reset_raises_is_logged_and_what_a_handler_raises_in_it_passes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Handler:
        def handle(self, *_: object) -> None:
            raise SystemExit(3)

        __call__ = handle

    def failing(failure: BaseException) -> Callable[[], None]:
        def fail() -> None:
            raise failure

        return fail

    handler = Handler()
    usual = [(signo, signal.getsignal(signo)) for signo in (signal.SIGINT, signal.SIGUSR1)]
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as launchers do: no default of CPython's
        signal.signal(signal.SIGUSR1, handler)
        failures = (SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("a fault"))
        for count, failure in enumerate(failures, 1):
            runner.reset(SimpleNamespace(reset=failing(failure)))
            assert caplog.text.count("Error resetting") == count

        interrupted = SimpleNamespace(reset=lambda: signal.raise_signal(signal.SIGUSR1))
        for kind in (handler, handler.handle, functools.partial(Handler.handle, handler)):
            signal.signal(signal.SIGUSR1, kind)
            with pytest.raises(SystemExit):
                runner.reset(interrupted)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            runner.reset(SimpleNamespace(reset=lambda: signal.raise_signal(signal.SIGINT)))
    finally:
        for signo, before in usual:
            signal.signal(signo, before)


def test_a_careful_log_shows_the_line_of_its_caller(caplog: pytest.LogCaptureFixture) -> None:
    log = careful_log.logger("careful")
    with caplog.at_level(logging.DEBUG, "careful"):
        log.info("told %d", 1)
        log.error("failed")

    assert [record.getMessage() for record in caplog.records] == ["told 1", "failed"]
    assert {record.filename for record in caplog.records} == {Path(__file__).name}
    assert {record.funcName for record in caplog.records} == {sys._getframe().f_code.co_name}
