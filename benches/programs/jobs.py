"""Jobs through one executor: ``jobs.py EXECUTOR WORKERS`` prints one JSON line of what it cost.

EXECUTOR is ``osloxide``, ``futurist`` or ``concurrent``: the class that oslo.messaging would get.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import threading
import time
from typing import Any

JOBS = 20000
PUT_AWAY = 17.0
"""Seconds after a burst: by then osloxide's threads have left, which they do after 15."""
WATCHED = 10.0
"""Seconds over which an idle executor is watched."""


def nothing() -> int:
    return 1


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def make(name: str, workers: int) -> Any:
    if name == "osloxide":
        from osloxide.messaging import executor as rpc

        return rpc.Executor(max_workers=workers)
    if name == "futurist":
        import futurist

        return futurist.ThreadPoolExecutor(max_workers=workers)
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(max_workers=workers)


def switches() -> int:
    """Context switches of all threads but this one, which wakes up in order to look."""
    total = 0
    for task in set(os.listdir("/proc/self/task")) - {str(threading.get_native_id())}:
        with open(f"/proc/self/task/{task}/status") as status:
            total += sum(int(x.split()[1]) for x in status if x.startswith("voluntary_ctxt"))
    return total


def main(name: str, workers: int) -> None:
    executor = make(name, workers)
    for _ in range(300):
        executor.submit(nothing).result()
    sequential_threads = len(os.listdir("/proc/self/task")) - 1

    began, used = time.perf_counter(), cpu()
    futures = [executor.submit(nothing) for _ in range(JOBS)]
    for future in futures:
        future.result()
    cost, wall = (cpu() - used) / JOBS * 1e6, time.perf_counter() - began
    futures.clear()

    trips = []
    for _ in range(2000):
        start = time.perf_counter()
        executor.submit(nothing).result()
        trips.append((time.perf_counter() - start) * 1e6)

    gate, all_in = threading.Event(), threading.Barrier(workers + 1)

    def blocked() -> None:
        all_in.wait()
        gate.wait()

    start = time.perf_counter()
    futures = [executor.submit(blocked) for _ in range(workers)]
    all_in.wait()
    burst = (time.perf_counter() - start) * 1000
    gate.set()
    for future in futures:
        future.result()

    # Threads on their way to sleep, or out, are not idle yet.
    time.sleep(PUT_AWAY)
    left = len(os.listdir("/proc/self/task")) - 1
    woken = switches()
    time.sleep(WATCHED)  # the thing measured: what idling costs
    idle = (switches() - woken) / WATCHED

    start = time.perf_counter()
    executor.shutdown(wait=True)
    stop = (time.perf_counter() - start) * 1000
    result = {
        "CPU µs/job": cost,
        "jobs/s": JOBS / wall,
        "round trip p50 µs": statistics.median(trips),
        "threads after 300 jobs in a row": sequential_threads,
        f"burst of {workers} all running ms": burst,
        f"threads {PUT_AWAY:.0f} s later": left,
        "idle wake-ups/s then": idle,
        "shutdown ms": stop,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
