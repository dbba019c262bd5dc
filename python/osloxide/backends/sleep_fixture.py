"""oslo.service's ``SleepFixture`` for osloxide's looping calls.

Owns one amendment, of ``oslo_service.fixture``. Upstream the fixture replaces the event on which
looping calls of the EVENTLET backend wait; osloxide's wait on another one, and tests that use the
fixture would really sleep. Imports nothing of the fixture's module but what it is given.

Rules: oslo_service.fixture (deprecated since 4.2).
"""

from __future__ import annotations

from typing import Any

from osloxide import loopingcall
from osloxide.activation.amendments import relies_on


@relies_on("SleepFixture", "fixtures")
def amend(module: Any) -> None:
    """Let ``SleepFixture`` replace the sleep of osloxide's looping calls, under both backends.

    ``mock_wait`` is called with the seconds of each sleep, as upstream.
    """

    def replace_sleep(self: Any) -> None:
        patch = module.fixtures.MockPatchObject(loopingcall.LoopingCallBase, "_sleep")
        self.mock_wait = self.useFixture(patch).mock

    module.SleepFixture._setUp = replace_sleep
