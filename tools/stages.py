"""Run make targets, go on after a failure, and sum up at the end.

``python3 tools/stages.py fmt clippy -- python -- services`` is what ``make test`` does: stages of
one list run one after the other; the lists after the first run beside each other, since their tests
mostly wait. The commands themselves are in the Makefile; this file owns the order of events: a
heading with the stage's name, its output (of the later lists in one piece, when the stage has
ended), its time, its number of tests, and the exit status of the whole. What a failed stage printed
last is repeated above the summary, where readers of a shortened log find it. A stage that runs
longer than STAGE_SECONDS is ended with everything it started. Needs only the standard library.
"""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import NamedTuple

STAGE_SECONDS = 3600
END_SECONDS = 60
REPEATED_LINES = 40
OUTCOMES = ("passed", "failed", "errors", "skipped", "ignored", "xfailed", "xpassed")
# pytest and parity: "12 passed, 1 failed in 3.2s"; cargo: "test result: ok. 12 passed; 0 failed".
SUMMARY = re.compile(r"^(test result: |=*\s*\d+ (passed|failed|skipped|error|xfailed))")
COUNT = re.compile(r"(\d+) ([a-z]+)")


class Outcome(NamedTuple):
    stage: str
    passed: bool
    seconds: float
    counts: Counter[str]
    last_lines: deque[str]


def end(process: subprocess.Popen[str]) -> None:
    """End a stage: SIGINT lets pytest stop what its fixtures started; then SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """End, once: a second signal must not interrupt the end of the stages."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


printing = threading.Lock()
running: set[subprocess.Popen[str]] = set()


def run(stage: str, *, is_alone: bool = True) -> Outcome:
    """Run one make target in a session of its own.

    :param is_alone: pass its output through as it comes; else print it when the stage has ended.
    """
    if is_alone:
        print(f"\n=== {stage}", flush=True)
    output: list[str] = []
    since = time.monotonic()
    counts: Counter[str] = Counter()
    last_lines: deque[str] = deque(maxlen=REPEATED_LINES)
    process = subprocess.Popen(
        [os.environ.get("MAKE", "make"), "--no-print-directory", stage],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    running.add(process)

    def give_up() -> None:
        print(f"stage {stage} still runs after {STAGE_SECONDS} s; ending it", flush=True)
        end(process)

    timer = threading.Timer(STAGE_SECONDS, give_up)
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if is_alone:
                sys.stdout.write(line)
                sys.stdout.flush()
            else:
                output.append(line)
            last_lines.append(line)
            plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
            if SUMMARY.match(plain):
                for number, word in COUNT.findall(plain):
                    name = "errors" if word == "error" else word
                    if name in OUTCOMES:
                        counts[name] += int(number)
        passed = process.wait() == 0
    except BaseException:
        end(process)
        raise
    finally:
        timer.cancel()
        running.discard(process)
    seconds = time.monotonic() - since
    with printing:
        if not is_alone:
            print(f"\n=== {stage}\n{''.join(output)}", end="")
        print(f"=== {stage}: {'ok' if passed else 'FAILED'} in {seconds:.1f} s", flush=True)
    return Outcome(stage, passed, seconds, counts, last_lines)


def run_beside_each_other(lists: list[list[str]]) -> list[Outcome]:
    """Run the *lists*, and in each of them one stage after the other."""

    def run_list(stages: list[str]) -> list[Outcome]:
        return [run(stage, is_alone=False) for stage in stages]

    print("\n=== beside each other: " + "; ".join(map(" ".join, lists)), flush=True)
    with ThreadPoolExecutor(len(lists)) as pool:
        try:
            return list(itertools.chain.from_iterable(pool.map(run_list, lists)))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                end(process)
            os._exit(130)  # the threads of the pool would begin their next stages


def main(words: list[str]) -> int:
    lists = [list(group) for is_mark, group in itertools.groupby(words, "--".__eq__) if not is_mark]
    began = time.monotonic()
    outcomes = [run(stage) for stage in lists[0]]
    if len(lists) > 1:
        outcomes += run_beside_each_other(lists[1:])
    total: Counter[str] = Counter()
    for outcome in outcomes:
        if not outcome.passed:
            print(f"\n=== {outcome.stage}: what it printed last")
            print("".join(outcome.last_lines), end="")
    print("\n=== summary")
    for stage, passed, seconds, counts, _ in outcomes:
        total += counts
        tests = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])
        print(f"{'ok' if passed else 'FAILED':>6} {seconds:7.1f} s  {stage:<10} {tests}".rstrip())
    failed = [outcome.stage for outcome in outcomes if not outcome.passed]
    tests = ", ".join(f"{total[name]} {name}" for name in OUTCOMES if total[name])
    print(f"tests: {tests or 'none'}")
    spent = time.monotonic() - began
    if failed:
        share = f"{len(failed)} of {len(outcomes)} stages"
        print(f"FAILED: {', '.join(failed)} ({share}, {spent:.0f} s)")
        return 1
    print(f"PASS: {len(outcomes)} stages, {spent:.0f} s")
    return 0


if __name__ == "__main__":
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, interrupt)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
