"""Calls nova's conductor or scheduler over RPC until its standard input closes.

Usage: nova_calls.py CONFIG TOPIC THREADS TIMEOUT REPORT. Uses nova's own client classes and counts
every call that is not answered. Prints the number of answered calls now and then.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path

# nova decides at import how it runs its threads.
os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "1"
from nova import monkey_patch

monkey_patch.patch(backend="threading")
from nova import baserpc, config, context, objects, rpc  # noqa: E402


def main() -> None:
    configuration, topic, threads, timeout, report = sys.argv[1:]
    config.parse_args(["nova_calls", "--config-file", configuration])
    objects.register_all()
    admin = context.get_admin_context()
    api = baserpc.BaseAPI(topic=topic)
    ending = threading.Event()
    took: list[float] = []
    failures: Counter[str] = Counter()

    def call() -> None:
        while not ending.is_set():
            begin = time.monotonic()
            try:
                answer = api.ping(admin, "x", timeout=float(timeout))
            except Exception as error:  # noqa: BLE001 - whatever goes wrong is counted
                failures[type(error).__name__] += 1
                continue
            if answer == {"service": topic, "arg": "x"}:
                took.append(time.monotonic() - begin)
            else:
                failures[f"answer {answer!r}"] += 1

    def await_end() -> None:
        sys.stdin.read()
        ending.set()

    callers = [threading.Thread(target=call) for _ in range(int(threads))]
    for caller in callers:
        caller.start()
    threading.Thread(target=await_end, daemon=True).start()
    while not ending.wait(0.1):
        print(len(took), flush=True)
    for caller in callers:
        caller.join()
    rpc.cleanup()
    took.sort()
    summary = {
        "answered": len(took),
        "failures": failures,
        "median": took[len(took) // 2] if took else 0,
        "slowest": took[-1] if took else 0,
    }
    Path(report).write_text(json.dumps(summary))


main()
