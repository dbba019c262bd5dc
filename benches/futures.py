"""What an ordinary ``concurrent.futures.Future`` costs a job of the executor, beside its own one.

Owns the two executors and their jobs, which do nothing. A free-threaded CPython gets ordinary
futures (docs/free-threading.md): this is their price. CPU time of the whole process, the two kinds
in turn, so that other work on the machine meets both.

    python benches/futures.py [--rounds 15] [--jobs 20000]
"""

import argparse
import concurrent.futures
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

from osloxide.messaging import executor

Make = Callable[[], concurrent.futures.Future[Any]]


def cpu_of_a_job(make: Make, jobs: int) -> float:
    """Microseconds of CPU for each of so many jobs."""
    with mock.patch.object(executor, "_future_maker", return_value=make):
        pool = executor.Executor(4)
    begun = time.process_time()
    for _ in range(jobs):
        pool.submit(int)
    pool.shutdown()
    return (time.process_time() - begun) / jobs * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=20_000)
    arguments = parser.parse_args()
    kinds: dict[str, Make] = {
        "osloxide's": executor._future_maker(),
        "ordinary": concurrent.futures.Future,
    }
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(arguments.rounds):
        for name, make in kinds.items():
            taken[name].append(cpu_of_a_job(make, arguments.jobs))
    for name, figures in taken.items():
        middle, least, most = statistics.median(figures), min(figures), max(figures)
        print(f"{name:<11} {middle:6.2f} us a job ({least:.2f} to {most:.2f})")


if __name__ == "__main__":
    main()
