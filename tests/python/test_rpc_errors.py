"""Which errors of a broker are final."""

from __future__ import annotations

import pytest

pytest.importorskip("amqp", reason="`make setup` installs it")

from amqp import exceptions

from osloxide.messaging.rabbit import errors


@pytest.mark.parametrize("code", [311, 403, 406, 501, 502, 503, 505, 530, 540])
def test_what_the_same_message_would_get_again_is_permanent(code: int) -> None:
    error = exceptions.error_for_code(code, "no", (60, 40), exceptions.ChannelError)

    assert errors.refusal(error) is not None


@pytest.mark.parametrize("code", [320, 404, 405, 504, 506, 541])
def test_what_passes_is_not_permanent(code: int) -> None:
    error = exceptions.error_for_code(code, "for a while", (60, 40), exceptions.ChannelError)

    assert errors.refusal(error) is None


def test_a_permanent_error_is_found_behind_the_one_that_it_led_to() -> None:
    led_to = RuntimeError("Unable to connect")
    led_to.__context__ = exceptions.PreconditionFailed("message size 20 larger than max size 16")

    assert "larger than max size" in str(errors.refusal(led_to))


def test_a_lost_connection_is_not_permanent() -> None:
    assert errors.refusal(ConnectionResetError()) is None
