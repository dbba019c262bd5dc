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


def nothing() -> int:
    return 1


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def make(name: str, workers: int) -> Any:
    if name == "osloxide":
        from osloxide import rpc

        return rpc.Executor(max_workers=workers)
    if name == "futurist":
        import futurist

        return futurist.ThreadPoolExecutor(max_workers=workers)
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(max_workers=workers)


def switches() -> int:
    total = 0
    for task in os.listdir("/proc/self/task"):
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

    woken = switches()
    time.sleep(3)  # the thing measured: what idling costs
    idle = (switches() - woken) / 3

    start = time.perf_counter()
    executor.shutdown(wait=True)
    stop = (time.perf_counter() - start) * 1000
    result = {
        "CPU µs/job": cost,
        "jobs/s": JOBS / wall,
        "round trip p50 µs": statistics.median(trips),
        "threads after 300 jobs in a row": sequential_threads,
        f"burst of {workers} all running ms": burst,
        "idle wake-ups/s after it": idle,
        "shutdown ms": stop,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
