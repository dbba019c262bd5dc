"""``eventlet.green.profile``: the standard library's profiler, with ``start()`` and ``stop()``.

Owns a profiler of the calling greenthread: it counts the CPU of that native thread, and sees no
other. eventlet's sees all greenthreads that run while it is on; here each needs one of its own.
Rules: profile (Python library reference); eventlet.green.profile.
"""

from __future__ import annotations

import profile as _std
import sys
import time
from typing import Any, ClassVar

from osloxide._typing import override
from osloxide.green.patcher import slurp_properties as _slurp

__patched__ = ["Profile", "run", "runctx"]
_slurp(_std, globals(), ignore=__patched__, srckeys=dir(_std))

_Standard: Any = _std.Profile
_fake_frame: type = _Standard.fake_frame


class Profile(_Standard):
    """A profiler of the calling greenthread.

    :param timer: the time, in seconds; the CPU of the calling thread when None.
    """

    base = _Standard
    running = False

    def __init__(self, timer: Any = None, bias: float | None = None) -> None:
        super().__init__(timer or time.thread_time, bias)

    def __call__(self, *args: Any) -> None:
        """Be the profiler itself: ``sys.setprofile(profile)``."""
        self.dispatcher(*args)

    def start(self, name: str = "start") -> None:
        """Begin to profile the calling greenthread; without effect while it is profiled."""
        if self.running:
            return
        self.cur: Any = None
        self.timings: dict[Any, Any] = {}
        self.simulate_call("profiler")
        self.simulate_call(name)
        self.running = True
        sys.setprofile(self.dispatcher)

    def stop(self) -> None:
        """End it; statistics can be made from now on."""
        sys.setprofile(None)
        self.running = False
        self.simulate_cmd_complete()

    @override
    def trace_dispatch_return(self, frame: Any, t: float) -> Any:
        """A function returns; not one that was called before the profiler was on."""
        if isinstance(self.cur[-2], _fake_frame) and not isinstance(frame, _fake_frame):
            return False
        return super().trace_dispatch_return(frame, t)

    dispatch: ClassVar[dict[str, Any]] = {
        **_Standard.dispatch,
        "return": trace_dispatch_return,
        "c_exception": trace_dispatch_return,
        "c_return": trace_dispatch_return,
    }


def run(statement: str, filename: str | None = None, sort: Any = -1) -> Any:
    """Run *statement* and print a report, or write it to *filename*."""
    return _std._Utils(Profile).run(statement, filename, sort)  # type: ignore[attr-defined]


def runctx(
    statement: str,
    globals: dict[str, Any],
    locals: dict[str, Any],
    filename: str | None = None,
    sort: Any = -1,
) -> Any:
    """Run *statement* with names of the caller's."""
    return _std._Utils(Profile).runctx(  # type: ignore[attr-defined]
        statement, globals, locals, filename, sort
    )
