"""How tests of properties run: the same examples each time, and no clock.

``@checked`` stands above ``@given``. With OSLOXIDE_LONG=1 there are more examples, and others each
time.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

IS_LONG = os.environ.get("OSLOXIDE_LONG") == "1"

checked = settings(
    derandomize=not IS_LONG,
    database=None,
    deadline=None,
    max_examples=5000 if IS_LONG else 300,
    # Examples may share a connection, where that is what is to be tested; and how long one takes to
    # be made says how busy the machine is.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
