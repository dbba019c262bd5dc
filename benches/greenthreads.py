"""What a greenthread costs: ``python benches/greenthreads.py native|plain|eventlet``.

Owns three figures of one process: CPU of ``spawn(int).wait()``, memory of a thousand greenthreads
that sleep, and of a thousand that have not begun. ``plain`` is ``threading.Thread``. Compares
nothing; docs/eventlet.md has the table.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS, MANY = 2000, 1000


def memory() -> int:
    """PSS of this process in KiB."""
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return int(rollup.partition("\nPss:")[2].split()[0])


def cpu(function: Callable[[], Any]) -> float:
    """Microseconds of CPU that a call takes."""
    began = time.process_time()
    for _ in range(ROUNDS):
        function()
    return (time.process_time() - began) / ROUNDS * 1e6


def main() -> None:
    """Measure what the argument names."""
    if sys.argv[1] == "plain":

        def run() -> None:
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()

        print(f"thread {cpu(run):.0f} us")
        return
    if sys.argv[1] == "native":
        from osloxide.activation import import_hook

        import_hook.install(deferred=True, serve_eventlet=True)
    import eventlet  # type: ignore[import-untyped,unused-ignore]

    print(f"spawn and wait {cpu(lambda: eventlet.spawn(int).wait()):.0f} us")
    before = memory()
    sleepers = [eventlet.spawn(eventlet.sleep, 60) for _ in range(MANY)]
    eventlet.sleep(0.5)
    print(f"{len(sleepers)} that sleep {memory() - before} KiB")
    before = memory()
    later = [eventlet.spawn_after(60, int) for _ in range(MANY)]
    print(f"{len(later)} that have not begun {memory() - before} KiB")


if __name__ == "__main__":
    main()
